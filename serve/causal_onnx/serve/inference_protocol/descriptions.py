"""What the server and its models are, as this protocol says it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from causal_onnx.runtime import __version__
from causal_onnx.serve.inference_protocol.datatypes import datatype_of, wire_shape
from causal_onnx.serve.inference_protocol.tensors import VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

    from causal_onnx.runtime.contract import TensorSpec
    from causal_onnx.serve.registry import ServedModel

__all__ = ["EXTENSIONS", "PLATFORM", "described_model", "described_server", "model_config"]

EXTENSIONS = (
    "binary_tensor_data",
    "parameters",
    "sequence",
    "model_configuration",
    "model_repository",
    "generate",
)
"""Those of Triton's that work here, and no others."""

PLATFORM = "onnx_causal-onnx"
"""As the protocol has it, <project>_<format>; ours is the runtime."""


def described_server() -> dict[str, Any]:
    """The server."""
    return {"name": "causal-onnx", "version": __version__, "extensions": list(EXTENSIONS)}


def described_model(served: ServedModel) -> dict[str, Any]:
    """A model: what it takes and gives. The batch axis is one of the shape."""
    return {
        "name": served.name,
        "versions": [VERSION],
        "platform": PLATFORM,
        "inputs": _tensors(served.contract.inputs),
        "outputs": _tensors(served.contract.outputs),
    }


def _tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
    return [
        {"name": spec.name, "datatype": datatype_of(spec), "shape": wire_shape(spec)}
        for spec in specs
    ]


def model_config(served: ServedModel) -> dict[str, Any]:
    """A model in the fields of Triton's configuration that clients read.

    `max_batch_size` 0 means that shapes are given whole, the batch axis included.
    """
    contract = served.contract
    return {
        "name": served.name,
        "platform": PLATFORM,
        "backend": "causal-onnx",
        "max_batch_size": 0,
        "input": [
            {**_config(spec), "optional": spec.name in contract.optional_names}
            for spec in contract.inputs
        ],
        "output": [_config(spec) for spec in contract.outputs],
    }


def _config(spec: TensorSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "data_type": f"TYPE_{datatype_of(spec)}",
        "dims": wire_shape(spec),
    }
