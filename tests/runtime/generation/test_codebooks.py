"""Where codebooks are found in a contract, and where they are not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from causal_onnx.runtime import Contract, TensorSpec
from causal_onnx.runtime.contract import CachePair
from causal_onnx.runtime.generation.codebooks import find_codebooks, has_codebooks

PAST = TensorSpec(name="past", dtype="float32", axes=("batch", "past_seq", 2))
PRESENT = TensorSpec(name="present", dtype="float32", axes=("batch", "total_seq", 2))
FIRST, LAST = ("batch", 3, "seq"), ("batch", "seq", 3)


def ids(name: str, *axes: str | int, vocab: int | None = 6) -> TensorSpec:
    return TensorSpec(name=name, dtype="int64", axes=axes, vocab_size=vocab)


def scores(name: str, *axes: str | int) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", axes=axes)


def contract(inputs: list[TensorSpec], outputs: list[TensorSpec]) -> Contract:
    return Contract(
        inputs=(*inputs, PAST),
        outputs=(*outputs, PRESENT),
        cache=(CachePair(past="past", present="present"),),
    )


EACH = [scores(f"y{index}", "batch", "seq", 5 + index) for index in range(3)]
ROWS = [ids(f"x{index}", "batch", "seq", vocab=9) for index in range(3)]


@pytest.mark.parametrize(
    "outputs",
    [
        [scores("y", "batch", 3, "seq", 5)],
        [scores("y", "batch", "seq", 3, 5)],
        [scores("y", "seq", 3, "batch", 5)],
        [scores("hidden", "batch", "seq", 8), scores("y", "batch", 3, "seq", 5)],
        [scores("other", "batch", 3, "seq", 4), scores("logits", "batch", 3, "seq", 5)],
        EACH,
    ],
)
@pytest.mark.parametrize("inputs", [[ids("x", *FIRST)], [ids("x", *LAST)], ROWS])
def test_layouts_are_read_from_the_axes(
    inputs: list[TensorSpec], outputs: list[TensorSpec]
) -> None:
    books = find_codebooks(contract(inputs, outputs))
    assert (books.count, books.inputs) == (3, tuple(inputs))
    assert books.vocab_sizes == ((5, 6, 7) if outputs is EACH else (5, 5, 5))
    found = books.arrays(np.arange(24).reshape(2, 4, 3))
    sizes = {"batch": 2, "seq": 4}
    assert [array.shape for array in found] == [spec.shape(sizes) for spec in inputs]


def test_arrays_and_logits_keep_their_places() -> None:
    books = find_codebooks(
        contract([ids("x", "seq", 3, "batch")], [scores("y", "seq", 3, "batch", 5)])
    )
    given = np.arange(24).reshape(2, 4, 3)
    (array,) = books.arrays(given)
    results = {"y": np.stack([array] * 5, axis=-1).astype(np.float32)}
    np.testing.assert_array_equal(books.logits(results)[..., 4], given)


def test_what_a_smaller_codebook_lacks_is_never_likely() -> None:
    books = find_codebooks(contract(ROWS, EACH))
    results = {spec.name: np.ones(spec.shape({"batch": 1, "seq": 2})) for spec in EACH}
    found = books.logits(results)
    assert np.isfinite(found[0, 1]).sum(axis=-1).tolist() == [5, 6, 7]


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([ids("x", "batch", "seq")], EACH[:1], "generating codes needs a model with several"),
        ([ids("x", *FIRST)], EACH[:2], "generating codes needs a model with several"),
        ([ids("x", *FIRST)], [scores("y", "batch", 4, "seq", 5)], "generating codes needs"),
        ([ids("x", *FIRST)], [scores("y", "batch", 5, "seq", 3)], "generating codes needs"),
        ([ids("x", *FIRST)], [scores(n, "batch", 3, "seq", 5) for n in "yz"], "generating codes"),
        ([scores("x", *FIRST)], [scores("y", "batch", 3, "seq", 5)], "generating codes needs"),
        ([ids("x", "batch", 3, 2, "seq")], EACH, "generating codes needs"),
        (
            [ids("input_ids", "batch", "seq"), ids("segments", "batch", "seq", vocab=2)],
            [scores("logits", "batch", "seq", 6), scores("hidden", "batch", "seq", 32)],
            r"codebook 1 would take the ids of segments: .* from 32 logits, more than it has ids",
        ),
    ],
    ids=["one", "too few", "count", "vocab first", "two", "floats", "axes", "segments"],
)
def test_what_is_no_codebook_is_refused(
    inputs: list[TensorSpec], outputs: list[TensorSpec], message: str
) -> None:
    taken = contract(inputs, outputs)
    with pytest.raises(ValueError, match=message):
        find_codebooks(taken)
    assert not has_codebooks(taken)


def test_a_model_without_a_cache_is_refused() -> None:
    taken = contract([ids("x", *FIRST)], [scores("y", "batch", 3, "seq", 5)])
    bare = replace(taken, inputs=taken.inputs[:1], outputs=taken.outputs[:1], cache=())
    with pytest.raises(ValueError, match=r"\(batch, 3, seq, 5\), without a cache"):
        find_codebooks(bare)
