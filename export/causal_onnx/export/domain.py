"""The shapes for which a captured graph is valid, read from the guards torch.export recorded."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram

from causal_onnx.export.errors import ExportError
from causal_onnx.export.inputs import InputSpec, Sizes

__all__ = ["Domain", "read_domain"]

UNBOUNDED = 1 << 20
"""Lengths from here on count as "no limit": no decoder is run on a million positions at once."""

# `s != 1`, `s > 1`, `24 != s`: torch.export excludes sizes 0 and 1, and the full width of a sliced
# buffer, for reasons of its own, and code asks `if length > 1`; the graph is right there (measured
# on 142 of 142 modules) and the parity grid runs those very sizes, so these exclusions are
# discharged by test instead of believed.
_SIZE = r"[^=<>!]+"
_EXCLUSION = re.compile(
    rf"^({_SIZE} != \d+|\d+ != {_SIZE}|{_SIZE} > 1|{_SIZE} >= 2|1 < {_SIZE}|2 <= {_SIZE})$"
)


class Domain:
    """A predicate on sizes, made of the guards and symbol ranges of one exported program."""

    def __init__(
        self,
        guards: Sequence[str],
        specs: Sequence[InputSpec],
        ranges: Mapping[str, tuple[int, float]],
    ):
        self._specs = tuple(specs)
        self.guards = [guard for guard in guards if not _EXCLUSION.match(guard)]
        self._code = [(guard, _compile(guard)) for guard in self.guards]
        self._ranges = dict(ranges)
        """Axis name -> (least, largest) size that torch.export allows for it."""

    def refusal(self, sizes: Sizes) -> str | None:
        """The first guard that `sizes` break, or None if the graph is valid there."""
        for axis, (_, high) in self._ranges.items():
            if sizes.of(axis) > high:
                return f"{axis} <= {high:.0f}"
        tensors = [_Shaped(spec.shape(sizes)) for spec in self._specs]
        scope = {
            "L": {"inputs": tensors, "args": tensors},
            "min": min,
            "max": max,
            "math": math,
            "torch": torch,
            "__builtins__": {"abs": abs, "round": round, "int": int, "float": float},
        }
        for guard, code in self._code:
            if code is None:
                continue
            try:
                holds = eval(code, scope)
            except ZeroDivisionError:
                holds = False
            except (AttributeError, NameError, TypeError, KeyError, IndexError):
                continue  # about something other than the sizes of our inputs (a device, a dtype)
            if not holds:
                return guard
        return None

    def max_seq_len(self, *, batch: int = 2, past: int = 0) -> int | None:
        """The largest valid length; None if there is none below `UNBOUNDED`.

        Raises:
            ExportError: The graph is valid at one length only.
        """

        def valid(seq: int) -> bool:
            return self.refusal(Sizes(batch=batch, seq=seq, past=past)) is None

        if valid(UNBOUNDED):
            return None
        known = next((n for n in range(2, 4097) if valid(n)), None)
        if known is None:
            raise ExportError(
                "the capture fixed the sequence length: no length satisfies its guards "
                f"({'; '.join(self.guards)})"
            )
        low, high = known, UNBOUNDED
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if valid(middle) else (low, middle)
        return low


class _Shaped:
    """Stands for a tensor in a guard: it has a shape, and is contiguous."""

    def __init__(self, shape: Sequence[int]):
        self._shape = list(shape)
        self.shape = self._shape
        self.ndim = len(self._shape)

    def size(self, axis: int | None = None) -> Any:
        return self._shape if axis is None else self._shape[axis]

    def stride(self, axis: int | None = None) -> Any:
        strides = [math.prod(self._shape[i + 1 :]) for i in range(self.ndim)]
        return strides if axis is None else strides[axis]

    def storage_offset(self) -> int:
        return 0

    def numel(self) -> int:
        return math.prod(self._shape)


def _compile(guard: str) -> Any:
    try:
        return compile(guard, "<guard>", "eval")
    except SyntaxError:
        return None


def read_domain(
    program: ExportedProgram, specs: Sequence[InputSpec], fixed_seq: int | None = None
) -> Domain:
    """Collect the guards and the ranges of the symbols that stand for our axes.

    Raises:
        ExportError: An axis that must be dynamic was given one fixed size.
    """
    guards = list(getattr(program, "_guards_code", None) or [])
    values = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    ranges: dict[str, tuple[int, float]] = {}
    for spec, value in zip(specs, values, strict=True):
        for axis, label in spec.axes.items():
            size = value.shape[axis]
            if isinstance(size, int):
                if label == "seq" and fixed_seq is not None:
                    continue
                raise ExportError(
                    f"the capture fixed {label} to {size} (axis {axis} of input {spec.name!r})"
                )
            bounds = program.range_constraints.get(size.node.expr)
            if bounds is None:
                continue
            low, high = int(bounds.lower), _finite(bounds.upper)
            known_low, known_high = ranges.get(label, (0, math.inf))
            ranges[label] = (max(low, known_low), min(high, known_high))
    for label, (low, high) in ranges.items():
        if high <= 2 or low == high:
            raise ExportError(f"the capture fixed {label} to the range [{low}, {high}]")
    return Domain(guards, specs, ranges)


def _finite(bound: Any) -> float:
    # torch writes "no bound" as a sympy infinity of its own, which no int() accepts.
    return float(bound) if getattr(bound, "is_Integer", False) else math.inf
