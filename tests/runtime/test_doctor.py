from __future__ import annotations

import importlib.metadata
import json

import pytest

import causal_onnx.runtime
from causal_onnx.runtime import ArtifactError, DeviceError, doctor
from causal_onnx.runtime.doctor import Diagnosis, diagnose

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose()


def test_this_environment_is_described(diagnosis: Diagnosis) -> None:
    assert diagnosis.versions["causal-onnx"] == causal_onnx.runtime.__version__
    assert {"python", "numpy"} <= set(diagnosis.versions)
    assert diagnosis.usable_cores >= 1
    assert CPU in diagnosis.providers
    assert "ORT_DISABLE_TELEMETRY" in diagnosis.telemetry


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("1", "off: ORT_DISABLE_TELEMETRY=1"),
        ("0", "on: ORT_DISABLE_TELEMETRY=0 was set, and is kept"),
        (None, "started by whoever imported onnxruntime first; its events are disabled"),
    ],
)
def test_telemetry_is_told(monkeypatch: pytest.MonkeyPatch, value: str | None, said: str) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if value is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
    assert diagnose().telemetry == said


def test_the_cpu_works_and_was_tried(diagnosis: Diagnosis) -> None:
    assert diagnosis.devices[0].name == "cpu"
    assert diagnosis.devices[0].works


def test_a_script_can_read_it(diagnosis: Diagnosis) -> None:
    again = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert again["devices"][0]["works"] is True
    assert again["healthy"] is (again["problems"] == [])


def with_requirements(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    """Let `versions` be what is installed, and these be the extras."""
    lines = [
        "numpy>=1.26",
        "onnxruntime-gpu[cuda,cudnn]>=1.28; extra == 'gpu'",
        "onnxruntime>=1.28; extra == 'cpu'",
        'torch>=2.9 ; extra == "export"',
        'onnx<2,>=1.19; python_version < "4" and extra == "export"',
        "rich; extra == 'export'",
    ]

    def version(name: str) -> str:
        try:
            return versions[name]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(importlib.metadata, "version", version)


def test_extras_are_compared_with_what_they_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_devices", lambda providers, problems: ())
    with_requirements(monkeypatch, {"onnxruntime": "1.32.0", "torch": "2.13.0+cpu", "rich": "15"})
    found = diagnose()
    assert {extra.name: extra.missing for extra in found.extras} == {
        "gpu": ("onnxruntime-gpu>=1.28",),
        "cpu": (),
        "export": ("onnx>=1.19",),
    }
    assert [extra.name for extra in found.extras if extra.installed] == ["cpu"]
    assert [(problem.what, problem.remedy) for problem in found.problems] == [
        (
            "the extra 'export' is installed in part; missing: onnx>=1.19",
            "pip install 'causal-onnx[export]'",
        )
    ]
    assert not found.healthy


def test_a_version_that_is_too_old_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with_requirements(monkeypatch, {"torch": "2.8.9", "onnx": "1.19.0", "rich": "1"})
    export = next(extra for extra in diagnose().extras if extra.name == "export")
    assert export.missing == ("torch>=2.9",)


def test_a_package_without_metadata_has_no_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", nothing)
    assert diagnose().extras == ()


@pytest.mark.parametrize(
    ("error", "what", "remedy"),
    [
        (
            ImportError(doctor.NOT_INSTALLED),
            "onnxruntime is not installed",
            "pip install 'causal-onnx[cpu]', or for NVIDIA GPUs 'causal-onnx[gpu]'",
        ),
        (DeviceError("two wheels. Keep one: this"), "two wheels", "Keep one: this"),
        (OSError("a library is broken"), "a library is broken", "reinstall onnxruntime"),
    ],
)
def test_an_onnxruntime_that_does_not_import_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, error: Exception, what: str, remedy: str
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(doctor, "import_onnxruntime", fail)
    found = diagnose()
    assert found.providers == ()
    assert found.devices == ()
    assert doctor.Problem(what=what, remedy=remedy) in found.problems


class Broken:
    def __init__(self, result: list[list[float]] | Exception) -> None:
        self.result = result

    def __call__(self, x: object) -> object:
        import numpy as np

        if isinstance(self.result, Exception):
            raise self.result
        return np.array(self.result)


@pytest.mark.parametrize(
    ("result", "detail"),
    [
        ([[7, 10], [15, 23]], r"it computed [[7, 10], [15, 23]]"),
        (ArtifactError("no session"), "no session"),
    ],
)
def test_a_cpu_that_fails_is_found(
    monkeypatch: pytest.MonkeyPatch, result: list[list[float]] | Exception, detail: str
) -> None:
    monkeypatch.setattr(doctor, "load", lambda *args, **kwargs: Broken(result))
    cpu = diagnose().devices[0]
    assert not cpu.works
    assert cpu.detail == detail


def devices_with(
    monkeypatch: pytest.MonkeyPatch, *, gpus: int, driver: bool, cuda: bool = True
) -> tuple[list[str], list[doctor.Problem]]:
    """What is found on a machine of so many GPUs."""

    def try_device(name: str) -> doctor.DeviceFinding:
        works = name == "cpu" or int(name.partition(":")[2]) < gpus
        return doctor.DeviceFinding(name=name, works=works, detail="ready" if works else "dead")

    monkeypatch.setattr(doctor, "_try_device", try_device)
    monkeypatch.setattr(doctor, "_has_nvidia_driver", lambda: driver)
    problems: list[doctor.Problem] = []
    found = doctor._devices((CUDA, CPU) if cuda else (CPU,), problems)
    return [f"{item.name} {item.works}" for item in found], problems


def test_every_gpu_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    found, problems = devices_with(monkeypatch, gpus=2, driver=True)
    assert found == ["cpu True", "cuda:0 True", "cuda:1 True"]
    assert problems == []


@pytest.mark.parametrize(
    ("driver", "remedy"),
    [(True, "the driver must be as new as they are"), (False, "install NVIDIA's driver, or pip")],
)
def test_a_gpu_that_does_not_work_is_a_problem(
    monkeypatch: pytest.MonkeyPatch, driver: bool, remedy: str
) -> None:
    found, (problem,) = devices_with(monkeypatch, gpus=0, driver=driver)
    assert found == ["cpu True", "cuda:0 False"]
    assert problem.what == "CUDA does not work: dead"
    assert remedy in problem.remedy


def test_a_gpu_beside_the_cpu_wheel_is_pointed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    found, (problem,) = devices_with(monkeypatch, gpus=1, driver=True, cuda=False)
    assert found == ["cpu True", "cuda False"]
    assert "has an NVIDIA driver, but this onnxruntime is built without CUDA" in problem.what
    assert "causal-onnx[gpu]" in problem.remedy


def test_no_gpu_beside_the_cpu_wheel_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices_with(monkeypatch, gpus=0, driver=False, cuda=False)[1] == []
