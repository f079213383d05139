"""Captured graphs of zoo entries, before any pass, for the tests of the passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import onnx_ir as ir
import onnxruntime

from causal_onnx.export.capture.capture import Capture, attempts, capture_sizes
from causal_onnx.export.graph.cleanup import simplify
from causal_onnx.export.source.module import Observed, open_source
from causal_onnx.export.source.outputs import describe_outputs
from causal_onnx.export.subject import other_sizes
from tests.zoo import entry


@cache
def _captured(name: str, opset: int) -> ir.Model:
    item = entry(name)
    module = item.factory().eval()
    source, specs = open_source(module, item.inputs(2, 4), item.axes)
    sizes = capture_sizes(source.fresh(), specs, item.limit)
    other = other_sizes(source.fresh(), specs, sizes)
    outputs = describe_outputs(source.fresh(), specs, sizes, other)
    observed = Observed(output_names=tuple(spec.name for spec in outputs))
    for attempt in attempts(source, specs, sizes, observed, opset=opset):
        if isinstance(attempt, Capture):
            simplify(attempt.model)
            return attempt.model
    raise AssertionError(f"{name} was not captured")


def captured(name: str, opset: int = 24) -> ir.Model:
    """A fresh copy of the graph of the zoo entry `name`."""
    return _captured(name, opset).clone()


def run_model(model: ir.Model, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Run a graph in onnxruntime, inputs in order; activations are not rounded to 8 bits."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, dict(zip(names, inputs, strict=True))))


def zoo_inputs(name: str, batch: int, seq: int) -> list[np.ndarray]:
    """Inputs of the zoo entry `name` as numpy arrays."""
    return [tensor.numpy() for tensor in entry(name).inputs(batch, seq)]
