"""What a profile found: the cost of each node, and sums by operator and by submodule."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["GroupCost", "NodeCost", "Profile"]

UNNAMED = "(no submodule)"


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
