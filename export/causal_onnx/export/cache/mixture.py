"""Sums over the past whose weights are products of decays: linear attention, retention, SSD.

    out[i] = sum over j <= i of row[i] * decay[i, j] * column[j]

where the decay from j to i is that from j to t times that from t to i. The sum up to a position t
is then all that later positions need of the past: `out[i] = row[i] * decay[i, t] * sum[t]` and what
the new positions add. The factors may have any other axes; products of matrices sum over some.

The factors are read from the graph. That the decays multiply is an identity between functions that
are analytic in the data, with masks that positions alone decide: it is tried on random numbers,
where it would fail if it did not hold everywhere, and at a length that no constant of the graph
tells from a longer one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.analysis.elements import Array
from causal_onnx.export.analysis.rules.contraction import equation_terms
from causal_onnx.export.cache.region import Region
from causal_onnx.export.cache.spans import BATCH, Spans, own_axis
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.facts import Axis, Layouts
from causal_onnx.export.graph.subgraphs import outer_values

__all__ = ["Decay", "Factor", "Labels", "Mixture", "find_mixture", "spread"]

Labels = tuple[str, ...]
"""A letter for each axis, "" where it has one entry: `b` the batch, `i` and `j` the positions."""

_ROW, _COLUMN, _ROWS = "i", "j", "b"
_LETTERS = "acdefghklmnopqrtuvwxyz"

_SINGLE = Axis(1)

_ANALYTIC = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Neg", "Exp", "Log", "Sigmoid", "Tanh", "Softplus", "Sqrt",
        "Reciprocal", "CumSum", "CumProd", "Transpose", "Unsqueeze", "Squeeze", "Identity", "Cast",
        "Expand", "Reshape", "Slice", "Concat", "Trilu", "Where",
    }
)  # fmt: skip
"""Operators whose results are analytic in the data that they read."""

_BY_DATA = {"Where": (1, 2), "Slice": (0,)}
"""Which inputs data may decide, of operators whose others say which entries are taken."""

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)

_MOST = 1 << 24
"""Entries of decays at most when they are tried."""

_TOLERANCES = {"float16": 3e-2}

_ENDLESS = 1e9
"""From here on a constant stands for no end, or for no weight, and not for a place."""


class _OtherFormError(Exception):
    """The value is no such sum."""


@dataclass(frozen=True)
class Factor:
    """A value that enters the product, or its reciprocal."""

    value: ir.Value
    labels: Labels
    is_inverse: bool = False


@dataclass(frozen=True)
class Decay(Factor):
    """A factor that belongs to two positions, `i` and `j`."""

    region: Region | None = None
    """What leads to it."""
    keeps: bool | None = None
    """For a condition: which value of it keeps the product; the other one makes it zero."""


@dataclass(frozen=True)
class Mixture:
    """The factors of such a sum."""

    output: Labels
    rows: tuple[Factor, ...]
    """Of the result's position, or of none."""
    columns: tuple[Factor, ...]
    decays: tuple[Decay, ...]
    remembered: tuple[ir.Value, ...]
    """The sources of which the last position goes into the next decay."""
    sizes: Mapping[str, int]
    """Of the labels that are neither the batch nor positions."""
    has_batch: bool
    is_lower: bool
    """Later positions are cut off beside what the decays say."""

    @property
    def shared(self) -> str:
        """The labels of the decays that are not the batch nor positions."""
        return _joined(self.decays, without=_ROWS + _ROW + _COLUMN)

    @property
    def kept(self) -> str:
        """The labels of the sum that goes from call to call, beside the batch."""
        wanted = {*self.output, *_joined(self.rows, without="")}
        both = dict.fromkeys(self.shared + _joined(self.columns, without=_ROWS + _COLUMN))
        return "".join(x for x in both if x in wanted or x in self.shared)

    @property
    def sources(self) -> tuple[ir.Value, ...]:
        """What the decays are computed from."""
        found = (x for decay in self.decays if decay.region for x in decay.region.sources)
        return tuple(dict.fromkeys(found))


def find_mixture(region: Region, spans: Spans, *, max_seq_len: int | None) -> Mixture | None:
    """The factors of the region's output, if it is such a sum."""
    try:
        walk = _Walk(region, spans)
        mixture = walk.mixture()
        remembered = _Trials(mixture, region, max_seq_len).remembered()
    except (_OtherFormError, NotSupportedError):
        return None
    return replace(mixture, remembered=remembered)


