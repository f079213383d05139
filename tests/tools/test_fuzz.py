from __future__ import annotations

import collections
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from tools.fuzz import attempt
from tools.fuzz.__main__ import table
from tools.fuzz.child import Child
from tools.fuzz.layout import Layout, length_delimited
from tools.fuzz.worker import Fuzzer

from causal_onnx.runtime import ArtifactError
from tests.runtime.artifacts import FIXTURES, fixture


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("external.onnx", "external.data", "one_head.onnx", "small.onnx"):
        shutil.copy(FIXTURES / name, folder)
    return folder


def test_a_seed_makes_the_same_file_again(corpus: Path, tmp_path: Path) -> None:
    first, second = (Fuzzer(corpus, tmp_path / name) for name in "ab")
    made = [first.make(seed) for seed in range(30)]
    assert made == [second.make(seed) for seed in range(30)]
    assert len({content for _, content, _, _ in made}) > 25


def test_a_read_of_the_secret_by_its_hard_link_is_noticed(corpus: Path, tmp_path: Path) -> None:
    fuzzer = Fuzzer(corpus, tmp_path / "a")
    assert fuzzer.watch.taken() == 0
    assert fuzzer.read_the_secret() > 0
    assert fuzzer.watch.taken() == 0


def test_without_the_scan_the_secret_would_be_read(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fuzzer finds what the scan is there for."""
    fuzzer = Fuzzer(corpus, tmp_path / "a")
    content = fixture("external").read_bytes()
    layout = Layout.of(content)
    (place,) = (
        p for p in layout.places["location", "value"] if b"data" in content[p.payload : p.end]
    )
    hostile = layout.replace(content, place, length_delimited(place.number, b"hard.data"))
    monkeypatch.setattr(fuzzer, "make", lambda seed: ("external", hostile, "outside", "model"))
    assert fuzzer.attempt(0)["outcome"] == "scan"
    assert fuzzer.attempt(0)["read_outside"] == 0
    monkeypatch.setattr(fuzzer, "_trusted", True)
    assert fuzzer.attempt(0)["read_outside"] > 0


def test_an_exception_that_is_not_ours_is_unclear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(shutil.copy(fixture("one_head"), tmp_path))
    assert attempt.attempt_model(path)[0] == "ran"

    def fail(*args: object, **kwargs: object) -> None:
        raise KeyError("somewhere inside")

    monkeypatch.setattr(attempt, "load", fail)
    assert attempt.attempt_model(path)[0] == "unclear"

    def refuse(*args: object, **kwargs: object) -> None:
        raise ArtifactError("refused")

    monkeypatch.setattr(attempt, "load", refuse)
    assert attempt.attempt_model(path) == ("contract", "refused")


@pytest.mark.parametrize(
    ("seed", "outcome", "said"),
    [(1, "crash", "SIGFPE"), (2, "hang", "no answer after 1 s"), (3, "hang", "SIGXCPU")],
)
def test_the_end_of_a_worker_is_a_result(
    seed: int, outcome: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.fuzz.child.START_S", 30.0)
    limit_s = 1 if seed == 2 else 30
    child = Child(tmp_path, tmp_path, limit_s=limit_s, module="tests.tools.fuzz_worker")
    try:
        assert child.ask(0)["outcome"] == "ran"
        got = child.ask(seed)
    finally:
        child.close()
    assert got["outcome"] == outcome
    assert got["said"].startswith(said)
    assert not child.is_alive


def test_replacing_a_field_puts_the_lengths_around_it_right() -> None:
    import onnx

    content = fixture("one_head").read_bytes()
    layout = Layout.of(content)
    place = layout.choose(random.Random(0), lambda x: x.field == ("node", "op_type"))
    assert place is not None
    changed = layout.replace(content, place, length_delimited(4, b"AnOperatorOfALongName" * 20))
    names = [node.op_type for node in onnx.load_from_string(changed).graph.node]
    assert names.count("AnOperatorOfALongName" * 20) == 1
    assert layout.replace(content, place, content[place.start : place.end]) == content


def test_the_figures_are_in_the_table() -> None:
    counts = collections.Counter({"scan": 7, "ran": 3, "crash": 1})
    lines = table(counts, seconds=2.0).splitlines()
    assert lines[0].split() == ["mutated", "files", "11", "6", "a", "second"]
    assert [int(line.split()[1]) for line in lines if line.startswith(("scan", "crash"))] == [7, 1]


def test_arrays_of_streams_are_changed_with_the_hash_put_right(tmp_path: Path) -> None:
    from tools.fuzz.streams import change_stream

    from tests.runtime.scan.test_properties import cached_model

    model = cached_model()
    stream = model.stream(batch=2)
    stream.run(np.ones((2, 3, 4), np.float32))
    stream.save(tmp_path / "s")
    content = (tmp_path / "s").read_bytes()
    said = []
    for seed in range(40):
        (tmp_path / "s").write_bytes(change_stream(content, random.Random(seed))[0])
        try:
            model.restore(tmp_path / "s")
            said.append("restored")
        except ArtifactError as error:
            said.append(str(error))
    assert "restored" in said
    assert any("expected float32" in text for text in said)
    assert any("hash" in text for text in said)
