"""Reading a model for analysis, and saying where a node comes from."""

from __future__ import annotations

import ast
import contextlib
import re
from os import PathLike
from pathlib import Path

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from causal_onnx.runtime.contract import MODULE_KEY

__all__ = ["PLACE_KEY", "NodeSource", "describe", "load_model", "source_of"]

PLACE_KEY = MODULE_KEY
"""Node metadata: the submodule that the node was captured from, as `named_modules` spells it."""


def load_model(source: str | PathLike[str] | onnx.ModelProto | ir.Model) -> ir.Model:
    """A model with its local functions inlined; weights stay where they are.

    A path or a proto is read anew, with its nodes in an order in which each reads what is made
    before it: onnxruntime does not insist on that, and its quantize_dynamic writes an `If` in front
    of what its branches read. An `ir.Model` is cloned only where it holds functions.

    Raises:
        ValueError: The file holds no ONNX model.
    """
    if isinstance(source, ir.Model):
        model = source.clone() if source.functions else source
    elif isinstance(source, onnx.ModelProto):
        try:
            model = ir.from_proto(source)
        except Exception as error:  # onnx_ir raises several classes for what it cannot hold
            raise ValueError(f"the model cannot be read: {_first_cause(error)}") from error
    else:
        path = Path(source)
        if not path.is_file():
            raise ValueError(f"{path}: there is no such file")
        try:
            model = ir.load(path)
        except Exception as error:  # protobuf raises several classes for a damaged file
            raise ValueError(f"{path} holds no ONNX model: {_first_cause(error)}") from error
    if model.functions:
        model = common.InlinePass()(model).model
    if not isinstance(source, ir.Model):
        # Nodes in a circle have no order: then the analysis names the one that it cannot follow.
        with contextlib.suppress(ValueError):
            model.graph.sort()
    return model


def _first_cause(error: BaseException) -> str:
    """The message at the root of a chain of errors: the outer ones quote the whole graph."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


class NodeSource:
    """Where in the exporting program a node comes from, as far as the exporter wrote it down."""

    __slots__ = ("line", "module")

    def __init__(self, module: str | None, line: str | None) -> None:
        self.module = module
        self.line = line

    def __str__(self) -> str:
        return ", ".join(text for text in (self.module, self.line) if text)


def source_of(node: ir.Node) -> NodeSource:
    """The submodule and the line, from the metadata that torch.onnx or this project writes."""
    props = node.metadata_props
    module = props.get(PLACE_KEY)
    scopes = props.get("pkg.torch.onnx.name_scopes")
    if scopes:
        try:
            names = [name for name in ast.literal_eval(scopes) if name]
        except (ValueError, SyntaxError):
            names = []
        if len(names) > 1:
            module = names[-2]
    elif module is None and node.name and "/" in node.name:
        # The TorchScript exporter puts the scopes in the name: /layers.0/attn/Softmax.
        module = ".".join(part for part in node.name.split("/")[:-1] if part) or None
    line = None
    trace = props.get("pkg.torch.onnx.stack_trace") or node.doc_string or ""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.*)', trace)
    if found:
        file, number, function, code = found[-1]
        line = f"{Path(file).name}:{number} in {function}: {code.strip()}"
    return NodeSource(module, line)


def describe(node: ir.Node) -> str:
    """Operator and name, e.g. `Softmax "node_softmax"`."""
    domain = f"{node.domain}." if node.domain else ""
    return f'{domain}{node.op_type} "{node.name or (node.outputs[0].name if node.outputs else "")}"'
