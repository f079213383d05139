from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from causal_onnx.runtime import ArtifactError, Contract, TensorSpec
from causal_onnx.runtime.contract import FORMAT, FreeAxis, describe_all

IDS = TensorSpec(name="input_ids", dtype="int64", axes=("batch", "seq"), vocab_size=7)
LOGITS = TensorSpec(name="logits", dtype="float32", axes=("batch", "seq", 7))
CONTRACT = Contract(
    inputs=(IDS,), outputs=(LOGITS,), max_seq_len=9, unbatched=True, form="ort", opset=20
)


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(CONTRACT.to_json()), **changes})


MEMORY = TensorSpec(name="m", dtype="float32", axes=("batch", "frames", 4))


def spec_with(**changes: Any) -> list[dict[str, Any]]:
    return [{"name": "x", "dtype": "float32", "axes": ["seq"], **changes}]


def bounded(
    count: int | None, before: str = "past_seq", after: str = "total_seq"
) -> dict[str, Any]:
    """The keys of a contract with a cache of one pair."""
    spec = {"name": "x", "dtype": "float32", "axes": ["batch", "seq"]}
    return {
        "inputs": [spec, {**spec, "name": "past", "axes": ["batch", before]}],
        "outputs": [{**spec, "name": "y"}, {**spec, "name": "present", "axes": ["batch", after]}],
        "cache": [{"past": "past", "present": "present", "bounded": count}],
    }


CACHED = bounded(None)


def test_a_contract_survives_the_round_trip() -> None:
    assert Contract.from_json(CONTRACT.to_json()) == CONTRACT


def test_a_contract_from_before_masks_and_bounds_is_read() -> None:
    text = changed(**CACHED)
    older = {key: value for key, value in json.loads(text).items() if key != "mask"}
    older["cache"] = [{"past": "past", "present": "present"}]
    assert Contract.from_json(json.dumps(older)) == Contract.from_json(text)


def test_special_tokens_survive_the_round_trip() -> None:
    contract = replace(CONTRACT, eos_token_ids=(2, 5), bos_token_id=1, pad_token_id=0)
    assert json.loads(contract.to_json())["eos_token_ids"] == [2, 5]
    assert Contract.from_json(contract.to_json()) == contract


def test_a_contract_without_special_tokens_has_no_key_of_them() -> None:
    assert not [key for key in json.loads(CONTRACT.to_json()) if "token" in key]


def test_a_newer_onnxruntime_is_a_key_only_where_it_is_needed() -> None:
    contract = replace(CONTRACT, min_onnxruntime="1.30")
    assert Contract.from_json(contract.to_json()) == contract
    assert "onnxruntime" not in CONTRACT.to_json()


def test_equal_contracts_give_the_same_text() -> None:
    assert Contract.from_json(CONTRACT.to_json()).to_json() == CONTRACT.to_json()


def test_tensors_that_differ_in_a_number_of_their_name_share_a_line() -> None:
    layers = [replace(IDS, name=f"past.{layer}.key", vocab_size=None) for layer in range(2)]
    assert describe_all([IDS, *layers])[1:] == ["past.{i}.key: int64 (batch, seq), 2 of them"]
    assert describe_all([IDS, layers[0]]) == [IDS.describe(), layers[0].describe()]


