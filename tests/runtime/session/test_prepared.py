"""Sessions that are kept as onnxruntime prepared them: for what they are used, and for what not."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from causal_onnx.runtime import ArtifactError, Limits, Model, UnsafeFileError, load
from causal_onnx.runtime.artifact.held import Held
from causal_onnx.runtime.request.example import make_request
from causal_onnx.runtime.session import prepared
from causal_onnx.runtime.session.prepared import PreparedFolder
from tests.runtime.artifacts import fixture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sessions are kept on Linux alone")


def file(folder: Path, name: str = "language") -> Path:
    """A copy of a fixture, with the weights beside it if it has some."""
    folder.mkdir(exist_ok=True)
    if name == "external":
        shutil.copy(fixture(name).with_suffix(".data"), folder)
    return Path(shutil.copy(fixture(name), folder / "model.onnx"))


def entries(shelf: Path) -> list[Path]:
    return sorted(item for item in shelf.iterdir() if not item.name.startswith("."))


def forbid_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no session be made of a model's own file."""
    monkeypatch.setattr(Held, "lent_to", lambda *_: pytest.fail("a session of the file itself"))


def outputs(model: Model) -> bytes:
    request = make_request(model.contract, seq=5)
    return b"".join(value.tobytes() for value in model.run(**request).values())


@pytest.mark.parametrize("name", ["language", "cached", "external", "one_head", "decoder"])
def test_a_kept_session_is_used_and_computes_the_same_bits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, shelf = file(tmp_path / "model", name), tmp_path / "shelf"
    expected = outputs(load(path))
    assert outputs(load(path, prepared=shelf)) == expected
    forbid_the_file(monkeypatch)
    assert outputs(load(path, prepared=shelf)) == expected


def test_weights_are_mapped_from_the_kept_file(tmp_path: Path) -> None:
    model = load(fixture("language"), prepared=tmp_path)
    (entry,) = entries(tmp_path)
    maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    assert str(entry / "weights.data") in maps
    assert outputs(model)


def test_a_kept_session_decodes_as_the_file_does(tmp_path: Path) -> None:
    expected = load(fixture("language")).generate([1, 2, 3], max_new_tokens=8).ids
    for _ in range(2):
        model = load(fixture("language"), prepared=tmp_path)
        assert model.generate([1, 2, 3], max_new_tokens=8).ids == expected


def test_a_file_that_changed_is_prepared_anew_and_the_old_one_goes(tmp_path: Path) -> None:
    path, shelf = file(tmp_path / "model"), tmp_path / "shelf"
    load(path, prepared=shelf)
    before = entries(shelf)
    shutil.copy(fixture("one_head"), path)
    assert outputs(load(path, prepared=shelf)) == outputs(load(fixture("one_head")))
    assert len(entries(shelf)) == 1
    assert entries(shelf) != before


def test_weights_beside_the_model_that_changed_are_prepared_anew(tmp_path: Path) -> None:
    path, shelf = file(tmp_path / "model", "external"), tmp_path / "shelf"
    before = outputs(load(path, prepared=shelf))
    data = path.with_name("external.data")
    data.write_bytes(bytes(data.stat().st_size))
    assert outputs(load(path, prepared=shelf)) == outputs(load(path)) != before


@pytest.mark.parametrize("name", ["_onnxruntime", "_processor"])
def test_another_onnxruntime_or_processor_has_a_session_of_its_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(fixture("language"), prepared=tmp_path)
    other: Any = {"version": "0"} if name == "_onnxruntime" else ("flags: none",)
    monkeypatch.setattr(prepared, name, lambda: other)
    load(fixture("language"), prepared=tmp_path)
    assert len(entries(tmp_path)) == 2


def test_settings_that_change_numbers_have_sessions_of_their_own(tmp_path: Path) -> None:
    for flush in (True, False, True):
        load(fixture("language"), prepared=tmp_path, flush_denormals=flush, threads=1 + flush)
    assert len(entries(tmp_path)) == 2


def written_to(entry: Path) -> None:
    """One bit of the weights, with the time of the last change as before."""
    weights = entry / "weights.data"
    times = weights.stat()
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    with weights.open("r+b") as stream:
        stream.write(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))


def damaged(entry: Path) -> None:
    (entry / "record.json").write_text("{")


def of_another_format(entry: Path) -> None:
    record = entry / "record.json"
    record.write_text(record.read_text().replace('"format": 1', '"format": 2'))


def copied(entry: Path) -> None:
    """As another program restores it."""
    content = (entry / "weights.data").read_bytes()
    (entry / "weights.data").unlink()
    (entry / "weights.data").write_bytes(content)


