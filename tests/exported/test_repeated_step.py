"""Steps that are like the last one keep what is bound, and are as right as any other call."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from causal_onnx.models import AttentionConfig, DecoderConfig, DecoderLM
from causal_onnx.runtime import RunError, load
from causal_onnx.runtime.session.runner import Runner
from causal_onnx.runtime.stream.repeated_step import RepeatedStep
from tests.export.quick import quick_export

LONGEST = 90
VOCAB = 31


class Subject:
    def __init__(self, decoder: DecoderLM, path: Path) -> None:
        self.path, self.decoder = path, decoder
        self.model = load(path, threads=1)
        self.ids = np.random.default_rng(0).integers(0, VOCAB, (3, LONGEST))
        with torch.no_grad():
            self.logits = decoder(torch.from_numpy(self.ids)).numpy()

    def expect(self, row: int, position: int, got: np.ndarray) -> None:
        expected = self.logits[row, position]
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    attention = AttentionConfig(
        embed_dim=32, num_heads=4, num_kv_heads=2, max_seq_len=LONGEST, rotary="half"
    )
    config = DecoderConfig(vocab_size=VOCAB, num_layers=2, attention=attention, mlp_dim=24)
    decoder = DecoderLM(config, seed=0).eval()
    path = tmp_path_factory.mktemp("repeated") / "m.onnx"
    quick_export(decoder, path, cache=True)
    return Subject(decoder, path)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the steps that were taken the short way."""
    taken: list[int] = []
    run = RepeatedStep.run

    def counted(self: RepeatedStep, inputs: tuple[np.ndarray, ...]) -> dict[str, np.ndarray]:
        taken.append(1)
        return run(self, inputs)

    monkeypatch.setattr(RepeatedStep, "run", counted)
    return taken


def test_to_the_longest_sequence_while_buffers_grow(subject: Subject, steps: list[int]) -> None:
    stream = subject.model.stream()
    stream(subject.ids[:1, :5])
    kept = [stream(subject.ids[:1, n : n + 1]) for n in range(5, LONGEST)]
    for position, got in enumerate(kept, 5):
        subject.expect(0, position, got[0, 0])
    assert stream.lengths == (LONGEST,)
    assert len(steps) == LONGEST - 5 - 2  # all but the first, and the one behind 64 positions
    with pytest.raises(ValueError, match="1 positions after 90 make 91; the model accepts at most"):
        stream(subject.ids[:1, :1])


@pytest.mark.parametrize("starts", [[4, 4, 4], [7, 2, 5]])
def test_rows_of_one_length_and_of_several(
    subject: Subject, steps: list[int], starts: list[int]
) -> None:
    stream = subject.model.stream(batch=3)
    stream(subject.ids[:, : max(starts)], lengths=starts)
    for step in range(20):
        places = [start + step for start in starts]
        got = stream(subject.ids[[0, 1, 2], places][:, None])
        for row, position in enumerate(places):
            subject.expect(row, position, got[row, 0])
    assert len(steps) == 19


def test_other_calls_in_between(subject: Subject, steps: list[int]) -> None:
    stream, ids = subject.model.stream(), subject.ids
    for start, stop in ((0, 3), (3, 4), (4, 5), (5, 9), (9, 10), (10, 11), (11, 12)):
        got = stream(ids[:1, start:stop], last_only=stop == 11)
        subject.expect(0, stop - 1, got[0, -1])
    stream.rewind(6)
    for position in (6, 7):
        subject.expect(0, position, stream(ids[:1, position : position + 1])[0, 0])
    fork = stream.fork()
    for position in (8, 9):
        token = ids[:1, position : position + 1]
        subject.expect(0, position, stream(input_ids=token)[0, 0])
        subject.expect(0, position, fork(token.astype(np.int32))[0, 0])  # widened
    subject.expect(0, 10, stream(ids[:1, 10:11], lengths=[1])[0, 0])
    subject.expect(0, 11, stream(np.asfortranarray(ids[:1, 11:12]))[0, 0])
    assert len(steps) == 5