def test_a_spec_describes_itself_on_one_line() -> None:
    assert IDS.describe() == "input_ids: int64 (batch, seq), ids in [0, 7)"
    assert IDS.axis_of("seq") == 1
    assert IDS.axis_of("past_seq") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "no format number"),
        ("{}", "no format number"),
        (changed(format=True), "no format number"),
        (changed(format="1"), "no format number"),
        (changed(format=0), "no format number"),
        (changed(format=FORMAT + 1), f"of format {FORMAT + 1}, .* reads up to {FORMAT}. Update"),
        (changed(surprise=1), "unknown keys in the contract: surprise"),
        (json.dumps({"format": 1}), "lacks the key 'inputs'"),
        (changed(inputs=3), "the contract is damaged"),
        (changed(eos_token_ids=[2, 7]), r"eos_token_ids: expected ids in \[0, 7\), got 7"),
        (changed(eos_token_ids=2), "the contract is damaged"),
        (changed(bos_token_id=[1]), r"bos_token_id: expected ids in \[0, 7\), got \[1\]"),
        (changed(pad_token_id=-1), r"pad_token_id: expected ids in \[0, 7\), got -1"),
        (changed(inputs=["x"]), "unknown keys|damaged"),
        (changed(inputs=[]), "at least one input"),
        (changed(outputs=spec_with() * 2), "output names must differ"),
        (changed(max_seq_len=0), "max_seq_len must be a positive integer, got 0"),
        (changed(max_seq_len="9"), "max_seq_len must be a positive integer, got '9'"),
        (changed(max_seq_len=2, min_seq_len=3), "min_seq_len must be in"),
        (changed(min_seq_len=None), "min_seq_len must be a positive integer, got None"),
        (changed(opset=True), "opset must be a positive integer, got True"),
        (changed(cache=[{"past": "input_ids", "present": "z"}]), "pairs .* output 'z'; the"),
        (changed(cache=[{"past": "z", "present": "logits"}]), "pairs input 'z' with"),
        (changed(cache=[{"past": "input_ids"}]), "damaged"),
        (changed(cache=[{"was": 1}]), "unknown keys in the contract: was"),
        (changed(cache=3), "damaged"),
        (changed(mask="input_ids"), "the mask 'input_ids' must be an input of .* with a cache"),
        (changed(**CACHED, mask="y"), "the mask 'y' must be an input"),
        (
            changed(**CACHED, mask="past"),
            r"a mask must be int64 or int32 \(batch, total_seq\), got past: float32",
        ),
        (changed(**bounded(0)), "past: bounded must be a positive integer or None, got 0"),
        (changed(**bounded(3)), "past_slots and present_slots belong to pairs .* bounded"),
        (changed(**bounded(3, "past_slots", "present_slots")), "bounded or shared needs a mask"),
        (changed(inputs=spec_with(axes=["past_slots"])), "belong to pairs of the cache"),
        (changed(min_onnxruntime="1"), "a version of two numbers like '1.30', got '1'"),
        (changed(min_onnxruntime=1.3), "a version of two numbers like '1.30', got 1.3"),
        (changed(unbatched="yes"), "unbatched must be true or false, got 'yes'"),
        (changed(form=None), "form must be a string, got None"),
        (changed(inputs=spec_with(name="")), "must be a non-empty text, got ''"),
        (changed(inputs=spec_with(name=3)), "must be a non-empty text, got 3"),
        (changed(inputs=spec_with(dtype="float31")), "dtype must be one of .*, got 'float31'"),
        (changed(inputs=spec_with(dtype=["f"])), "damaged"),
        (changed(inputs=spec_with(axes=["time"])), "axis names are .*, got 'time'"),
        (changed(inputs=spec_with(axes=[True])), "an axis must be a name or a size, got True"),
        (changed(inputs=spec_with(axes=[2.0])), "an axis must be a name or a size, got 2.0"),
        (changed(inputs=spec_with(axes=[-1])), "must be 1 or more, got -1"),
        (changed(inputs=spec_with(axes=[0])), "must be 1 or more, got 0"),
        (changed(inputs=spec_with(axes=["batch", "batch"])), "'batch' appears twice"),
        (changed(inputs=spec_with(dtype="int64", vocab_size=0)), "positive integer, got 0"),
        (changed(inputs=spec_with(dtype="int64", vocab_size="9")), "positive integer, got '9'"),
        (changed(inputs=spec_with(vocab_size=9)), "ids must be integers, but the dtype is float32"),
        (changed(inputs=spec_with(extra=1)), "unknown keys in the contract: extra"),
    ],
)
def test_a_damaged_contract_is_refused(text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Contract.from_json(text)


def test_a_square_of_positions_may_have_the_axis_twice() -> None:
    spec = TensorSpec(name="weights", dtype="float32", axes=("batch", 4, "seq", "seq"))
    assert spec.axis_of("seq") == 2


def test_what_an_input_stands_for_survives_the_round_trip() -> None:
    times = TensorSpec(
        name="t", dtype="int64", axes=("batch", "seq"), kind="values", value_range=(-2, 50)
    )
    contract = replace(CONTRACT, inputs=(IDS, times))
    assert Contract.from_json(contract.to_json()) == contract
    assert times.describe() == "t: int64 (batch, seq), values in [-2, 50)"


def test_an_input_that_its_dtype_and_axes_explain_has_no_key_of_it() -> None:
    assert set(json.loads(CONTRACT.to_json())["inputs"][0]) == {
        "name", "dtype", "axes", "vocab_size",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "banana"}, "kind must be one of features, ids, .* got 'banana'"),
        ({"value_range": [5, 5]}, "value_range must be two numbers, the first one lower"),
        ({"value_range": ["a", 5]}, "value_range must be two numbers"),
    ],
)
def test_a_kind_or_range_that_is_none_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Contract.from_json(changed(inputs=spec_with(**change)))


