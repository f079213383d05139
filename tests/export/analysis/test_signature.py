"""What the axes of an input mean, from the caller, the contract, the names or the rank."""

from __future__ import annotations

import onnx
import pytest

from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.analysis.signature import (
    Signature,
    Sizes,
    axis_name,
    read_signature,
    role_of,
)
from causal_onnx.runtime.contract import CONTRACT_KEY, Contract, TensorSpec

from .graphs import build


def signature(text: str, axes: dict[str, dict[int, str]] | None = None) -> Signature:
    return read_signature(load_model(build("y = Relu(x)", text)), axes)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("batch_size", "batch"),
        ("sequence_length", "seq"),
        ("seq", "seq"),
        ("past_sequence_length", "past_seq"),
        ("total_sequence_length", "total_seq"),
        ("past_sequence_length + sequence_length", "total_seq"),
        ("kv_cache_dim", None),
        ("s77", None),
        ("hidden", None),
    ],
)
def test_names_that_say_something(name: str, meaning: str | None) -> None:
    assert axis_name(name) == meaning


@pytest.mark.parametrize(
    ("name", "rank", "role"),
    [
        ("input_ids", 2, "tokens"),
        ("attention_mask", 2, "mask"),
        ("position_ids", 2, "positions"),
        ("past_key_values.0.key", 4, "past"),
        ("key_buffer", 4, "past"),
        ("layer_0.v_cache", 4, "past"),
        ("key_buffer", 2, "tokens"),
        ("input_pos", 1, "positions"),
        ("exposure", 3, "tokens"),
        ("seqlens_k", 1, "lengths"),
        ("x", 3, "tokens"),
    ],
)
def test_roles(name: str, rank: int, role: str) -> None:
    assert role_of(name, rank) == role


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("(float[s0, s1, 8] x) => (float[s0, s1, 8] y)", ("batch", "seq", 8)),
        ("(float[s0, 8] x) => (float[s0, 8] y)", ("seq", 8)),
        ("(int64[s0, s1] x) => (int64[s0, s1] y)", ("batch", "seq")),
        ("(float[seq, batch, 8] x) => (float[seq, batch, 8] y)", ("seq", "batch", 8)),
    ],
)
def test_axes_by_name_or_rank(text: str, axes: tuple[object, ...]) -> None:
    assert signature(text).inputs[0].axes == axes


def test_the_rank_alone_is_a_guess_that_is_reported() -> None:
    assert signature("(float[s0, s1, 8] x) => (float[s0, s1, 8] y)").inputs[0].guessed
    assert not signature("(float[batch, seq, 8] x) => (float[batch, seq, 8] y)").inputs[0].guessed


def test_the_caller_comes_first() -> None:
    text = "(float[a, b, 8] x) => (float[a, b, 8] y)"
    found = signature(text, {"x": {0: "seq", 1: "batch"}})
    assert found.inputs[0].axes == ("seq", "batch", 8)
    assert found.inputs[0].position_axis == 0


def test_the_contract_in_the_file_comes_next() -> None:
    model = build("y = Relu(x)", "(float[a, b, 8] x) => (float[a, b, 8] y)")
    spec = TensorSpec(name="x", dtype="float32", axes=("seq", "batch", 8))
    out = TensorSpec(name="y", dtype="float32", axes=("seq", "batch", 8))
    contract = Contract(inputs=(spec,), outputs=(out,), max_seq_len=9)
    onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.to_json()})
    found = read_signature(load_model(model))
    assert found.inputs[0].axes == ("seq", "batch", 8)
    assert found.max_seq_len == 9


def test_a_past_makes_the_mask_cover_both() -> None:
    body = "y = Relu(x)"
    text = (
        "(float[batch, seq, 8] x, int64[b, t] attention_mask, "
        "float[b2, 2, p, 4] past_key_values.0.key) => (float[batch, seq, 8] y)"
    ).replace("past_key_values.0.key", "past_key")
    found = read_signature(load_model(build(body, text)))
    assert found.has_past
    assert found.inputs[1].axes == ("batch", "total_seq")
    assert found.inputs[2].axes == ("batch", 2, "past_seq", 4)
    sizes = Sizes(batch=2, seq=3, past_seq=5)
    assert found.inputs[1].shape(sizes) == (2, 8)
    assert found.inputs[0].first_position(sizes) == 5


def test_a_fixed_length_is_the_only_one() -> None:
    assert signature("(float[2, 7, 8] x) => (float[2, 7, 8] y)").fixed_seq == 7


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"z": {0: "seq"}}, "axes names an input 'z'; the graph has x"),
        ({"x": {0: "time"}}, "such as 'memory', got 'time'; should it be 'seq'?"),
        ({"x": {0: "2 of"}}, "an axis is one of batch, seq, past_seq, total_seq, or has a name of"),
        ({"x": {5: "seq"}}, "for a tensor of rank 3"),
    ],
)
def test_wrong_axes_are_refused(axes: dict[str, dict[int, str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        signature("(float[a, b, 8] x) => (float[a, b, 8] y)", axes)


def test_a_graph_without_positions_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"Name it, for example axes=\{'x': \{1: 'seq'\}\}"):
        signature("(float[8] x) => (float[8] y)")


def test_a_bounded_cache_holds_the_last_positions() -> None:
    found = signature(
        "(float[batch, seq, 4] x, float[batch, 2, past_slots_3, 4] past_key) "
        "=> (float[batch, seq, 4] y)"
    )
    (past,) = [spec for spec in found.inputs if spec.role == "past"]
    assert found.symbols == ()
    assert found.slot_bounds == (3,)
    for past_seq, slots in ((0, 0), (2, 2), (8, 3)):
        sizes = Sizes(batch=2, seq=1, past_seq=past_seq)
        assert past.shape(sizes) == (2, 2, slots, 4)
        assert past.first_position(sizes) == past_seq - slots