def test_an_output_that_somebody_has_is_left_alone(subject: Subject) -> None:
    stream = subject.model.stream()
    stream(subject.ids[:1, :2])
    kept = []
    for position in range(2, 30):
        got = stream(subject.ids[:1, position : position + 1])
        if position % 3 == 0:
            kept.append((position, got))
        elif position % 5 == 0:
            kept.append((position, got[:, 0][None]))  # a view
        elif position % 7 == 0:
            kept.append((position, torch.from_numpy(got)))
        elif position % 11 == 0:
            kept.append((position, np.frombuffer(memoryview(got), np.float32).reshape(got.shape)))
        del got
    for position, got in kept:
        subject.expect(0, position, np.asarray(got)[0, 0])


def test_outputs_that_nobody_has_are_used_again(subject: Subject) -> None:
    stream = subject.model.stream()
    stream(subject.ids[:1, :2])
    places = set()
    for position in range(2, 30):
        got = stream(subject.ids[:1, position : position + 1])  # the last one is still held here
        places.add(got.ctypes.data)
    assert len(places) <= 4


def test_what_does_not_fit_is_refused_as_ever(subject: Subject, steps: list[int]) -> None:
    stream = subject.model.stream(batch=2, capacity=12)
    stream(subject.ids[:2, :8])
    stream(subject.ids[:2, 8:9])
    stream(subject.ids[:2, 9:10])
    for wrong, message in (
        (np.array([[3], [VOCAB]]), r"holds the id 31 at \[1, 0\]"),
        (np.array([[-1], [3]]), r"holds the id -1 at \[0, 0\]"),
        (np.array([[3]]), "has a batch of 1, but the stream was started with batch=2"),
        (np.array([[3.0], [4.0]]), "has dtype float64, expected int64"),
        (np.array([3, 4]), "rank 1"),
    ):
        with pytest.raises(ValueError, match=message):
            stream(wrong)
        assert stream.lengths == (10, 10)
    with pytest.raises(ValueError, match="got 2 positional inputs, expected at most 1"):
        stream(subject.ids[:2, 10:11], subject.ids[:2, 10:11])
    got = stream(subject.ids[:2, 10:11])
    subject.expect(1, 10, got[1, 0])
    assert len(steps) == 1
    stream(subject.ids[:2, 11:12])
    with pytest.raises(ValueError, match="the stream has room for at most 12"):
        stream(subject.ids[:2, 12:13])


def test_an_error_of_the_runtime_leaves_the_stream_as_it_was(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = subject.model.stream()
    stream(subject.ids[:1, :4])
    stream(subject.ids[:1, 4:5])
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "run_bound", _fail)
        with pytest.raises(RunError, match="broken"):
            stream(subject.ids[:1, 5:6])
    assert stream.lengths == (5,)
    subject.expect(0, 5, stream(subject.ids[:1, 5:6])[0, 0])


def _fail(*_: object) -> None:
    raise RunError("broken")


def test_values_are_checked_where_that_was_asked_for(subject: Subject, steps: list[int]) -> None:
    stream = load(subject.path, threads=1, check_finite=True).stream()
    for position in range(4):
        subject.expect(0, position, stream(subject.ids[:1, position : position + 1])[0, 0])
    assert not steps


def test_a_range_is_checked_in_each_step(subject: Subject, steps: list[int]) -> None:
    contract = subject.model.contract
    ids = replace(contract.inputs[0], vocab_size=None, kind="values", value_range=(0, VOCAB))
    model = load(
        subject.path, threads=1, contract=replace(contract, inputs=(ids, *contract.inputs[1:]))
    )
    stream = model.stream()
    for position in range(4):
        stream(subject.ids[:1, position : position + 1])
    with pytest.raises(ValueError, match=f"expected values in .0, {VOCAB}."):
        stream(np.array([[VOCAB]]))
    assert not steps
