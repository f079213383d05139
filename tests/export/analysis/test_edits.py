"""What was found out about a graph is never mixed with what is found after an edit of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from causal_onnx.export.analysis.analyse import Analysis, EditedError
from causal_onnx.export.analysis.elements import Elements
from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.analysis.signature import Sizes, read_signature
from causal_onnx.export.graph.facts import Axis, Layouts

from .graphs import build, i64

SIZES, LONGER = Sizes(batch=2, seq=5), Sizes(batch=2, seq=7)


def summed() -> ir.Model:
    body = """
        b = CumSum <reverse = 1> (x, positions)
        z = CumSum <reverse = 0> (x, positions)
        f = CumSum <reverse = 1> (z, features)
        y = Relu(f)
    """
    return load_model(build(body, positions=i64(1), features=i64(2)))


def node(model: ir.Model, made: str) -> ir.Node:
    return next(found for found in model.graph if found.outputs[0].name == made)


def read_another(model: ir.Model) -> None:
    node(model, "y").replace_input_with(0, node(model, "b").outputs[0])


def sum_from_the_end(model: ir.Model) -> None:
    node(model, "z").attributes["reverse"] = ir.AttrInt64("reverse", 1)


def sum_over_the_other_axis(model: ir.Model) -> None:
    model.graph.initializers["features"].const_value = ir.tensor(i64(1), name="features")


def first_and_last(analysis: Analysis) -> tuple[int, int]:
    """The farthest position that the first and the last result depend on."""
    found = analysis.follow(SIZES).values[analysis.model.graph.outputs[0]]
    assert isinstance(found, Elements)
    reach = np.broadcast_to(found.reach, found.shape)
    return int(reach[:, 0].max()), int(reach[:, -1].max())


@pytest.mark.parametrize("edit", [read_another, sum_from_the_end, sum_over_the_other_axis])
def test_an_edited_graph_is_followed_anew_or_not_at_all(edit: Callable[[ir.Model], None]) -> None:
    model = summed()
    analysis = Analysis(model, read_signature(model))
    assert first_and_last(analysis) == (0, 4)
    edit(model)
    for follow in (analysis.by_position, analysis.by_batch, analysis.blank, analysis.follow):
        with pytest.raises(EditedError, match="analyse it anew"):
            follow(LONGER)
    assert first_and_last(Analysis(model, analysis.signature)) == (4, 4)


def test_nodes_that_nothing_known_reads_may_be_added() -> None:
    model = summed()
    analysis = Analysis(model, read_signature(model))
    model.graph.append(ir.node("Neg", [model.graph.outputs[0]]))
    assert analysis.by_position(LONGER) is not None


def test_what_a_pass_makes_is_known_by_what_it_replaces() -> None:
    model = summed()
    layouts, old = Layouts(model), model.graph.outputs[0]
    made = ir.node("Relu", [node(model, "f").outputs[0]])
    model.graph.append(made)
    layouts.note(made.outputs[0], old)
    assert layouts.is_tainted(made.outputs[0])
    assert layouts.axes(made.outputs[0]) == (Axis(1, 1, 0), Axis(1, 0, 1), Axis(4))
