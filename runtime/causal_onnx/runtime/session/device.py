"""Name a device, and hold onnxruntime to it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from causal_onnx.runtime.errors import DeviceError

__all__ = ["Device", "nodes_off_device", "parse_device"]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_SHAPE_OPERATORS = """
    Abs Add And Cast Ceil Concat Constant ConstantOfShape Div Equal Expand Flatten Floor Gather
    Greater GreaterOrEqual Identity If Less LessOrEqual Max MemcpyFromHost MemcpyToHost Min Mod Mul
    Neg Not Or Pow Range ReduceMax ReduceMin ReduceProd ReduceSum Reshape ScatterElements ScatterND
    Shape Sign Size Slice Split Sqrt Squeeze Sub Tile Transpose Trilu Unsqueeze Where
"""
SHAPE_OPERATORS = frozenset(_SHAPE_OPERATORS.split())
"""What onnxruntime moves to the CPU on purpose: the arithmetic on shapes, whose results the GPU's
kernels want in host memory anyway. It names the operators of the nodes it placed, not the types of
their tensors, so the operators decide: each of these has CUDA kernels for the floating-point types
that data comes in, and is on the CPU only where it computes with shapes. Anything else there
(GroupQueryAttention in fp32, for one) is work that the GPU was asked for and cannot do."""


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of device and which one of them."""

    kind: str
    index: int = 0

    @property
    def provider(self) -> str:
        """What onnxruntime calls this kind."""
        return PROVIDERS[self.kind]

    def __str__(self) -> str:
        return self.kind if self.kind == "cpu" else f"{self.kind}:{self.index}"


def parse_device(text: str) -> Device | None:
    """Read "cpu", "cuda", "cuda:1" or "auto"; None stands for "auto".

    Raises:
        ValueError: Anything else.
    """
    if text == "auto":
        return None
    match = re.fullmatch(r"(cpu)|cuda(?::(\d{1,3}))?", text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f'device must be "cpu", "cuda", "cuda:N" or "auto", got {text!r}')
    return Device("cpu") if match[1] else Device("cuda", int(match[2] or 0))


def nodes_off_device(assignment: Iterable[Any], device: Device) -> list[str]:
    """The nodes that onnxruntime placed on another provider, apart from arithmetic on shapes.

    Args:
        assignment: What `InferenceSession.get_provider_graph_assignment_info()` gives.
        device: Where the session was asked to run.

    Returns:
        One text per node, `operator` or `operator (name)`, in the order of the graph.
    """
    off = []
    for part in assignment:
        if part.ep_name == device.provider:
            continue
        for node in part.get_nodes():
            if node.domain not in ("", "ai.onnx") or node.op_type not in SHAPE_OPERATORS:
                off.append(f"{node.op_type} ({node.name})" if node.name else node.op_type)
    return off


def missing_provider(device: Device, offered: Iterable[str]) -> DeviceError:
    """The error for a device whose provider this onnxruntime was built without."""
    return DeviceError(
        f"device='{device}' was requested, but this onnxruntime offers only "
        f"{', '.join(offered)}. Install the GPU build in place of it: "
        "pip uninstall -y onnxruntime && pip install 'causal-onnx[gpu]'"
    )
