"""A twin of a bfloat16 graph that the CPU can run: each step in fp32, its result rounded to bf16.

onnxruntime has no bfloat16 products, sums or softmax on the CPU, but it casts. The twin takes and
gives float32 that holds bfloat16 values, and stands in for the file in every check that runs it.
"""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from causal_onnx.export.graph.subgraphs import name_inside
from causal_onnx.runtime.contract import Contract, TensorSpec

__all__ = ["compute_wide", "contract_of_twin", "make_twin"]

_TESTS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf"}
_TESTS |= {"Not", "And", "Or", "Xor"}
_UNTOUCHED = {"Cast", "If", "Loop", "Scan"}
"""They take bfloat16 on the CPU; the bodies of the latter are rewritten node by node."""


def make_twin(model: ir.Model) -> ir.Model:
    """The twin of `model`, which stays as it is."""
    twin = model.clone()
    graph = twin.graph
    compute_wide(twin)
    for value in graph.inputs:
        if value.dtype == ir.DataType.BFLOAT16:
            value.type = ir.TensorType(ir.DataType.FLOAT)
    for index, value in enumerate(graph.outputs):
        if value.dtype == ir.DataType.BFLOAT16:
            node = _cast(value, ir.DataType.FLOAT)
            graph.append(node)
            result = node.outputs[0]
            result.shape = value.shape
            name, value.name = value.name, f"{value.name}_bfloat16"
            result.name = name
            graph.outputs[index] = result
    for index, body in enumerate(graph.subgraphs()):  # the new values have no names yet
        name_inside(body, f"inside_{index}")
    return twin


def compute_wide(model: ir.Model) -> None:
    """Compute every bfloat16 node in fp32 and round what it gives, in place."""
    graph = model.graph
    for _ in range(2):  # what a branch gives is known after its nodes
        for node in graph.all_nodes():
            _note_types(node)
    for node in list(graph.all_nodes()):
        if node.op_type not in _UNTOUCHED:
            _widen(node)


def contract_of_twin(contract: Contract) -> Contract:
    """The contract with float32 for bfloat16."""

    def widened(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(s, dtype="float32") if s.dtype == "bfloat16" else s for s in specs)

    return replace(contract, inputs=widened(contract.inputs), outputs=widened(contract.outputs))


def _note_types(node: ir.Node) -> None:
    """Give outputs of unknown type the one that follows from the inputs."""
    for index, value in enumerate(node.outputs):
        if value.dtype is None:
            found = _type_of(node, index)
            if found is not None:
                value.type = ir.TensorType(found)


def _type_of(node: ir.Node, index: int) -> ir.DataType | None:
    if node.op_type in ("Shape", "Size", "ArgMax", "ArgMin", "NonZero"):
        return ir.DataType.INT64
    if node.op_type in _TESTS:
        return ir.DataType.BOOL
    if node.op_type == "Cast":
        return ir.DataType(node.attributes["to"].as_int())
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return ir.DataType.FLOAT if fill is None else fill.as_tensor().dtype
    if node.op_type == "If":
        return node.attributes["then_branch"].as_graph().outputs[index].dtype
    if node.op_type in ("Loop", "Scan"):
        return None
    given = node.inputs[1:] if node.op_type == "Where" else node.inputs[:1]
    return next((value.dtype for value in given if value is not None), None)


def _widen(node: ir.Node) -> None:
    """Compute one node in fp32 and round what it gives."""
    graph = node.graph
    assert graph is not None
    is_narrow = [value.dtype == ir.DataType.BFLOAT16 for value in node.outputs]
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == ir.DataType.BFLOAT16:
            cast = _cast(value, ir.DataType.FLOAT)
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    fill = node.attributes.get("value")
    if node.op_type == "ConstantOfShape" and fill is not None and any(is_narrow):
        wide = fill.as_tensor().numpy().astype("float32")
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(wide))
    for value, narrow in zip(node.outputs, is_narrow, strict=True):
        if not narrow:
            continue
        value.type = ir.TensorType(ir.DataType.FLOAT)
        cast = _cast(value, ir.DataType.BFLOAT16)
        result = cast.outputs[0]
        result.shape = value.shape
        for use in list(value.uses()):
            use.node.replace_input_with(use.idx, result)
        for index, output in enumerate(graph.outputs):
            if output is value:
                name, value.name = value.name, f"{value.name}_wide"
                result.name = name
                graph.outputs[index] = result
        cast.replace_input_with(0, value)
        graph.insert_after(node, cast)


def _cast(value: ir.Value, to: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": int(to)})
    node.outputs[0].type = ir.TensorType(to)
    return node
