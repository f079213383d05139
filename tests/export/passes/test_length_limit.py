"""The length limit in the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from causal_onnx.export import export
from causal_onnx.export.check.parity import Session, beyond_the_limit
from causal_onnx.export.errors import ExportError
from causal_onnx.export.passes.length_limit import enforce_max_seq_len
from causal_onnx.export.source.inputs import describe_inputs
from causal_onnx.export.write import write_model
from causal_onnx.runtime.contract import Contract, TensorSpec
from tests.export.captured import run_model
from tests.export.modules import Head, example
from tests.zoo import entry


def doubling(*, with_past: bool) -> ir.Model:
    """x (batch, seq, 2) -> x + x; an input `past` (batch, past_seq, 2) is passed through."""
    inputs = [
        ir.Value(
            name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", axis, 2])
        )
        for name, axis in (("x", "seq"), ("past", "past_seq"))[: 1 + with_past]
    ]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": 20}, name="g")
    for value in inputs:
        node = ir.node("Add", [value, value])
        node.outputs[0].type = value.type
        graph.append(node)
        graph.outputs.append(node.outputs[0])
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("seq", [1, 2, 5])
def test_up_to_the_limit_nothing_changes(seq: int) -> None:
    model = doubling(with_past=False)
    enforce_max_seq_len(model, input_name="x", axis=1, limit=5)
    x = np.ones((3, seq, 2), np.float32)
    np.testing.assert_array_equal(run_model(model, [x])[0], 2 * x)


def test_one_more_is_refused_by_name() -> None:
    model = doubling(with_past=False)
    enforce_max_seq_len(model, input_name="x", axis=1, limit=5)
    with pytest.raises(Exception, match="sequence_longer_than_max_seq_len_5"):
        run_model(model, [np.ones((3, 6, 2), np.float32)])


def test_past_positions_count() -> None:
    model = doubling(with_past=True)
    enforce_max_seq_len(model, input_name="x", axis=1, limit=5, past=("past", 1))
    x, past = np.ones((1, 2, 2), np.float32), np.ones((1, 3, 2), np.float32)
    np.testing.assert_array_equal(run_model(model, [x, past])[0], 2 * x)
    with pytest.raises(Exception, match="sequence_longer_than_max_seq_len_5"):
        run_model(model, [x, np.ones((1, 4, 2), np.float32)])


def test_an_output_of_one_position_has_the_limit_of_its_module(tmp_path: Path) -> None:
    item = entry("lm_last_position_only")
    report = export(item.factory(), tmp_path / "m.onnx", example=item.inputs(2, 5), axes=item.axes)
    assert report.contract.max_seq_len == item.limit == 24


@pytest.mark.parametrize("slots", [20, 33])
def test_slots_of_an_input_of_fixed_size_are_a_limit(slots: int, tmp_path: Path) -> None:
    item = entry("cache_static_scatter")
    x, keys, values, places = item.inputs(2, 5)
    shape = (*keys.shape[:2], slots, keys.shape[3])
    example = (x, keys.new_zeros(shape), values.new_zeros(shape), places)
    report = export(item.factory(), tmp_path / "m.onnx", example=example, axes=item.axes)
    assert report.contract.max_seq_len == slots


def refusing_elsewhere() -> ir.Model:
    """As `doubling`, with a lookup in a table of 5 rows that is nobody's limit."""
    model = doubling(with_past=False)
    enforce_max_seq_len(model, input_name="x", axis=1, limit=5)
    for node in model.graph:
        if node.op_type == "Gather":
            node.name = "positions"
    return model


def limited() -> ir.Model:
    model = doubling(with_past=False)
    enforce_max_seq_len(model, input_name="x", axis=1, limit=5)
    return model


@pytest.mark.parametrize(
    ("model", "passed", "note"),
    [
        (limited(), True, ""),
        (refusing_elsewhere(), False, "not refused by the limit of 5, but failed elsewhere"),
        (doubling(with_past=False), False, "accepted, though max_seq_len is 5"),
    ],
    ids=["limit", "another node", "none"],
)
def test_one_past_the_limit_is_refused_by_the_limit_and_nothing_else(
    model: ir.Model, passed: bool, note: str, tmp_path: Path
) -> None:
    x = TensorSpec(name="x", dtype="float32", axes=("batch", "seq", 2))
    output = TensorSpec(name="y", dtype="float32", axes=("batch", "seq", 2))
    model.graph.outputs[0].name = "y"
    contract = Contract(inputs=(x,), outputs=(output,), max_seq_len=5)
    write_model(model, tmp_path / "m.onnx", {})
    session = Session(tmp_path / "m.onnx", contract)
    case = beyond_the_limit(session, describe_inputs(["x"], [torch.zeros(2, 3, 2)], None), contract)
    assert (case.passed, case.refused) == (passed, passed)
    assert case.note.startswith(note)


class TooLongError(Exception):
    pass


class Limited(Head):
    """48 positions by a number that stands in the code alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        if self.how == "raise" and n > 48:
            raise TooLongError(f"{n} positions")
        if self.how == "check":
            torch._check(n + 1 <= 49)
        if self.how == "assert":
            assert n < 49
        return self.core(x[:, -48:] if self.how == "crop" else x)


@pytest.mark.parametrize("how", ["raise", "check", "assert", "crop"])
def test_a_number_in_the_code_is_the_limit(how: str, tmp_path: Path) -> None:
    report = export(Limited(how).eval(), tmp_path / "m.onnx", example=example())
    assert report.contract.max_seq_len == 48
    assert [case.seq for case in report.parity.cases if case.refused] == [49]
    assert [text for text in report.warnings if "crops" in text] == list(report.warnings)
    assert bool(report.warnings) == (how == "crop")


class Otherwise(Head):
    """Computes something else beyond 30 positions."""

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x) if x.shape[1] <= 30 else self.core(x) * 2


def test_a_graph_that_is_valid_for_less_than_the_module_is_limited_with_a_warning(
    tmp_path: Path,
) -> None:
    report = export(Otherwise().eval(), tmp_path / "m.onnx", example=example())
    assert report.contract.max_seq_len == 30
    assert "at most 30 positions: the captured graph is not valid at batch" in report.warnings[0]
    assert "Otherwise itself accepts that" in report.warnings[0]


def test_a_limit_that_was_asked_for_is_not_lowered(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"max_seq_len is 40, but .* Remedy: ask for at most 30"):
        export(Otherwise().eval(), tmp_path / "m.onnx", example=example(), max_seq_len=40)


class FewRows(Head):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 8:
            raise TooLongError("too many rows")
        return self.core(x)


def test_a_limit_of_the_batch_is_refused_with_the_modules_own_words(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"batch <= 8\); FewRows itself raises TooLongError: too many"
    ):
        export(FewRows().eval(), tmp_path / "m.onnx", example=example())


class AtOne(Head):
    """Computes something else at one length in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x) * (1 if x.shape[1] != 37 else 2)


def test_a_length_that_the_capture_excludes_is_compared(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"seq 37, batch 2: output.* PyTorch returns"):
        export(AtOne().eval(), tmp_path / "m.onnx", example=example())
