"""Clean a graph before and after the passes."""

from __future__ import annotations

import ast

import onnx_ir as ir
from onnx_ir.passes import common

from causal_onnx.export.analysis.graph import PLACE_KEY

__all__ = ["simplify", "tidy"]


def simplify(model: ir.Model) -> None:
    """Inline functions, lift constants, and keep of the exporter's notes only the submodule."""
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.DeduplicateInitializersPass(size_limit=1 << 20)(model)
    places = {id(node): _place(node) for node in model.graph.all_nodes()}
    # The notes hold paths of the exporting machine.
    common.ClearMetadataAndDocStringPass()(model)
    for node in model.graph.all_nodes():
        if places[id(node)]:
            node.metadata_props[PLACE_KEY] = places[id(node)]


def tidy(model: ir.Model) -> None:
    """Drop what nothing uses, and compute nothing twice."""
    common.CommonSubexpressionEliminationPass()(model)
    common.IdentityEliminationPass()(model)
    _tell_results_apart(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.NameFixPass()(model)
    model.producer_name, model.producer_version = "causal-onnx", None
    model.graph.name = "main"


def _tell_results_apart(model: ir.Model) -> None:
    """Give each output of a body a value of its own: of one that is two, onnxruntime makes one."""
    for body in model.graph.subgraphs():
        for index, value in enumerate(body.outputs):
            if value in body.outputs[:index]:
                copy = ir.node("Identity", [value])
                copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
                body.append(copy)
                body.outputs[index] = copy.outputs[0]


def _place(node: ir.Node) -> str:
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if not scopes:
        return ""
    names = [str(name) for name in ast.literal_eval(scopes)]
    return next((n.removeprefix("module.") for n in reversed(names[:-1]) if n != "module"), "")
