"""config.pbtxt: the model as NVIDIA's Triton serves it.

Source: https://docs.nvidia.com/deeplearning/triton-inference-server, "Model Configuration", and
model_config.proto.
"""

from __future__ import annotations

from collections.abc import Sequence

from causal_onnx.runtime.artifact.folder import MODEL
from causal_onnx.runtime.contract import Contract, TensorSpec

__all__ = ["triton_config"]

_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


def triton_config(contract: Contract, *, backend: str = "onnxruntime") -> bytes:
    """The file's content; the model's name is that of the folder it will lie in.

    Args:
        contract: Of the model.
        backend: What of Triton's runs it: `"onnxruntime"`, or `"python"`, which runs
            `causal_onnx.runtime.triton`, where inputs may be left out.

    `max_batch_size` 0 means that shapes are given whole, the batch axis included, and that Triton
    joins no requests: it does not know that sequences of different lengths need padding.
    """
    by_python = backend == "python"
    head = (
        ['backend: "python"']
        if by_python
        else ['platform: "onnxruntime_onnx"', f'default_model_filename: "{MODEL}"']
    )
    optional = contract.optional_names if by_python else frozenset()
    lines = [
        *head,
        "max_batch_size: 0",
        *_tensors("input", contract.inputs, optional),
        *_tensors("output", contract.outputs),
    ]
    return ("\n".join(lines) + "\n").encode("ascii")


def _tensors(
    kind: str, specs: Sequence[TensorSpec], optional: frozenset[str] = frozenset()
) -> list[str]:
    blocks = []
    for spec in specs:
        dims = ", ".join(str(axis if isinstance(axis, int) else -1) for axis in spec.axes)
        more = " optional: true" if spec.name in optional else ""
        blocks.append(
            f'  {{ name: "{_quoted(spec.name)}" data_type: {_TYPES[spec.dtype]} dims: [ {dims} ]'
            f"{more} }}"
        )
    return [f"{kind} [", ",\n".join(blocks), "]"]


def _quoted(text: str) -> str:
    """As protobuf's text format escapes strings, which is C's way."""
    return "".join(
        chr(byte) if 32 <= byte < 127 and byte not in (34, 92) else f"\\{byte:03o}"
        for byte in text.encode()
    )
