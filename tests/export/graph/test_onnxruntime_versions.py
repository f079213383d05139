from __future__ import annotations

import onnx_ir as ir
import pytest

from causal_onnx.export.graph.onnxruntime_versions import oldest_onnxruntime


def node(op_type: str, count: int, *, domain: str = "com.microsoft") -> ir.Node:
    return ir.node(op_type, [ir.Value(name=f"x{n}") for n in range(count)], domain=domain)


def graph(*nodes: ir.Node) -> ir.Graph:
    return ir.Graph([], [], nodes=nodes, opset_imports={"": 24, "com.microsoft": 1}, name="g")


@pytest.mark.parametrize(
    ("nodes", "oldest"),
    [
        ([node("GroupQueryAttention", 16)], None),
        ([node("LinearAttention", 5)], "1.30"),
        ([node("LinearAttention", 5), node("GroupQueryAttention", 17)], "1.32"),
        ([node("LinearAttention", 5, domain="")], None),
    ],
    ids=["all have it", "operator", "input", "operator of ONNX"],
)
def test_the_newest_part_decides(nodes: list[ir.Node], oldest: str | None) -> None:
    assert oldest_onnxruntime(ir.Model(graph(*nodes), ir_version=10)) == oldest


def test_an_input_that_is_left_out_needs_nothing() -> None:
    last = node("GroupQueryAttention", 17)
    last.replace_input_with(16, None)
    assert oldest_onnxruntime(ir.Model(graph(last), ir_version=10)) is None


def test_the_branches_of_a_choice_count() -> None:
    choice = ir.node("If", [ir.Value(name="c")], {"then_branch": graph(node("LinearAttention", 5))})
    assert oldest_onnxruntime(ir.Model(graph(choice), ir_version=10)) == "1.30"
