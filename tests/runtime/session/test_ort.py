from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from causal_onnx.runtime import DeviceError
from causal_onnx.runtime.session.ort import (
    first_line,
    import_onnxruntime,
    installed_wheels,
    refuse_older,
)
from tests.runtime.artifacts import fixture


def install(
    folder: Path, name: str, version: str, *, files: str = "onnxruntime/__init__.py"
) -> None:
    """Leave what pip leaves of a wheel: its files, and a record of them."""
    (folder / files).parent.mkdir(parents=True, exist_ok=True)
    (folder / files).write_text(f"__version__ = {version!r}\nInferenceSession = object\n")
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{files},sha256=abc,10\n{info.name}/METADATA,,\n")


def imported() -> list[str]:
    return [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that onnxruntime is imported from, in place of the real one."""
    for name in imported():
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "site"
    folder.mkdir()
    elsewhere = [path for path in sys.path if not (Path(path) / "onnxruntime").is_dir()]
    monkeypatch.setattr(sys, "path", [str(folder), *elsewhere])
    importlib.invalidate_caches()
    import_onnxruntime.cache_clear()
    yield folder
    for name in imported():  # the stub; what was imported before comes back
        del sys.modules[name]
    import_onnxruntime.cache_clear()


def test_the_wheel_of_this_environment_is_found() -> None:
    wheels = installed_wheels()
    assert len(wheels) == 1
    assert next(iter(wheels)).startswith("onnxruntime")


def test_two_wheels_over_each_other_are_refused_by_name(site: Path) -> None:
    install(site, "onnxruntime", "1.32.0")
    install(site, "onnxruntime-gpu", "1.31.1")
    assert installed_wheels() == {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"}
    message = (
        r"\(onnxruntime 1\.32\.0, onnxruntime-gpu 1\.31\.1\); they overwrite.*"
        r"pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'causal-onnx\[cpu\]'"
    )
    with pytest.raises(DeviceError, match=message):
        import_onnxruntime()


def test_companions_with_folders_of_their_own_are_no_second_wheel(site: Path) -> None:
    install(site, "onnxruntime", "1.32.0")
    install(site, "onnxruntime-genai", "0.18.0", files="onnxruntime_genai/__init__.py")
    assert installed_wheels() == {"onnxruntime": "1.32.0"}
    assert import_onnxruntime().__version__ == "1.32.0"


def test_what_is_left_after_uninstalling_one_of_two_is_refused(site: Path) -> None:
    install(site, "onnxruntime", "1.32.0")
    (site / "onnxruntime/__init__.py").unlink()
    with pytest.raises(ImportError, match=r"installed incompletely .*pip install --force-reinst"):
        import_onnxruntime()


@pytest.mark.parametrize("version", ["1.27.0", "0.9", "1.23.2+cpu"])
def test_a_version_with_wrong_attention_is_refused(site: Path, version: str) -> None:
    install(site, "onnxruntime", version)
    with pytest.raises(ImportError, match=r"is too old: its Attention .* 1\.28 or newer: pip"):
        import_onnxruntime()


@pytest.mark.parametrize("version", ["1.28.0", "1.32.0.dev20260101", "2.0"])
def test_newer_versions_are_accepted(site: Path, version: str) -> None:
    install(site, "onnxruntime", version)
    assert import_onnxruntime().__version__ == version


@pytest.mark.parametrize("version", ["1.30.0", "1.31.0.dev20260101", "1.100.0", "2.0"])
def test_a_file_runs_where_the_version_is_new_enough(version: str) -> None:
    refuse_older(version, "1.30", "model.onnx", "ort")
    refuse_older(version, None, "model.onnx", "ort")


def test_an_error_within_onnxruntime_is_not_taken_for_its_absence(site: Path) -> None:
    install(site, "onnxruntime", "1.32.0")
    (site / "onnxruntime/__init__.py").write_text("import something_it_needs\n")
    with pytest.raises(ModuleNotFoundError, match="something_it_needs"):
        import_onnxruntime()


MISSING = """
import sys
sys.modules["onnxruntime"] = None  # as if it were not installed
from causal_onnx.runtime import load, read_artifact
assert read_artifact({path!r}).contract
try:
    load({path!r})
except ImportError as error:
    print(type(error).__name__, error)
"""


def test_without_onnxruntime_one_error_names_the_extras(run_python: Callable[..., str]) -> None:
    said = run_python(MISSING.format(path=str(fixture("one_head"))))
    assert said == (
        "ImportError onnxruntime is not installed. For the CPU: pip install 'causal-onnx[cpu]'; "
        "for NVIDIA GPUs: pip install 'causal-onnx[gpu]'\n"
    )


TELEMETRY = """
import os, pathlib, sys
{before}
from causal_onnx.runtime import load
assert load({path!r}).selftest().passed
print(os.environ.get("ORT_DISABLE_TELEMETRY"))
print(sorted(str(p) for p in pathlib.Path.home().rglob("*") if p.is_file()))
"""


def telemetry(before: str = "") -> str:
    return TELEMETRY.format(path=str(fixture("one_head")), before=before)


class TestTelemetry:
    def test_it_is_off_and_nothing_is_written_to_the_home_folder(
        self, run_python: Callable[..., str]
    ) -> None:
        assert run_python(telemetry()) == "1\n[]\n"

    def test_what_the_user_set_is_kept(self, run_python: Callable[..., str]) -> None:
        said = run_python(telemetry(), ORT_DISABLE_TELEMETRY="0").splitlines()
        assert said[0] == "0"

    def test_importing_this_package_alone_changes_no_variable(
        self, run_python: Callable[..., str]
    ) -> None:
        script = "import os, causal_onnx.runtime; print('ORT_DISABLE_TELEMETRY' in os.environ)"
        assert run_python(script) == "False\n"

    def test_events_are_disabled_where_the_host_imported_onnxruntime_first(
        self, site: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        host = ModuleType("onnxruntime")
        called: list[str] = []
        host.__dict__.update(
            __version__="1.32.0",
            __spec__=sys.modules["sys"].__spec__,
            InferenceSession=object,
            disable_telemetry_events=lambda: called.append("disabled"),
        )
        monkeypatch.setitem(sys.modules, "onnxruntime", host)
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        import_onnxruntime()
        assert called == ["disabled"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : it broke\nand more", "it broke"),
        (
            "[ONNXRuntimeError] : 1 : FAIL : /src/core/graph/model.cc:256 "
            "onnxruntime::Model::Model(onnx::ModelProto&&, const X<int>&) Unsupported IR",
            "Unsupported IR",
        ),
        ("plain text", "plain text"),
        ("", "RuntimeError"),
    ],
)
def test_the_first_line_of_an_error_says_what_broke(text: str, line: str) -> None:
    assert first_line(RuntimeError(text)) == line
