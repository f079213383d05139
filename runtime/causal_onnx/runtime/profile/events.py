"""Read the events that onnxruntime wrote while it was profiled.

Source: https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html. A node that
holds a graph (If, Loop, Scan) takes the time of the nodes in it, which have events of their own;
nesting is told by the times alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causal_onnx.runtime.errors import RunError

__all__ = ["Event", "ProfiledCall", "Tensor", "read_runs"]

HOLDERS = frozenset({"If", "Loop", "Scan"})

_SUFFIX = "_kernel_time"

_ITEM_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2,
    "float": 4, "int32": 4, "uint32": 4, "double": 8, "int64": 8, "uint64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """Type and shape of an input or an output, as onnxruntime names them."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.elements * _ITEM_BYTES.get(self.dtype, 0)

    def __str__(self) -> str:
        return f"{self.dtype}({', '.join(str(size) for size in self.shape)})"


@dataclass(kw_only=True, slots=True)
class Event:
    """One execution of one node."""

    name: str
    op_type: str
    provider: str
    start_us: int
    total_us: int
    """The nodes of its graphs included."""
    inputs: tuple[Tensor, ...]
    """Without those that are left out, and without weights that were packed for the kernel."""
    outputs: tuple[Tensor, ...]
    parameter_bytes: int
    """Of its constants, without packed ones."""
    self_us: int = 0
    parent: Event | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfiledCall:
    """One call of the session."""

    total_us: int
    events: tuple[Event, ...]
    """In the order of their starts, a holder before what is in it."""


def read_runs(path: Path) -> list[ProfiledCall]:
    """Read a profile, one `ProfiledCall` per call, in order.

    Raises:
        RunError: It is no profile of onnxruntime's.
    """
    try:
        items = json.loads(path.read_text(encoding="utf-8"))
        calls = sorted(
            (item["ts"], item["dur"]) for item in items if item.get("name") == "model_run"
        )
        events = [
            _event(item)
            for item in items
            if item.get("cat") == "Node" and item["name"].endswith(_SUFFIX)
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"onnxruntime's profile cannot be read: {error!r}") from error
    # A holder is written behind what is in it, and may start and end in the same microsecond.
    events.sort(key=lambda event: (event.start_us, -event.total_us, event.op_type not in HOLDERS))
    runs, at = [], 0
    for start, duration in calls:
        while at < len(events) and events[at].start_us < start:
            at += 1
        first = at
        while at < len(events) and events[at].start_us <= start + duration:
            at += 1
        chosen = events[first:at]
        _nest(chosen)
        runs.append(ProfiledCall(total_us=duration, events=tuple(chosen)))
    return runs


def _event(item: Mapping[str, Any]) -> Event:
    args = item["args"]
    return Event(
        name=item["name"].removesuffix(_SUFFIX),
        op_type=args["op_name"],
        provider=args.get("provider", ""),
        start_us=int(item["ts"]),
        total_us=int(item["dur"]),
        inputs=_tensors(args.get("input_type_shape", [])),
        outputs=_tensors(args.get("output_type_shape", [])),
        parameter_bytes=int(args.get("parameter_size", 0)),
    )


def _tensors(items: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(dtype, tuple(int(size) for size in shape))
        for item in items
        for dtype, shape in item.items()
    )


def _nest(events: Sequence[Event]) -> None:
    """Set the parents of events sorted by start, and the time each takes by itself."""
    holders: list[Event] = []
    for event in events:
        event.self_us = event.total_us
        end = event.start_us + event.total_us
        while holders and end > holders[-1].start_us + holders[-1].total_us:
            holders.pop()
        if holders:
            event.parent = holders[-1]
            holders[-1].self_us = max(0, holders[-1].self_us - event.total_us)
        if event.op_type in HOLDERS:
            holders.append(event)