def linked(entry: Path) -> None:
    entry.rename(entry.parent / ".elsewhere")
    entry.symlink_to(entry.parent / ".elsewhere")


def open_to_others(entry: Path) -> None:
    entry.chmod(0o777)


def without_a_session(entry: Path) -> None:
    (entry / "session.onnx").unlink()


@pytest.mark.parametrize(
    "change",
    [
        written_to,
        damaged,
        of_another_format,
        copied,
        linked,
        open_to_others,
        without_a_session,
        shutil.rmtree,
    ],
)
def test_what_is_not_as_it_was_kept_is_not_used_but_made_anew(
    change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = outputs(load(fixture("language"), prepared=tmp_path))
    change(entries(tmp_path)[0])
    with monkeypatch.context() as inner:
        forbid_the_file(inner)
        with pytest.raises(pytest.fail.Exception):
            load(fixture("language"), prepared=tmp_path)
    assert outputs(load(fixture("language"), prepared=tmp_path)) == expected
    forbid_the_file(monkeypatch)
    assert outputs(load(fixture("language"), prepared=tmp_path)) == expected


def test_a_kept_session_that_is_written_to_while_it_is_read_is_refused(tmp_path: Path) -> None:
    load(fixture("language"), prepared=tmp_path)
    (entry,) = entries(tmp_path)
    held = Held(fixture("language"), max_bytes=1 << 30, copied=False)
    settings = {"session.set_denormal_as_zero": "1"}
    recipe = prepared.Recipe.of(fixture("language"), held.identities, settings)
    session = PreparedFolder(tmp_path).find(recipe, "language.onnx")
    assert session is not None
    options = type("Options", (), {})()
    with held, session, pytest.raises(ArtifactError, match="was written to, or is gone"):  # noqa: SIM117
        with session.lent_to(options):
            written_to(entry)


def test_a_file_that_changes_while_its_kept_session_is_loaded_is_refused(tmp_path: Path) -> None:
    path = file(tmp_path)
    with Held(path, max_bytes=1 << 30, copied=False) as held:
        held.check_unchanged()
        path.write_bytes(path.read_bytes())
        with pytest.raises(ArtifactError, match="it changed while it was being loaded"):
            held.check_unchanged()


def test_a_file_with_a_kept_session_is_scanned_by_the_limits_of_each_load(tmp_path: Path) -> None:
    load(fixture("language"), prepared=tmp_path)
    with pytest.raises(UnsafeFileError, match="max_nodes"):
        load(fixture("language"), prepared=tmp_path, limits=Limits(max_nodes=1))


def test_a_session_that_computes_other_bits_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = PreparedFolder.record

    def changed(self: PreparedFolder, draft: Path, *rest: Any) -> Any:
        content = (draft / "weights.data").read_bytes()
        (draft / "weights.data").write_bytes(bytes(len(content)))
        return record(self, draft, *rest)

    monkeypatch.setattr(PreparedFolder, "record", changed)
    with pytest.raises(ArtifactError, match="computes other bits of 'logits'; load it without"):
        load(fixture("language"), prepared=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ValueError, match=r"may be written to by others; .*chmod go-w"):
        load(fixture("language"), prepared=tmp_path)


def test_a_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ValueError, match="belongs to another user"):
        load(fixture("language"), prepared=tmp_path)


def test_a_processor_that_does_not_say_what_it_can_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = tmp_path / "cpuinfo"
    described.write_text("processor : 0\nmodel name : some\n")
    with pytest.raises(ValueError, match=r"which instructions the processor has, and .*cpuinfo"):
        prepared._processor(described)


def test_what_cannot_be_kept_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prepared keeps sessions of the CPU, got device='auto'"):
        load(fixture("language"), prepared=tmp_path, device="auto")
    with pytest.raises(ValueError, match="of a file, got bytes; pass a path"):
        load(fixture("language").read_bytes(), prepared=tmp_path)


@pytest.mark.parametrize("options", [{"isolated_trial": True}, {"trusted": True}])
def test_other_ways_of_loading_use_it_too(tmp_path: Path, options: dict[str, Any]) -> None:
    expected = outputs(load(fixture("language")))
    for _ in range(2):
        assert outputs(load(fixture("language"), prepared=tmp_path, **options)) == expected
    assert len(entries(tmp_path)) == 1


def test_a_pickled_model_and_a_profile_are_of_the_same_file(tmp_path: Path) -> None:
    model = load(fixture("language"), prepared=tmp_path)
    assert outputs(pickle.loads(pickle.dumps(model))) == outputs(model)
    assert model.profile(seq=2, calls=3).nodes
