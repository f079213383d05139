"""One graph with everything that was found out about it, for the passes that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.analysis.elements import VERY_NEGATIVE, Abstract, Elements, Known
from causal_onnx.export.analysis.interpret import (
    Constants,
    Run,
    SizesRefusedError,
    StuckError,
    run,
)
from causal_onnx.export.analysis.make_input import make_input
from causal_onnx.export.analysis.signature import CONTROL_ROLES, InputAxes, Signature, Sizes

__all__ = ["Analysis", "EditedError", "default_grid", "other_sizes", "plain_input"]

LENGTHS = (1, 2, 3, 5, 8, 13)
PASTS = (0, 1, 4)
MAX_LONGER = 96
"""Longest length at which every element is followed."""

LONGEST_TABLE = 256
"""Longest table that is followed to its end."""

MAX_UPSTREAM = 400
"""How many values are looked at for numbers, from the nearest on."""

LARGEST_NUMBER = 1 << 20
"""Numbers from here on are no lengths."""

OTHER_SIZE = 3
"""Of free axes that are neither batch nor positions."""


def other_sizes(model: ir.Model, signature: Signature) -> tuple[tuple[str, int], ...]:
    """Sizes for the free axes that are neither batch nor positions.

    Any will do for most; a free axis that is really a width (a cache whose head size was left open)
    must have the one that fits the weights, which is found by trying.
    """
    usual = tuple((name, OTHER_SIZE) for name in signature.symbols)
    if not usual:
        return ()
    dims = {
        dim
        for value in model.graph.initializers.values()
        if value.shape is not None
        for dim in value.shape
        if isinstance(dim, int)
    }
    heads = {attr(node, "num_heads", 1) for node in model.graph if "num_heads" in node.attributes}
    likely = {n for dim in dims for n in (dim, dim // 2, dim * 2)}
    likely |= {dim // n for dim in dims for n in heads if dim % n == 0}
    candidates = sorted(n for n in likely if 1 < n <= 1024)
    seq = signature.fixed_seq or 2
    control = tuple(spec for spec in signature.inputs if spec.role in CONTROL_ROLES)
    for size in (OTHER_SIZE, *candidates):
        other = tuple((name, size) for name in signature.symbols)
        past = 2 if signature.has_past else 0
        sizes = Sizes(batch=2, seq=seq, past_seq=past, other=other)
        try:
            Analysis(model, signature, plain=control).follow(sizes, blank=True)
        except SizesRefusedError:
            continue
        except StuckError:
            break
        return other
    return usual


def default_grid(
    signature: Signature,
    lengths: Sequence[int] | None = None,
    other: tuple[tuple[str, int], ...] | None = None,
) -> list[Sizes]:
    """The sizes to analyse at: each length without a past, the first few with one.

    Args:
        signature: Of the graph.
        lengths: Instead of the usual ones.
        other: What `other_sizes` found.
    """
    if other is None:
        other = tuple((name, OTHER_SIZE) for name in signature.symbols)
    batch = 2
    if signature.fixed_seq is not None:
        return [Sizes(batch=batch, seq=signature.fixed_seq, other=other, block=signature.block)]
    limit = signature.max_seq_len
    wanted = [n for n in (lengths or LENGTHS) if limit is None or n <= limit]
    grid = []
    if signature.block > 1:  # some that end within a block, and some at its end
        more = {n * signature.block + k for n in (1, 2, 3) for k in (-1, 0, 1)}
        wanted = sorted({*wanted, *(n for n in more if n > 0 and (limit is None or n <= limit))})
    # Beyond what a bounded cache keeps, too.
    beyond = [bound + 2 for bound in signature.slot_bounds if bound <= MAX_LONGER]
    for past in (*PASTS, *beyond) if signature.has_past else (0,):
        for n in wanted if past == 0 else wanted[:4]:
            if limit is None or past + n <= limit:
                grid.append(
                    Sizes(batch=batch, seq=n, past_seq=past, other=other, block=signature.block)
                )
    return grid


def plain_input(spec: InputAxes, sizes: Sizes) -> Known:
    """The value of a mask, of positions or of lengths for sequences without padding."""
    return Known(make_input(spec, sizes, np.random.default_rng(0), None))


class EditedError(RuntimeError):
    """A graph was edited after it was first followed: what is known of it may be wrong by now."""


@dataclass
class Analysis:
    """A graph, what its inputs are, and the runs over it.

    All is of the graph as it was in the beginning. Nodes may be added, and what is known of a value
    stays true; once a node of those days reads or does something else, no further run is made.
    """

    model: ir.Model
    """Without local functions."""
    signature: Signature
    constants: Constants = field(default_factory=Constants)
    runs: list[Run] = field(default_factory=list)
    """By positions, at several sizes; those that the graph takes."""
    plain: tuple[InputAxes, ...] = ()
    """Inputs that were taken as those of unpadded sequences."""
    branching: list[Sizes] = field(default_factory=list)
    """Sizes that were run for the sake of branches that the usual ones do not enter."""
    _extra: dict[tuple[str, Sizes], Run | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nodes = self.model.graph.all_nodes()
        self._nodes = [(node, node.inputs, [*node.attributes.values()]) for node in nodes]
        weights = self.model.graph.initializers.values()
        self._weights = [(value, value.const_value) for value in weights]

    def follow(
        self,
        sizes: Sizes,
        inputs: Mapping[str, Abstract] | None = None,
        *,
        step: Callable[[], None] | None = None,
        blank: bool = False,
    ) -> Run:
        """A run at `sizes`; the arguments and errors are those of `interpret.run`.

        Raises:
            EditedError: The graph is not the one that the other runs are of.
        """
        if any(
            node.inputs is not read or [*node.attributes.values()] != attributes
            for node, read, attributes in self._nodes
        ) or any(value.const_value is not tensor for value, tensor in self._weights):
            raise EditedError("the graph was edited: analyse it anew")
        known = {spec.name: plain_input(spec, sizes) for spec in self.plain}
        return run(
            self.model,
            self.signature,
            sizes,
            self.constants,
            inputs={**(inputs or {}), **known},
            step=step,
            blank=blank,
        )

    def probe_sizes(self) -> Sizes | None:
        """Sizes at which to look at layouts: small, batch 3, and like no other run."""
        if not self.runs:
            return None
        fixed = self.signature.fixed_seq is not None
        longest = max(self.runs, key=lambda r: (r.sizes.seq, r.sizes.past_seq)).sizes
        seq = longest.seq if fixed else min(5, longest.seq)
        past = max(r.sizes.past_seq for r in self.runs if r.sizes.seq >= min(seq, 2))
        return replace(longest, batch=3, seq=seq, past_seq=min(past, 4))

    def run_longer(self, ends: Sequence[int] = ()) -> int:
        """Add runs at longer lengths; how many the graph took.

        A length past each small whole number among the constants, as a mask may change there.

        Args:
            ends: Lengths at which tables in the graph end, if they are not too long.
        """
        base = max((r.sizes for r in self.runs), key=lambda s: s.seq)
        wanted = {17, 32, 33, 64}
        wanted.update(n + 1 for n in self.constants.small_numbers() if n < MAX_LONGER)
        wanted.update(n for n in ends if 0 < n <= LONGEST_TABLE)
        limit = self.signature.max_seq_len
        count = 0
        for n in sorted(wanted):
            if n <= base.seq or (limit is not None and n > limit):
                continue
            for past in {0, max(r.sizes.past_seq for r in self.runs)}:
                found = self.by_position(replace(base, seq=n, past_seq=past))
                if found is not None:
                    self.runs.append(found)
                    count += 1
        return count

    def numbers_behind(self, values: Iterable[ir.Value], *, widths: bool = False) -> Iterator[int]:
        """The magnitudes of whole numbers that stand alone upstream of `values`, as far as shapes.

        What is far below 0 is a score, not a length; so is what is as far from 0 and only scales a
        value (`-1e4 * (1 - mask)`): a mask that it makes has no turning point there. `widths`: and
        those of stored matrices.
        """
        todo = [(value, True) for value in values]
        done: set[tuple[ir.Value, bool]] = set()
        while todo and len(done) < MAX_UPSTREAM:
            value, scales = todo.pop()
            if (value, scales) in done:
                continue
            done.add((value, scales))
            known = self.constants.of(value)
            if known is not None:
                if known.size == 1 and known.value.dtype.kind in "iuf":
                    number = float(known.value.reshape(-1)[0])
                    is_score = known.value.dtype.kind == "f" and (
                        number <= VERY_NEGATIVE or (scales and number >= -VERY_NEGATIVE)
                    )
                    if number.is_integer() and abs(number) < LARGEST_NUMBER and not is_score:
                        yield abs(int(number))
                elif widths and len(known.shape) > 1 and known.shape[-2] > 1:
                    yield known.shape[-1]
                continue
            node = value.producer()
            if node is not None and node.op_type != "Shape":
                scales = scales and node.op_type in ("Mul", "Neg")
                todo.extend((v, scales) for v in node.inputs if v is not None)

    def by_position(self, sizes: Sizes) -> Run | None:
        """A run by positions at other sizes; None where the graph does not take them."""
        return self._run("position", sizes, None)

    def by_batch(self, sizes: Sizes, *, backwards: bool = False) -> Run | None:
        """A run in which reach counts rows of the batch instead of positions."""
        rows = np.arange(sizes.batch, dtype=np.int32)
        rows = rows[::-1] if backwards else rows
        inputs: dict[str, Abstract] = {}
        for spec in self.signature.inputs:
            shape = spec.shape(sizes)
            record = [1] * len(shape)
            reach = np.full(record, -1, np.int32)
            if "batch" in spec.axes:
                axis = spec.axes.index("batch")
                record[axis] = sizes.batch
                reach = rows.reshape(record)
            inputs[spec.name] = Elements(shape, reach)
        return self._run("batch backwards" if backwards else "batch", sizes, inputs)

    def blank(self, sizes: Sizes) -> Run | None:
        """A run that follows shapes and position-only values alone."""
        return self._run("blank", sizes, None, blank=True)

    def _run(
        self,
        kind: str,
        sizes: Sizes,
        inputs: dict[str, Abstract] | None,
        *,
        blank: bool = False,
    ) -> Run | None:
        key = (kind, sizes)
        if key not in self._extra:
            try:
                self._extra[key] = self.follow(sizes, inputs, blank=blank)
            except (SizesRefusedError, StuckError):
                self._extra[key] = None
        return self._extra[key]
