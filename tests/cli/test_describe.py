"""What the commands say of a contract."""

from __future__ import annotations

from causal_onnx.cli.describe import contract_pairs, file_rows
from causal_onnx.runtime import Contract, TensorSpec
from causal_onnx.runtime.contract import CachePair


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


def test_files_in_folders_are_counted_in_one_row() -> None:
    sizes = {"a.onnx": 20, "set_0/x.pb": 3, "set_0/y.pb": 4, "set_1/x.pb": 5}
    assert file_rows(sizes) == [["a.onnx", "20 bytes"], ["set_0 to set_1: 3 files", "12 bytes"]]
    assert file_rows({"set_0/x.pb": 3}) == [["set_0: one file", "3 bytes"]]
    assert file_rows({"a.onnx": 20}) == [["a.onnx", "20 bytes"]]
