"""What is judged is what is loaded, whatever happens to names and files in between."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import ArtifactError, Limits, UnsafeFileError, load, read_artifact
from causal_onnx.runtime.artifact import held as held_module
from causal_onnx.runtime.contract import CONTRACT_KEY
from causal_onnx.runtime.scan import scan
from causal_onnx.runtime.session import open as session_module
from tests.runtime.artifacts import field, metadata
from tests.runtime.onnx_bytes import DEFAULT, contract, external, graph, node, value

X = np.ones((1, 2, 4), np.float32)
INSIDE, OUTSIDE = 1, 7

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and leases of Linux")


def adder(*weights: bytes, op_type: str = "Add") -> bytes:
    """A model that adds the weight w."""
    axes = ("batch", "seq", 4)
    main = graph(
        [node(op_type, ["x", "w"], ["y"])],
        inputs=[value("x", *axes)],
        outputs=[value("y", *axes)],
        tensors=weights,
    )
    said = metadata(CONTRACT_KEY, contract().to_json())
    return field(1, 10) + field(7, main) + field(8, DEFAULT) + said


def folder_of(place: Path, number: int) -> Path:
    """A folder with a model that adds a number that lies in a file beside it."""
    place.mkdir()
    np.full(4, number, np.float32).tofile(place / "w.data")
    (place / "m.onnx").write_bytes(adder(external()))
    return place


def added(path: Path) -> float:
    return float(load(path)(X)[0, 0, 0]) - 1


def before_onnxruntime(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Let something happen after the files were judged and before onnxruntime opens them."""
    original = session_module._source

    def then(*args: object) -> object:
        act()
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(session_module, "_source", then)


def swap_folder(inside: Path, outside: Path) -> None:
    inside.rename(inside.with_name("moved"))
    inside.symlink_to(outside)


def swap_file(inside: Path, outside: Path) -> None:
    (inside / "w.data").rename(inside / "old.data")
    (inside / "w.data").symlink_to(outside / "w.data")


def swap_model(inside: Path, outside: Path) -> None:
    (inside / "m.onnx").unlink()
    (inside / "m.onnx").write_bytes(b"something else")


@pytest.mark.parametrize("swap", [swap_folder, swap_model])
def test_names_given_to_other_files_after_the_scan_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: Callable[[Path, Path], None]
) -> None:
    inside, outside = folder_of(tmp_path / "a", INSIDE), folder_of(tmp_path / "b", OUTSIDE)
    before_onnxruntime(monkeypatch, lambda: swap(inside, outside))
    assert added(inside / "m.onnx") == INSIDE


def test_a_data_file_that_is_replaced_by_a_link_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = folder_of(tmp_path / "a", INSIDE), folder_of(tmp_path / "b", OUTSIDE)
    before_onnxruntime(monkeypatch, lambda: swap_file(inside, outside))
    with pytest.raises(ArtifactError, match=r"w\.data changed while it was being loaded"):
        added(inside / "m.onnx")


@pytest.mark.parametrize("content", [np.full(4, OUTSIDE, np.float32).tobytes(), b""])
def test_a_data_file_that_is_written_to_in_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    inside = folder_of(tmp_path / "a", INSIDE)
    before_onnxruntime(monkeypatch, lambda: (inside / "w.data").write_bytes(content))
    with pytest.raises(ArtifactError, match=r"w\.data changed while it was being loaded"):
        added(inside / "m.onnx")


def test_a_model_that_is_written_to_in_place_computes_as_it_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = folder_of(tmp_path / "a", INSIDE)
    before_onnxruntime(monkeypatch, lambda: (inside / "m.onnx").write_bytes(b"\0" * 400))
    assert added(inside / "m.onnx") == INSIDE


def test_a_contract_of_another_file_than_the_judged_one_is_refused(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "a", INSIDE) / "m.onnx"
    artifact = read_artifact(path)
    path.write_bytes(adder(external()) + field(2, "another producer"))
    with pytest.raises(ArtifactError, match=r"m\.onnx changed while it was being loaded"):
        scan(artifact, Limits())


def test_without_what_linux_has_the_contents_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, outside = folder_of(tmp_path / "a", INSIDE), folder_of(tmp_path / "b", OUTSIDE)
    monkeypatch.setattr(held_module, "_has_descriptors", lambda: False)
    before_onnxruntime(monkeypatch, lambda: swap_folder(inside, outside))
    assert added(inside / "m.onnx") == INSIDE


