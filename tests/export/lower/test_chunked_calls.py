"""Cached attention as one operator for all calls: rows, idle rows, room in buffers and none."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from causal_onnx.export import attest, export
from causal_onnx.export.errors import RewriteError
from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.lower import grouped
from causal_onnx.models import AttentionConfig, DecoderConfig, DecoderLM
from causal_onnx.runtime import ArtifactError, Model, load
from causal_onnx.runtime.session.ort import import_onnxruntime

Array = npt.NDArray[np.float32]

LIMIT = 32
NEW, LAST = 16, 5
"""Where the operator takes each row's new positions, and its last position."""


@cache
def decoder() -> DecoderLM:
    """The same for all files, so that it is captured once."""
    attention = AttentionConfig(
        embed_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, max_seq_len=LIMIT, rotary="half"
    )
    config = DecoderConfig(vocab_size=61, num_layers=2, attention=attention, mlp_dim=48, norm="rms")
    return DecoderLM(config, seed=0)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chunked") / "m.onnx"
    export(decoder(), path, cache=True, target="ort-1.32")
    return path


@pytest.fixture(scope="module")
def model(file: Path) -> Model:
    return load(file, threads=1)


@pytest.fixture(scope="module")
def branching(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The same module with the operator in a branch, for the calls that it takes by itself."""
    path = tmp_path_factory.mktemp("branching") / "m.onnx"
    export(decoder(), path, cache=True)
    return load(path, threads=1)


def tokens(rows: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 61, (rows, count))


def fed(model: Model, ids: npt.NDArray[np.int64], widths: Sequence[int]) -> Array:
    """The logits of all rows, read together in chunks of these widths."""
    stream, start, found = model.stream(batch=len(ids), capacity=LIMIT), 0, []
    for width in widths:
        found.append(stream(ids[:, start : start + width]))
        start += width
    return np.concatenate(found, 1)


@pytest.mark.parametrize("widths", [(24,), (17, 1, 1, 1, 4), (2, 3, 8, 11)])
def test_prompts_steps_and_chunks_have_the_bits_of_the_branching_form(
    model: Model, branching: Model, widths: tuple[int, ...]
) -> None:
    ids = tokens(1, sum(widths))
    np.testing.assert_array_equal(fed(model, ids, widths), fed(branching, ids, widths))


@pytest.mark.parametrize("widths", [(17, 1, 1, 5), (2, 3, 8, 11)])
def test_the_rows_of_a_batch_do_not_matter_to_each_other(
    model: Model, widths: tuple[int, ...]
) -> None:
    ids = tokens(4, sum(widths))
    together = fed(model, ids, widths)
    for row in range(4):
        np.testing.assert_array_equal(together[[row]], fed(model, ids[[row]], widths))


def test_rows_of_different_lengths_have_the_bits_of_each_alone(model: Model) -> None:
    ids, plan = tokens(3, LIMIT), ([7, 3, 5], [1, 1, 1], [4, 0, 2], [1, 1, 1], [3, 6, 2])
    stream, read = model.stream(batch=3, capacity=LIMIT), np.zeros(3, np.int64)
    alone = [model.stream(capacity=LIMIT) for _ in range(3)]
    for new in plan:
        chunk = np.stack([ids[row, n : n + max(new)] for row, n in enumerate(read)])
        got = stream(chunk, lengths=new)
        assert np.isfinite(got).all()
        for row, count in enumerate(new):
            if count:
                expected = alone[row](chunk[[row], :count])
                np.testing.assert_array_equal(got[row, :count], expected[0])
        read += new


def test_an_idle_row_keeps_its_cache_and_goes_on_as_if_it_had_not_waited(model: Model) -> None:
    ids = tokens(2, 12)
    waiting, steady = (model.stream(batch=2, capacity=LIMIT) for _ in range(2))
    for stream in (waiting, steady):
        stream(ids[:, :6])
    for _ in range(3):
        waiting(ids[:, 6:7], lengths=[1, 0])
    assert waiting.lengths == (9, 6)
    got = waiting(ids[:, 6:7], lengths=[0, 1])
    np.testing.assert_array_equal(got[1], steady(ids[:, 6:7])[1])


def test_a_row_may_wait_before_it_has_read_anything(model: Model) -> None:
    ids = tokens(2, 9)
    stream = model.stream(batch=2, capacity=LIMIT)
    stream(ids[:, :4], lengths=[4, 0])
    stream(ids[:, 4:5], lengths=[1, 0])
    got = stream(ids[:, 5:], lengths=[0, 4])
    np.testing.assert_array_equal(got[1], fed(model, ids[1:, 5:], (4,))[0])


def test_a_fork_goes_on_with_the_same_bits(model: Model) -> None:
    ids = tokens(2, 14)
    stream = model.stream(batch=2, capacity=LIMIT)
    stream(ids[:, :9], lengths=[9, 4])
    fork = stream.fork()
    np.testing.assert_array_equal(fork(ids[:, 9:]), stream(ids[:, 9:]))


def test_a_past_without_room_gives_a_present_that_is_longer(file: Path, model: Model) -> None:
    session = import_onnxruntime().InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs() if x.name.startswith("past")]
    ids, past = tokens(2, 12), [np.zeros((2, 2, 0, 16), np.float32)] * len(names)
    found, start = [], 0
    for width in (5, 1, 6):
        mask = np.ones((2, start + width), np.int64)
        feeds = {"input_ids": ids[:, start : start + width], "attention_mask": mask}
        logits, *past = session.run(None, feeds | dict(zip(names, past, strict=True)))
        start += width
        assert {x.shape for x in past} == {(2, 2, start, 16)}
        found.append(logits)
    np.testing.assert_allclose(
        np.concatenate(found, 1), fed(model, ids, (5, 1, 6)), rtol=0, atol=1e-6
    )


def test_the_file_has_no_branch_but_that_of_the_last_position(file: Path) -> None:
    kinds = [node.op_type for node in onnx.load(file).graph.node]
    assert kinds.count("GroupQueryAttention") == 2
    assert kinds.count("If") == 1


def test_an_older_onnxruntime_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_onnxruntime(), "__version__", "1.31.1")
    message = (
        r"needs onnxruntime 1\.32 or newer, and this is 1\.31\.1: .*"
        r"pip install -U 'onnxruntime>=1\.32'; or export with target='ort', which older versions"
    )
    with pytest.raises(ArtifactError, match=message):
        load(file)


def changed(file: Path, place: int, by: int) -> onnx.ModelProto:
    """The file with `by` added to an input of the first operator."""
    proto = onnx.load(file)
    index = next(
        i for i, node in enumerate(proto.graph.node) if node.op_type == "GroupQueryAttention"
    )
    node = proto.graph.node[index]
    proto.graph.initializer.append(numpy_helper.from_array(np.array(by, np.int32), "by"))
    proto.graph.node.insert(index, helper.make_node("Add", [node.input[place], "by"], ["moved"]))
    proto.graph.node[index + 1].input[place] = "moved"
    return proto


def test_it_is_causal_for_every_length(file: Path) -> None:
    found = attest(file)
    assert found.verdict == "causal", found.reason
    assert found.every_length, found.open_step


@pytest.mark.parametrize(
    ("place", "by", "message"),
    [
        (NEW, 1, "query_seqlens of .* for 1 queries"),
        (NEW, -1, "its outputs beyond query_seqlens .* are unspecified"),
        (LAST, 1, "seqlens_k [+] 1 of .* in a total length of 1"),
        (LAST, -1, "its mask lets a query see later keys"),
    ],
)
def test_a_count_off_by_one_is_not_certified_and_the_node_is_named(
    file: Path, place: int, by: int, message: str
) -> None:
    found = attest(changed(file, place, by))
    assert found.verdict != "causal"
    assert found.offence is not None
    assert found.offence.op_type == "GroupQueryAttention"
    assert re.search(message, found.reason)


def swapped(write: Writer, value: ir.Value) -> ir.Value:
    """With the rows in the opposite order."""
    last, least = write.ints(-1), write.ints(-(1 << 62))
    return write("Slice", value, last, least, write.ints(0), last)


@pytest.mark.parametrize("name", ["last", "past"])
def test_rows_that_are_swapped_are_found_by_the_export(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = grouped._operator

    def broken(write, core, operands, last, total, *, new=None):  # type: ignore[no-untyped-def]
        if name == "last":
            last = swapped(write, last)
        else:
            core.node.replace_input_with(4, swapped(write, core.node.inputs[4]))
        return real(write, core, operands, last, total, new=new)

    monkeypatch.setattr(grouped, "_operator", broken)
    with pytest.raises(RewriteError, match=r"target='ort-1\.32' disagrees with DecoderLM"):
        export(decoder(), tmp_path / "m.onnx", cache=True, target="ort-1.32")