class _Walk:
    """Follows a value back to its factors; each axis has a letter on the way."""

    def __init__(self, region: Region, spans: Spans):
        self._region, self._spans, self._layouts = region, spans, region.layouts
        self._inside = set(region.nodes)
        self._letters = iter(_LETTERS)
        self._sizes: dict[str, int] = {}
        self._factors: list[Factor] = []
        self._conditions: list[tuple[ir.Value, Labels, bool]] = []
        self._summed: list[str] = []
        self._is_lower = False
        self._output = self._labels_of(region.output, _ROW)
        self._walk(region.output, self._output)

    def _labels_of(self, value: ir.Value, seq: str) -> Labels:
        return tuple(self._label(axis, seq) for axis in self._layouts.axes(value))

    def _label(self, axis: Axis, seq: str) -> str:
        if axis == _SINGLE:
            return ""
        if axis.is_seq:
            return seq
        if axis == BATCH:
            return _ROWS
        if not axis.is_fixed:
            raise _OtherFormError
        letter = next(self._letters, None)
        if letter is None:
            raise _OtherFormError
        self._sizes[letter] = axis.count
        return letter

    def _summed_label(self, axis: Axis) -> str:
        """A new letter for an axis that is summed over."""
        if axis.is_seq and _COLUMN in self._summed:
            raise _OtherFormError
        label = self._label(axis, _COLUMN)
        if label == _ROWS:
            raise _OtherFormError
        self._summed += [label] if label else []
        return label

    def _aligned(self, value: ir.Value, labels: Labels) -> Labels:
        """The letters of an operand that is broadcast to a value with these."""
        axes = self._layouts.axes(value)
        own = labels[len(labels) - len(axes) :]
        return tuple("" if a == _SINGLE else x for a, x in zip(axes, own, strict=True))

    def _walk(self, value: ir.Value, labels: Labels) -> None:
        node = value.producer()
        if not self._layouts.is_tainted(value) or self._is_single(value) or node is None:
            self._factors.append(Factor(value, labels))
            return
        inside = node in self._inside and not node.domain and len(node.outputs) == 1
        follow = getattr(self, f"_{node.op_type.lower()}", None) if inside else None
        operands = None if follow is None else follow(node, labels)
        if operands is None:
            self._factors.append(Factor(value, labels))
            return
        for operand, own in operands:
            self._walk(operand, own)

    def _is_single(self, value: ir.Value) -> bool:
        """Whether each entry of the value belongs to one position, which is its own."""
        spans = self._spans
        if spans.is_free(value):
            return True
        return spans.reach_back(value) == (0, 0) and not spans.mixes(value)

    def _mul(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]]:
        return [(x, self._aligned(x, labels)) for x in node.inputs if x is not None]

    def _div(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]]:
        above, below = node.inputs
        assert above is not None
        assert below is not None
        self._factors.append(Factor(below, self._aligned(below, labels), is_inverse=True))
        return [(above, self._aligned(above, labels))]

    def _where(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]] | None:
        condition, yes, no = node.inputs
        assert condition is not None
        for kept, other, keeps in ((yes, no, True), (no, yes, False)):
            known = self._layouts.constant(other)
            if kept is not None and known is not None and not known.value.any():
                own = self._aligned(condition, labels)
                self._conditions.append((condition, own, keeps))
                return [(kept, self._aligned(kept, labels))]
        return None

    def _trilu(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]] | None:
        given = node.inputs[1] if len(node.inputs) > 1 else None
        known = self._layouts.constant(given)
        is_diagonal = given is None or (known is not None and not known.value.any())
        lower = (_COLUMN, _ROW) if attr(node, "upper", 1) else (_ROW, _COLUMN)
        if not is_diagonal or labels[-2:] != lower:
            return None
        value = node.inputs[0]
        assert value is not None
        self._is_lower = True
        return [(value, labels)]

    def _identity(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]]:
        return [(node.inputs[0], labels)] if node.inputs[0] is not None else []

    def _cast(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]] | None:
        value = node.inputs[0]
        same = value is not None and value.dtype == node.outputs[0].dtype
        return [(value, labels)] if same and value is not None else None

    def _expand(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]]:
        value = node.inputs[0]
        assert value is not None
        return [(value, self._aligned(value, labels))]

    def _transpose(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]]:
        value = node.inputs[0]
        assert value is not None
        order = attr(node, "perm") or list(range(len(labels)))[::-1]
        return [(value, tuple(labels[list(order).index(n)] for n in range(len(labels))))]

    def _unsqueeze(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]] | None:
        value, axes = node.inputs[0], self._axes(node, len(labels))
        if axes is None or value is None:
            return None
        return [(value, tuple(x for n, x in enumerate(labels) if n not in axes))]

    def _squeeze(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]] | None:
        value = node.inputs[0]
        axes = None if value is None else self._axes(node, len(self._layouts.axes(value)))
        if axes is None or value is None:
            return None
        rest = iter(labels)
        count = len(self._layouts.axes(value))
        return [(value, tuple("" if n in axes else next(rest) for n in range(count)))]

    def _reducesum(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]] | None:
        value = node.inputs[0]
        axes = None if value is None else self._axes(node, len(self._layouts.axes(value)))
        if axes is None or value is None:
            return None
        rest = iter(labels)
        own = []
        for n, axis in enumerate(self._layouts.axes(value)):
            label = next(rest) if n not in axes or attr(node, "keepdims", 1) else ""
            own.append(self._summed_label(axis) if n in axes else label)
        return [(value, tuple(own))]

    def _axes(self, node: ir.Node, rank: int) -> set[int] | None:
        known = self._layouts.constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return None if known is None else {int(n) % rank for n in known.value.reshape(-1)}

    def _matmul(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]] | None:
        a, b = node.inputs
        assert a is not None
        assert b is not None
        left, right = self._layouts.axes(a), self._layouts.axes(b)
        if len(left) < 2 or len(right) < 2:
            return None
        between = self._summed_label(left[-1])
        return [
            (a, self._aligned(a, (*labels[:-1], between))),
            (b, self._aligned(b, (*labels[:-2], between, labels[-1]))),
        ]

    def _einsum(self, node: ir.Node, labels: Labels) -> list[tuple[ir.Value, Labels]] | None:
        values = [x for x in node.inputs if x is not None]
        shapes = [self._layouts.axes(x) for x in values]
        terms, out = equation_terms(attr(node, "equation"), [len(x) for x in shapes])
        if any(len(set(term)) < len(term) for term in (*terms, out)):
            return None
        names = dict(zip(out, labels, strict=True))
        for term, shape in zip(terms, shapes, strict=True):
            for letter, axis in zip(term, shape, strict=True):
                if letter not in names and axis != _SINGLE:
                    names[letter] = self._summed_label(axis)
        return [
            (x, tuple("" if a == _SINGLE else names[n] for n, a in zip(term, shape, strict=True)))
            for x, term, shape in zip(values, terms, shapes, strict=True)
        ]

    def mixture(self) -> Mixture:
        """What was found.

        Raises:
            _OtherFormError: It is no such sum.
        """
        rows, columns, decays = list[Factor](), list[Factor](), list[Decay]()
        for factor in self._factors:
            is_row, is_column = _ROW in factor.labels, _COLUMN in factor.labels
            if is_row and is_column:
                decays.append(self._decay(factor.value, factor.labels, None))
                if factor.is_inverse:
                    raise _OtherFormError
                continue
            if (is_row or is_column) and not self._layouts.is_tainted(factor.value):
                raise _OtherFormError  # the place of a position is not that of a new one
            if not self._is_single(factor.value) and self._layouts.is_tainted(factor.value):
                raise _OtherFormError
            (columns if is_column else rows).append(factor)
        decays += [self._decay(*condition) for condition in self._conditions]
        used = {x for factor in (*rows, *columns, *decays) for x in factor.labels}
        has_batch = self._layouts.signature.has_batch
        wanted = {*self._output, *self._summed, _COLUMN, *([_ROWS] if has_batch else [])} - {""}
        if _COLUMN not in self._summed or not wanted <= used:
            raise _OtherFormError
        if not decays and not self._is_lower:
            raise _OtherFormError
        if has_batch and not any(_ROWS in factor.labels for factor in (*columns, *decays)):
            raise _OtherFormError
        return Mixture(
            output=self._output,
            rows=tuple(rows),
            columns=tuple(columns),
            decays=tuple(decays),
            remembered=(),
            sizes=self._sizes,
            has_batch=has_batch,
            is_lower=self._is_lower,
        )

    def _decay(self, value: ir.Value, labels: Labels, keeps: bool | None) -> Decay:
        if keeps is not None and self._layouts.is_tainted(value):
            raise _OtherFormError
        region = _part(self._region, value)
        for node in region.nodes if region else ():
            if any(self._layouts.is_tainted(out) for out in node.outputs):
                self._refuse_other_than_analytic(node)
        return Decay(value, labels, region=region, keeps=keeps)

    def _refuse_other_than_analytic(self, node: ir.Node) -> None:
        places = _BY_DATA.get(node.op_type, range(len(node.inputs)))
        data = [place for place, x in enumerate(node.inputs) if self._layouts.is_tainted(x)]
        if node.domain or node.op_type not in _ANALYTIC or not set(data) <= set(places):
            raise _OtherFormError
        if node.op_type == "Cast" and attr(node, "to") not in {int(x) for x in _FLOATS}:
            raise _OtherFormError