@contextmanager
def repeating(act: Callable[[], object]) -> Iterator[None]:
    """Do something again and again on another thread."""
    ended = threading.Event()

    def body() -> None:
        while not ended.is_set():
            act()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def outcomes(path: Path, loads: int) -> list[float | str]:
    """What each of many loads computes, or how it is refused."""
    found: list[float | str] = []
    for _ in range(loads):
        try:
            found.append(added(path))
        except (ArtifactError, FileNotFoundError) as error:
            found.append(str(error))
    return found


def two_folders(place: Path) -> tuple[Path, Path]:
    """One whose model adds, one whose model subtracts: a mixture gives the negative of either."""
    inside, outside = folder_of(place / "a", INSIDE), folder_of(place / "b", OUTSIDE)
    (outside / "m.onnx").write_bytes(adder(external(), op_type="Sub"))
    return inside, outside


def test_a_folder_that_is_pointed_elsewhere_all_the_time_is_read_on_one_side(
    tmp_path: Path,
) -> None:
    inside, outside = two_folders(tmp_path)
    link, other = tmp_path / "here", tmp_path / "next"
    link.symlink_to(inside)

    def point() -> None:
        for place in (outside, inside):
            other.symlink_to(place)
            other.rename(link)

    with repeating(point):
        found = outcomes(link / "m.onnx", 100)
    assert set(found) <= {INSIDE, -OUTSIDE}


def test_a_folder_that_is_renamed_all_the_time_is_read_on_one_side(tmp_path: Path) -> None:
    inside, outside = two_folders(tmp_path)

    def rename() -> None:
        for place in (inside, outside):
            place.rename(tmp_path / "aside")
            (tmp_path / "aside").rename(place)
            inside.rename(tmp_path / "away")
            outside.rename(inside)
            inside.rename(outside)
            (tmp_path / "away").rename(inside)

    with repeating(rename):
        found = outcomes(inside / "m.onnx", 100)
    assert {x for x in found if isinstance(x, float)} <= {INSIDE, -OUTSIDE}


def test_a_data_file_that_is_written_to_all_the_time_ends_no_process(tmp_path: Path) -> None:
    inside = folder_of(tmp_path / "a", INSIDE)
    contents = [np.full(4, number, np.float32).tobytes() for number in (INSIDE, OUTSIDE)]

    def write() -> None:
        for content in contents:
            (inside / "w.data").write_bytes(content)

    with repeating(write):
        found = outcomes(inside / "m.onnx", 50)
    assert {x for x in found if isinstance(x, float)} <= {INSIDE, OUTSIDE}


def test_nothing_is_left_open(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "a", INSIDE) / "m.onnx"
    added(path)
    before = list(Path("/proc/self/fd").iterdir())
    for _ in range(3):
        added(path)
        (path.parent / "w.data").rename(path.parent / "x")
        with pytest.raises(ArtifactError):
            added(path)
        (path.parent / "x").rename(path.parent / "w.data")
    assert len(list(Path("/proc/self/fd").iterdir())) == len(before)


PEAK = """
import sys
from pathlib import Path
from causal_onnx.runtime import load
from causal_onnx.runtime.session.ort import import_onnxruntime
import_onnxruntime()
load(sys.argv[1], trusted=sys.argv[2] == "trusted", threads=1)
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""


def peak_kib(path: Path, how: str) -> int:
    """The most memory that a fresh process has while it loads a model."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_weights_beside_the_model_are_not_copied(tmp_path: Path) -> None:
    """32 MiB of them; held files may cost 8 MiB more than onnxruntime's own reading."""
    size = 8 << 20
    (tmp_path / "w.data").write_bytes(bytes(4 * size))
    path = tmp_path / "m.onnx"
    path.write_bytes(
        adder(
            external(name="unused", size=size),
            field(1, 4) + field(2, 1) + field(8, "w") + field(9, bytes(16)),
        )
    )
    assert peak_kib(path, "judged") < peak_kib(path, "trusted") + (8 << 10)


def test_a_system_without_descriptors_of_folders_opens_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "a", INSIDE)
    for name, value_there in (("_has_descriptors", lambda: False), ("_HOLDS_FOLDERS", False)):
        monkeypatch.setattr(held_module, name, value_there)
    assert added(folder / "m.onnx") == INSIDE
    (folder / "w.data").rename(folder / "elsewhere")
    (folder / "w.data").symlink_to(folder / "elsewhere")
    with pytest.raises(UnsafeFileError, match="which is a symbolic link"):
        load(folder / "m.onnx")


def test_the_runtime_is_imported_where_there_is_no_fcntl() -> None:
    code = "import sys; sys.modules['fcntl'] = None; import causal_onnx.runtime as r; r.load"
    subprocess.run([sys.executable, "-c", code], check=True)
