"""What a profile found: the cost of each node, and sums by operator and by submodule."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from causal_onnx.runtime.profile.events import Event
from causal_onnx.runtime.profile.graph import GraphNode, Stored

__all__ = ["GroupCost", "NodeCost", "Profile", "weight_bytes"]

UNNAMED = "(no submodule)"

SELECTING = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})
"""They read of their first input what they give, not all of it."""
UNREAD = frozenset({"Shape", "Size", "If", "Loop", "Scan"})
ROTARY_TABLES = (7, 8)
"""Inputs of GroupQueryAttention, of which each position reads a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeCost:
    """One node, or what onnxruntime made of it."""

    name: str
    op_type: str
    module: str
    """The submodule it comes from, as PyTorch names it; empty where none is known."""
    provider: str
    calls: int
    """Executions in one call of the model; several in a loop."""
    time_us: float
    """By itself, all executions of one call together: the median over the calls."""
    share: float
    """Of the time of all nodes."""
    shapes: str
    """Of the inputs and outputs of its last execution, weights that were packed left out."""
    flops: int
    """Operations of its matrix products in one call; 0 for all else."""
    weight_bytes: int
    """Bytes of constants that it reads in one call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupCost:
    """Nodes that have something in common."""

    name: str
    nodes: int
    calls: int
    time_us: float
    share: float
    flops: int
    weight_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Where the time of one call goes."""

    model: str
    device: str
    threads: int
    batch: int
    seq: int
    past: int
    calls: int
    """How many were timed; every time here is a median over them."""
    wall_ms: float
    """Of one call from Python, without profiling."""
    cpu_ms: float
    """Processor time of all threads for it."""
    profiled_ms: float
    """Of one call within onnxruntime while it was profiled, which costs some time itself."""
    nodes: tuple[NodeCost, ...]
    """The costliest first."""
    cache_bytes: int
    """Keys and values that the past holds, which the call reads."""

    @property
    def kernels_ms(self) -> float:
        """Of all nodes; the rest of `profiled_ms` is spent between them."""
        return sum(node.time_us for node in self.nodes) / 1e3

    @property
    def flops(self) -> int:
        """Operations of all matrix products in one call."""
        return sum(node.flops for node in self.nodes)

    @property
    def weight_bytes(self) -> int:
        """Bytes of constants that one call reads; those that two nodes read count twice."""
        return sum(node.weight_bytes for node in self.nodes)

    def by_operator(self) -> list[GroupCost]:
        """Sums by operator, the costliest first."""
        return self._grouped(lambda node: node.op_type)

    def by_module(self) -> list[GroupCost]:
        """Sums by submodule, the costliest first; numbers in names are taken together as {i}."""
        return self._grouped(lambda node: re.sub(r"\d+", "{i}", node.module) or UNNAMED)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            **asdict(self),
            "kernels_ms": self.kernels_ms,
            "flops": self.flops,
            "weight_bytes": self.weight_bytes,
            "operators": [asdict(group) for group in self.by_operator()],
            "modules": [asdict(group) for group in self.by_module()],
        }

    def _grouped(self, key: Callable[[NodeCost], str]) -> list[GroupCost]:
        groups: dict[str, list[NodeCost]] = {}
        for node in self.nodes:
            groups.setdefault(key(node), []).append(node)
        costs = [
            GroupCost(
                name=name,
                nodes=len(nodes),
                calls=sum(node.calls for node in nodes),
                time_us=sum(node.time_us for node in nodes),
                share=sum(node.share for node in nodes),
                flops=sum(node.flops for node in nodes),
                weight_bytes=sum(node.weight_bytes for node in nodes),
            )
            for name, nodes in groups.items()
        ]
        return sorted(costs, key=lambda group: (-group.time_us, group.name))


def weight_bytes(event: Event, node: GraphNode | None) -> int:
    """Bytes of constants that one execution reads.

    They are counted as the file stores them, but for 16-bit floating point that is computed with
    as float32: onnxruntime then holds it as that. An embedding reads the rows that are asked for.
    """
    if node is None:
        return event.parameter_bytes
    if event.op_type in UNREAD:
        return 0
    is_wide = bool(event.outputs) and event.outputs[0].dtype == "float"
    sizes = {place: _held(stored, is_wide) for place, stored in node.constants.items()}
    if event.op_type in SELECTING and 0 in sizes and event.outputs:
        sizes[0] = min(sizes[0], event.outputs[0].size_bytes)
    elif event.op_type == "GatherBlockQuantized" and 1 not in sizes:
        # One row of each table (values, scales, zero points) for each index.
        rows, indices = event.inputs[0].shape[0], event.inputs[1].elements
        sizes = {place: size * min(rows, indices) // rows for place, size in sizes.items()}
    elif event.op_type == "GroupQueryAttention":
        for place in ROTARY_TABLES:
            stored = node.constants.get(place)
            if stored is not None and stored.shape:
                rows, positions = stored.shape[0], event.inputs[0].shape[1]
                sizes[place] = sizes[place] * min(rows, positions) // rows
    return sum(sizes.values())


def _held(stored: Stored, is_wide: bool) -> int:
    return stored.size_bytes * 2 if stored.is_half and is_wide else stored.size_bytes