def _part(region: Region, value: ir.Value) -> Region | None:
    """What of the region leads to one of its values; None: nothing, it is a constant."""
    if value.producer() is None and value not in region.sources:
        return None
    inside, own, found = set(region.nodes), set(region.shapes), set[ir.Node]()
    read, stack = {value}, [value]
    while stack:
        current = stack.pop()
        node = current.producer()
        if current in region.sources or node not in inside | own or node in found:
            continue
        assert node is not None
        found.add(node)
        before = [] if node in own else [*node.inputs, *outer_values(node)]
        read.update(x for x in before if x is not None)
        stack += [x for x in before if x is not None]
    return replace(
        region,
        output=value,
        sources=tuple(x for x in region.sources if x in read),
        free=tuple(x for x in region.free if x in read),
        nodes=tuple(node for node in region.nodes if node in found),
        shapes=tuple(node for node in region.shapes if node in found),
    )


def _joined(factors: Sequence[Factor], without: str) -> str:
    labels = itertools.chain.from_iterable(factor.labels for factor in factors)
    return "".join(x for x in dict.fromkeys(labels) if x and x not in without)


class _Trials:
    """The decays evaluated on random numbers, and on parts of them."""

    def __init__(self, mixture: Mixture, region: Region, max_seq_len: int | None):
        self._mixture, self._layouts = mixture, region.layouts
        self._order = _ROWS + mixture.shared + _ROW + _COLUMN
        self._seq = min(_telling_length(mixture, region.layouts), max_seq_len or _MOST)
        self._tolerance = 1e-3
        if self._seq < 5:
            raise _OtherFormError

    def remembered(self) -> tuple[ir.Value, ...]:
        """The sources whose value at a position enters the decay from there.

        Raises:
            _OtherFormError: The decays do not multiply, or look ahead.
        """
        needed: set[ir.Value] = set()
        for seed in (0, 1):
            arrays = self._samples(seed)
            whole = self._decays(self._seq, arrays)
            diagonal = np.diagonal(whole, axis1=-2, axis2=-1)
            if np.triu(whole, 1).any() or not np.allclose(diagonal, 1, atol=1e-6):
                raise _OtherFormError
            for start in (1, self._seq // 2, self._seq - 1):
                after = whole[..., start:, start:]
                part = self._decays(self._seq - start, self._from(arrays, start))
                before = whole[..., start : start + 1, : start + 1]
                both = after[..., :1] * before
                if not self._are_near(part, after) or not self._are_near(
                    both, whole[..., start:, : start + 1]
                ):
                    raise _OtherFormError
            for source in self._mixture.sources:
                other = {**arrays, source: self._changed(source, arrays[source])}
                if not self._are_near(self._decays(self._seq, other), whole):
                    needed.add(source)
        return tuple(source for source in self._mixture.sources if source in needed)

    def _samples(self, seed: int) -> dict[ir.Value, Array]:
        """Small numbers: their sums along the sequence are those of few positions."""
        generator = np.random.default_rng(seed)
        found: dict[ir.Value, Array] = {}
        regions = [decay.region for decay in self._mixture.decays if decay.region]
        for value in dict.fromkeys(x for r in regions for x in (*r.sources, *r.free)):
            shape = [
                axis.size(self._layouts.sizes[0].batch, self._seq)
                for axis in self._layouts.axes(value)
            ]
            if value.dtype not in _FLOATS:
                raise _OtherFormError
            is_bfloat16 = value.dtype == ir.DataType.BFLOAT16  # evaluated as float32
            dtype = np.dtype(np.float32) if is_bfloat16 else value.dtype.numpy()
            self._tolerance = max(self._tolerance, _TOLERANCES.get(dtype.name, 0.0))
            found[value] = (generator.normal(size=shape) / self._seq**0.5).astype(dtype)
        return found

    def _from(self, arrays: Mapping[ir.Value, Array], start: int) -> dict[ir.Value, Array]:
        sources = self._mixture.sources
        return {
            value: array.take(range(start, self._seq), self._axis(value))
            if value in sources
            else array
            for value, array in arrays.items()
        }

    def _axis(self, value: ir.Value) -> int:
        axis = own_axis(self._layouts, value)
        assert axis is not None
        return axis

    def _changed(self, value: ir.Value, array: Array) -> Array:
        place: list[slice | int] = [slice(None)] * array.ndim
        place[self._axis(value)] = 0
        other = array.copy()
        other[tuple(place)] += 0.5
        return other

    def _decays(self, seq: int, arrays: Mapping[ir.Value, Array]) -> Array:
        """(batch or 1, shared axes, to, from), of `seq` positions each."""
        total: Array = np.ones((), np.float32)
        conditions: list[Array] = []
        for decay in self._mixture.decays:
            region = decay.region
            if region is None:
                assert decay.value.const_value is not None
                found = decay.value.const_value.numpy()
            else:
                found = region.evaluate(seq, [arrays[x] for x in (*region.sources, *region.free)])
            found = spread(found, decay.labels, self._order)
            if decay.keeps is None:
                total = total * found.astype(np.float32)
            else:
                conditions.append(found == decay.keeps)
        for condition in conditions:
            total = np.where(condition, total, 0)
        if self._mixture.is_lower:
            lower = np.tril(np.ones((seq, seq), bool))
            total = np.where(lower, total, 0)
        if not np.isfinite(total).all():
            raise _OtherFormError
        return total

    def _are_near(self, part: Array, wanted: Array) -> bool:
        part, wanted = np.broadcast_arrays(part, wanted)
        return bool(np.allclose(part, wanted, rtol=self._tolerance, atol=self._tolerance / 1000))


def spread(array: Array, labels: Labels, order: str) -> Array:
    """The array with one axis for each letter of `order`, of one entry where it has none."""
    present = [n for n, x in enumerate(labels) if x]
    small = array.reshape([array.shape[n] for n in present])
    names = [labels[n] for n in present]
    moved = small.transpose([names.index(x) for x in order if x in names])
    sizes = iter(moved.shape)
    return moved.reshape([next(sizes) if x in names else 1 for x in order])


def _telling_length(mixture: Mixture, layouts: Layouts) -> int:
    """More positions than any constant that the decays are computed with can tell apart."""
    most = 1
    for decay in mixture.decays:
        nodes = () if decay.region is None else decay.region.nodes
        reads = [(node.op_type, n, x) for node in nodes for n, x in enumerate(node.inputs)]
        for op_type, place, value in [*reads, ("", 0, decay.value)]:
            known = layouts.constant(value)
            if known is None:
                continue
            most = max(most, *known.shape, 0)
            is_filled_in = op_type == "Where" and place > 0
            if known.value.dtype.kind in "iuf" and known.size and not is_filled_in:
                numbers = np.abs(known.value.astype(np.float64)).reshape(-1)
                most = max(most, *(int(np.ceil(x)) for x in numbers if x < _ENDLESS))
    length = 2 * most + 3
    fixed = int(np.prod([mixture.sizes[x] for x in mixture.shared])) * layouts.sizes[0].batch
    if fixed * length**2 > _MOST:
        raise _OtherFormError
    return length
