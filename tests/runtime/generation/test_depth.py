"""Which tensors of two contracts are the hidden state, ids and logits; and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import Contract, DepthDecoder, TensorSpec
from causal_onnx.runtime.generation.depth import check_depth, find_depth_codebooks
from tests.runtime.generation.test_codebooks import FIRST, ROWS, contract, ids, scores

IDS = ids("ids", "batch", "seq", vocab=6)
STATE = scores("hidden", "batch", "seq", 8)
SCORES = scores("logits", "batch", "seq", 5)
MAIN = contract([ids("x", *FIRST)], [SCORES, STATE])


def decoder(inputs: list[TensorSpec], outputs: list[TensorSpec], **settings: Any) -> DepthDecoder:
    return DepthDecoder(model=model_of(contract(inputs, outputs)), **settings)


def model_of(taken: Contract) -> Any:
    return SimpleNamespace(contract=taken)


PLAIN = decoder([IDS, STATE], [SCORES])


@pytest.mark.parametrize("axes", [("batch", "seq", 8), ("batch", 8), ("batch", 1, 8)], ids=str)
@pytest.mark.parametrize("inputs", [[ids("x", *FIRST)], ROWS], ids=["one", "each"])
def test_roles_are_read_from_both_contracts(
    inputs: list[TensorSpec], axes: tuple[str | int, ...]
) -> None:
    depth = decoder([scores("h", *axes), IDS], [scores("y", "batch", "seq", 4)])
    first = scores("logits", "batch", "seq", 6)
    books = find_depth_codebooks(contract(inputs, [STATE, first]), depth)
    assert (books.count, books.state, books.outputs) == (3, STATE, (first,))
    assert (books.ids, books.vocab_sizes) == (IDS, (6, 4, 4))
    alone = find_depth_codebooks(contract(inputs, [STATE]), depth)
    assert (alone.outputs, alone.vocab_sizes) == ((), (4, 4, 4))


def test_of_two_states_the_one_named_as_the_input_is_read() -> None:
    others = [scores("features", "batch", "seq", 8), STATE]
    books = find_depth_codebooks(contract([ids("x", *FIRST)], [*others, SCORES]), PLAIN)
    assert (books.state, books.outputs) == (STATE, (SCORES,))


def test_logits_as_wide_as_the_state_are_no_state() -> None:
    depth = decoder([ids("ids", "batch", "seq"), scores("h", "batch", 6)], [SCORES])
    wide = [scores("logits", "batch", "seq", 6), scores("z", "batch", "seq", 6)]
    books = find_depth_codebooks(contract([ids("x", *FIRST)], wide), depth)
    assert books.state.name == "z"


def test_logits_and_state_travel_together() -> None:
    books = find_depth_codebooks(MAIN, PLAIN)
    given = {"logits": np.ones((2, 3, 5), np.float16), "hidden": np.full((2, 3, 8), 0.1, "f4")}
    found = books.logits(given)
    np.testing.assert_array_equal(found[..., :5], given["logits"])
    np.testing.assert_array_equal(found[..., 5:], given["hidden"])


def with_limit(limit: int, **settings: Any) -> DepthDecoder:
    return DepthDecoder(
        model=model_of(replace(PLAIN.model.contract, max_seq_len=limit)), **settings
    )


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (decoder([IDS], [SCORES]), r"depth must be a model .* nothing else"),
        (decoder([IDS, STATE, scores("z", "batch", 8)], [SCORES]), "depth must be a model"),
        (decoder([IDS, STATE, ids("kind", "batch")], [SCORES]), "depth must be a model"),
        (decoder([ids("ids", "batch", 3, "seq"), STATE], [SCORES]), "depth must be a model"),
        (
            decoder([IDS, STATE], [scores(n, "batch", "seq", 5) for n in "yz"]),
            "its only output of such a shape or under the name 'logits'; this one is ids: int64",
        ),
        (
            decoder([IDS, scores("h", "batch", 7)], [SCORES]),
            r"reads h: float32 \(batch, 7\), .* must be the hidden state \(batch, seq, 7\)",
        ),
        (decoder([IDS, STATE], [SCORES], first_id=6), r"first_id must be an id .* got 6"),
        (
            decoder([IDS, STATE], [scores("y", "batch", "seq", 7)]),
            r"codebook 1 is chosen among 7 logits, and x: .* would read it",
        ),
        (
            decoder([ids("ids", "batch", "seq", vocab=4), STATE], [scores("y", "batch", "seq", 4)]),
            r"codebook 0 is chosen among 5 logits, and ids: .* would read it",
        ),
        (with_limit(1), r"at most 1 positions, .* needs 3; export it with max_seq_len=3 or more$"),
        (with_limit(2), r"needs 3; .* give depth=DepthDecoder\(model=..., first_id=None\)"),
        (with_limit(1, first_id=None), "at most 1 positions, .* needs 2"),
    ],
)
def test_depth_decoders_that_do_not_fit_are_refused(depth: DepthDecoder, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_depth_codebooks(MAIN, depth)


def test_room_for_the_ids_that_are_read_is_enough() -> None:
    assert find_depth_codebooks(MAIN, with_limit(3)).count == 3
    assert find_depth_codebooks(MAIN, with_limit(2, first_id=None)).count == 3


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([ids("x", "batch", "seq")], [SCORES, STATE], "needs a main model with several codebooks"),
        ([scores("x", *FIRST)], [STATE], "needs a main model with several codebooks"),
        ([ids("x", *FIRST)], [SCORES], r"must be the hidden state \(batch, seq, 8\)"),
        (
            [ids("x", *FIRST)],
            [scores(n, "batch", "seq", 8) for n in "yz"],
            r"the one of the same name, 'hidden', is taken; the main model is x: int64",
        ),
        (
            [ids("x", *FIRST)],
            [STATE, scores("features", "batch", "seq", 5)],
            "cannot be seen whether 'features' scores the first codebook",
        ),
        (
            [ids("x", *FIRST)],
            [scores("logits", "batch", 3, "seq", 5), STATE],
            "if the model scores all of its codebooks, leave depth= out",
        ),
    ],
    ids=["one book", "floats", "no state", "two states", "unnamed", "all books"],
)
def test_main_models_that_do_not_fit_are_refused(
    inputs: list[TensorSpec], outputs: list[TensorSpec], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        find_depth_codebooks(contract(inputs, outputs), PLAIN)


def test_both_need_a_cache() -> None:
    bare = replace(MAIN, inputs=MAIN.inputs[:1], outputs=MAIN.outputs[:2], cache=())
    with pytest.raises(ValueError, match=r"\(batch, seq, 8\), without a cache"):
        find_depth_codebooks(bare, PLAIN)
    own = PLAIN.model.contract
    bare = replace(own, inputs=own.inputs[:2], outputs=own.outputs[:1], cache=())
    with pytest.raises(ValueError, match=r"\(batch, seq, 5\), without a cache"):
        find_depth_codebooks(MAIN, DepthDecoder(model=model_of(bare)))


def test_the_first_codes_own_place_needs_its_logits() -> None:
    depth = replace(PLAIN, first_id=None)
    with pytest.raises(ValueError, match=r"first_id=None puts .* return \{'logits': ..., 'hidden'"):
        find_depth_codebooks(contract([ids("x", *FIRST)], [STATE]), depth)


def test_settings_are_checked() -> None:
    assert check_depth(PLAIN) is PLAIN
    assert check_depth(PLAIN.model) == PLAIN
    with pytest.raises(TypeError, match=r"depth must be a loaded model, .* got 3"):
        check_depth(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model must be a loaded model, .* got 'depth.onnx'"):
        DepthDecoder(model="depth.onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first_id must be an id of at least 0, or None, got -1"):
        DepthDecoder(model=PLAIN.model, first_id=-1)