def once(names: list[Any], count: int | None = 1) -> dict[str, Any]:
    """The keys of a contract with a pair that is computed once."""
    keys = bounded(count, "past_slots", "present_slots")
    mask = {"name": "mask", "dtype": "int64", "axes": ["batch", "total_seq"]}
    memory = {"name": "m", "dtype": "float32", "axes": ["batch", 4]}
    pair = {**keys["cache"][0], "computed_from": names}
    return {**keys, "inputs": [*keys["inputs"], mask, memory], "cache": [pair], "mask": "mask"}


def test_what_is_computed_once_survives_the_round_trip() -> None:
    contract = Contract.from_json(changed(**once(["m"])))
    assert contract.once_names == {"m"}
    assert Contract.from_json(contract.to_json()) == contract
    assert "computed_from" not in json.loads(Contract.from_json(changed(**CACHED)).to_json())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (once(["x"]), "computed_from names inputs without positions, .* got x"),
        (once(["mask"]), "computed_from names inputs without positions, .* got mask"),
        (once(["banana"]), "computed_from names inputs without positions, .* got banana"),
        (once([3]), "computed_from must be names of inputs"),
        (once(["m"], 2), "is for pairs that are bounded by 1, got .* with bounded 2"),
    ],
)
def test_what_cannot_be_computed_once_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Contract.from_json(changed(**keys))


def test_free_axes_survive_the_round_trip() -> None:
    free = (FreeAxis(name="frames", largest=40),)
    contract = replace(CONTRACT, inputs=(IDS, MEMORY), free_axes=free)
    assert Contract.from_json(contract.to_json()) == contract
    assert "free_axes" not in json.loads(CONTRACT.to_json())


@pytest.mark.parametrize(
    ("free", "message"),
    [
        ([], "m: axis names are batch, seq, .* got 'frames'"),
        ([{"name": "frames"}, {"name": "other"}], "free_axes names axes of inputs, each once"),
        ([{"name": "frames"}, {"name": "seq"}], "needs a name of its own, got 'seq'"),
        ([{"name": "frames", "largest": 0}], "largest must be a positive integer"),
    ],
)
def test_free_axes_that_do_not_fit_the_inputs_are_refused(
    free: list[dict[str, Any]], message: str
) -> None:
    inputs = [*json.loads(CONTRACT.to_json())["inputs"], spec_with()[0]]
    inputs[1] |= {"name": "m", "axes": ["batch", "frames", 4]}
    with pytest.raises(ArtifactError, match=message):
        Contract.from_json(changed(inputs=inputs, free_axes=free))
