"""What every value of a graph is: constant, position-only or tainted; and how its axes grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir

from causal_onnx.export.analysis.analyse import Analysis
from causal_onnx.export.analysis.elements import Array, Elements, Known
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.analysis.signature import Signature, Sizes, read_signature
from causal_onnx.export.errors import NotSupportedError

__all__ = ["Axis", "Layouts"]


FREE = 5
"""Of axes that are neither the batch nor positions."""


def probing_sizes(max_seq_len: int | None, symbols: Sequence[str]) -> tuple[Sizes, ...]:
    """Sizes that differ from each other and from usual widths, so that growth tells what counts.

    Args:
        max_seq_len: The longest sequence; None: any.
        symbols: Axes that are neither the batch nor positions. The size of each changes in one more
            choice, so that what grows with it is known.
    """
    seq, longer = (7, 11) if max_seq_len is None or max_seq_len >= 11 else (2, max_seq_len)
    if max_seq_len is not None and max_seq_len < 3:
        raise NotSupportedError(
            f"a length limit of {max_seq_len} is too short to analyse the graph"
        )
    other = tuple((name, FREE) for name in symbols)
    base = Sizes(batch=2, seq=seq, other=other)
    found = (base, replace(base, seq=longer), replace(base, batch=3))
    more = (tuple((name, FREE + (name == grown)) for name in symbols) for grown in symbols)
    return (*found, *(replace(base, other=one) for one in more))


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of `count * batch ** batches * seq ** seqs` entries; count 0: something else."""

    count: int
    batches: int = 0
    seqs: int = 0

    @property
    def is_fixed(self) -> bool:
        return self.count > 0 and not self.batches and not self.seqs

    @property
    def is_seq(self) -> bool:
        return self == Axis(1, 0, 1)

    def size(self, batch: int, seq: int) -> int:
        return int(self.count * batch**self.batches * seq**self.seqs)


class Layouts:
    """The class and the axes of each value, from the analysis at three choices of sizes.

    Of the graph as it was then; of a value that an edit makes there is what `note` was told.
    """

    def __init__(self, model: ir.Model, max_seq_len: int | None = None):
        self.model = model
        self.signature: Signature = read_signature(model)
        self.sizes = probing_sizes(max_seq_len, self.signature.symbols)
        self.analysis = Analysis(model, self.signature)
        self.analysis.runs += [self.analysis.follow(sizes) for sizes in self.sizes]
        self.base = self.analysis.runs[0]

    def is_tainted(self, value: ir.Value | None) -> bool:
        """Whether the value depends on the data of an input."""
        return value is not None and isinstance(self.base.values.get(value), Elements)

    def is_position_only(self, value: ir.Value | None) -> bool:
        """Whether the value depends on the inputs' shapes, and on nothing else of them."""
        known = None if value is None else self.base.values.get(value)
        return isinstance(known, Known) and not known.constant

    def constant(self, value: ir.Value | None) -> Known | None:
        """The value, if it is the same for all inputs of all shapes."""
        if value is None:
            return None
        found = self.base.values.get(value)
        if found is None and value.const_value is not None:
            return Known(value.const_value.numpy(), constant=True)
        return found if isinstance(found, Known) and found.constant else None

    def known(self, value: ir.Value | None) -> Array | None:
        """The value at the base sizes, if no data decides it."""
        found = None if value is None else self.base.values.get(value)
        if isinstance(found, Known):
            return found.value
        constant = self.constant(value)
        return None if constant is None else constant.value

    def at_two_lengths(self, value: ir.Value) -> tuple[Array, Array]:
        """The value at the base sizes, and at a greater length.

        Raises:
            NotSupportedError: Data decides it, or it could not be evaluated.
        """
        short, long = (found.values.get(value) for found in self.analysis.runs[:2])
        if not isinstance(short, Known) or not isinstance(long, Known):
            raise NotSupportedError(f"the value of {value.name} was not found by the analysis")
        return short.value, long.value

    def scalar(self, value: ir.Value | None) -> float | None:
        """The number that a constant of one element holds."""
        known = self.constant(value)
        return float(known.value.reshape(-1)[0]) if known is not None and known.size == 1 else None

    def axes(self, value: ir.Value) -> tuple[Axis, ...]:
        """How each axis of `value` grows with the batch and the length."""
        if value.is_initializer() and value.const_value is not None:
            return tuple(Axis(int(str(n))) for n in value.const_value.shape)
        shapes = (_shape(found, value) for found in self.analysis.runs)
        return tuple(self._axis(seen) for seen in zip(*shapes, strict=True))

    def note(self, new: ir.Value, old: ir.Value) -> None:
        """Know of a value that a pass made what is known of another: they are equal."""
        for found in self.analysis.runs:
            found.values[new] = found.values[old]

    def width(self, value: ir.Value) -> int | None:
        """The size of the last axis, if it is fixed."""
        axes = self.axes(value)
        return axes[-1].count if axes and axes[-1].is_fixed else None

    def free_axis(self, value: ir.Value, axis: int) -> str | None:
        """Which free axis an axis of `value` is; None: it is none, or part of one."""
        usual, seen = FREE, [_shape(found, value)[axis] for found in self.analysis.runs]
        plain = len(self.sizes) - len(self.signature.symbols)
        grown = [
            symbol
            for symbol, size in zip(self.signature.symbols, seen[plain:], strict=True)
            if size == usual + 1
        ]
        others = [size for size in seen if size != usual]
        return grown[0] if len(grown) == len(others) == 1 else None

    def _axis(self, seen: tuple[int, ...]) -> Axis:
        for batches in (0, 1):
            for seqs in (0, 1, 2):
                unit = self.sizes[0].batch ** batches * self.sizes[0].seq ** seqs
                axis = Axis(seen[0] // unit, batches, seqs)
                if all(
                    axis.size(z.batch, z.seq) == n for z, n in zip(self.sizes, seen, strict=True)
                ):
                    return axis
        return Axis(0)


def _shape(found: Run, value: ir.Value) -> Sequence[int]:
    known = found.values.get(value)
    if not isinstance(known, Known | Elements):
        raise NotSupportedError(f"the shape of {value.name} was not found by the analysis")
    return known.shape
