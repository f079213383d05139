"""What the commands say of a contract."""

from __future__ import annotations

from causal_onnx.cli.describe import contract_pairs, file_rows
from causal_onnx.runtime import Contract, TensorSpec
from causal_onnx.runtime.contract import AdapterPair, CachePair, FreeAxis


def tensor(name: str, *axes: str | int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, axes=("batch", *axes))


def said(contract: Contract) -> str:
    return dict(contract_pairs(contract))["KV cache"]


def test_a_cache_is_described_by_what_its_rows_may_do_and_what_it_keeps() -> None:
    x, y = tensor("x", "seq"), tensor("y", "seq")
    whole, near = tensor("past", "past_seq"), tensor("near", "past_slots")
    grown, last = tensor("present", "total_seq"), tensor("last", "present_slots")
    pair = CachePair(past="past", present="present")
    bounded = CachePair(past="near", present="last", bounded=3)
    mask = tensor("mask", "total_seq", dtype="int64")

    assert said(Contract(inputs=(x,), outputs=(y,))) == "none"
    plain = Contract(inputs=(x, whole), outputs=(y, grown), cache=(pair,))
    assert (
        said(plain) == "yes; sequences of a call must be equally long; past inputs may be left out"
    )
    rows = Contract(
        inputs=(x, mask, whole, near),
        outputs=(y, grown, last),
        cache=(pair, bounded),
        mask="mask",
    )
    assert said(rows) == (
        "yes; sequences of a call may differ in length; 1 of 2 hold the last positions only; past "
        "inputs and the mask may be left out"
    )


def test_layers_that_adapters_may_change_are_counted() -> None:
    x, y = tensor("x", "seq", 4), tensor("y", "seq")
    down, up = tensor("a.lora_down", 4, "rank"), tensor("a.lora_up", "rank", 6)
    pair = AdapterPair(module="a", down=down.name, up=up.name)
    free = (FreeAxis(name="rank"),)
    contract = Contract(inputs=(x, down, up), outputs=(y,), free_axes=free, adapters=(pair,))
    expected = ("adapters", "of 1 layer, by row; may be left out")
    assert expected in contract_pairs(contract)
    assert "adapters" not in dict(contract_pairs(Contract(inputs=(x,), outputs=(y,))))


def test_files_in_folders_are_counted_in_one_row() -> None:
    sizes = {"a.onnx": 20, "set_0/x.pb": 3, "set_0/y.pb": 4, "set_1/x.pb": 5}
    assert file_rows(sizes) == [["a.onnx", "20 bytes"], ["set_0 to set_1: 3 files", "12 bytes"]]
    assert file_rows({"set_0/x.pb": 3}) == [["set_0: one file", "3 bytes"]]
    assert file_rows({"a.onnx": 20}) == [["a.onnx", "20 bytes"]]
