"""Small graphs for the tests of the analysis, written in ONNX's text form."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from causal_onnx.export.analysis.analyse import default_grid
from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.analysis.signature import read_signature
from causal_onnx.export.proof.prove import StaticProof, prove

Array = np.ndarray[Any, np.dtype[Any]]

WIDTH = 4

X_Y = "(float[batch, seq, 4] x) => (float[batch, seq, 4] y)"


def build(
    body: str, signature: str = X_Y, *, opset: int = 18, contrib: bool = False, **arrays: Array
) -> onnx.ModelProto:
    """A model from the text of its nodes; `arrays` become initializers.

    Random weights are added for the names w, u, v (WIDTH x WIDTH) and g (WIDTH) that it reads.
    """
    domains = f'"": {opset}' + (', "com.microsoft": 1' if contrib else "")
    text = f"<ir_version: 10, opset_import: [{domains}]> main {signature} {{{body}}}"
    model = parser.parse_model(text)
    rng = np.random.default_rng(3)
    shapes = {"w": (WIDTH, WIDTH), "u": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "g": (WIDTH,)}
    given = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in shapes.items()
        if name not in arrays
    }
    read = {name for node in model.graph.node for name in node.input}
    for name, array in {**given, **arrays}.items():
        if name in read or name in arrays:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    return model


def static(model: onnx.ModelProto, **kwargs: Any) -> StaticProof:
    """The static proof alone."""
    loaded = load_model(model)
    signature = read_signature(loaded, kwargs.pop("axes", None))
    return prove(loaded, signature, default_grid(signature, **kwargs))


def i64(*values: int) -> Array:
    return np.asarray(values, np.int64)
