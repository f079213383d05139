from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from causal_onnx.runtime.artifact import drafts
from causal_onnx.runtime.artifact.drafts import check_target, draft_folder, exchange, write_whole

LONG = "m" * 300


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def killed(action: Callable[[], object]) -> None:
    """Let a child begin and kill it: `action` ends in a call of `die`."""
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dies_in_folder(target: Path) -> None:
    with draft_folder(target) as folder:
        (folder / "half").touch()
        die()


@pytest.fixture(params=["nameless", "named"])
def target(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place to write to, on a system that has files without names, or has none."""
    if request.param == "named":
        monkeypatch.delattr(os, "O_TMPFILE")
    return tmp_path / "m.onnx"


def test_what_a_killed_process_left_goes_with_the_next_write(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(lambda: dies_in_folder(target))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", die)
        killed(lambda: write_whole(target, b"half"))
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(Path, "replace", die)
        killed(lambda: write_whole(target, b"half"))
    assert len(names(target.parent)) == 1  # each of them has removed what was there
    write_whole(target, b"whole")
    assert names(target.parent) == ["m.onnx"]
    assert target.read_bytes() == b"whole"


def test_the_draft_of_another_that_is_writing_stays(target: Path) -> None:
    with draft_folder(target) as mine:
        write_whole(target, b"x")
        with draft_folder(target) as other:
            assert mine.is_dir()
            assert other != mine
    assert names(target.parent) == ["m.onnx"]


def test_files_of_others_stay(target: Path) -> None:
    others = {".m.onnx.part", ".m.onnx.0123456789abcdef.part.x", ".n.onnx.0123456789abcdef.part"}
    for name in others:
        (target.parent / name).touch()
    write_whole(target, b"x")
    assert set(names(target.parent)) == {"m.onnx", *others}


def test_a_draft_that_is_taken_for_abandoned_before_it_is_held_is_made_anew(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, swept = drafts._try_lock, []

    def sweep_first(descriptor: int) -> None:
        if not swept:
            swept.extend(target.parent.glob(".*.part"))
            for item in swept:
                item.rmdir() if item.is_dir() else item.unlink()
        lock(descriptor)

    monkeypatch.setattr(drafts, "_try_lock", sweep_first)
    with draft_folder(target) as folder:
        assert folder.is_dir()
    write_whole(target, b"x")
    assert len(swept) == 1
    assert names(target.parent) == ["m.onnx"]


def test_each_reader_sees_one_whole_file(target: Path) -> None:
    contents = [bytes([n]) * 50_000 for n in range(3)]
    threads = [
        threading.Thread(target=lambda c=content: [write_whole(target, c) for _ in range(20)])
        for content in contents
    ]
    write_whole(target, contents[0])
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert target.read_bytes() in contents
    assert names(target.parent) == ["m.onnx"]


def test_where_there_is_no_room_the_old_file_stays(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, content: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(target, b"old")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(target, b"new")
    assert names(target.parent) == ["m.onnx"]
    assert target.read_bytes() == b"old"


def test_a_name_as_long_as_any_has_a_draft(tmp_path: Path) -> None:
    write_whole(tmp_path / LONG[:255], b"x")
    assert names(tmp_path) == [LONG[:255]]


@pytest.mark.parametrize(
    "place", [f"{LONG}.onnx", "file/m.onnx", "file/folder/m.onnx", f"{LONG}/m.onnx"]
)
def test_a_place_that_takes_no_file_is_found(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*; choose another place"):
        check_target(tmp_path / place)
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_is_not_writable_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match=rf"cannot write .*m\.onnx: {os.strerror(code)}"):
        check_target(tmp_path / "m.onnx")


def test_a_place_that_takes_a_file_is_left_as_it_was(tmp_path: Path) -> None:
    check_target(tmp_path / "new" / "newer" / "m.onnx")
    assert names(tmp_path) == []


def test_two_folders_change_places_in_one_step(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"was {name}").touch()
    if not exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this system or file system has no exchange")
    assert names(tmp_path / "a") == ["was b"]
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "gone")
