"""Symbolic rules of operators that move elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.proof.symbolic.expression import (
    UNKNOWN,
    Apply,
    AtLeastZero,
    Constant,
    Expression,
    Select,
    as_poly,
    linear,
    substitute,
)
from causal_onnx.export.proof.symbolic.implication import Operation, conclude
from causal_onnx.export.proof.symbolic.poly import ONE, ZERO, Poly, symbol
from causal_onnx.export.proof.symbolic.registry import (
    Given,
    SymbolicContext,
    ints,
    numbers,
    optional,
    rule,
    tensor,
    whole,
)
from causal_onnx.export.proof.symbolic.tensor import OpenError, Space, Symbolic, Term

FAR = 1 << 30
"""Bounds of a Slice beyond this mean "to the end"."""


def axis_of(axis: int, rank: int) -> int:
    return axis + rank if axis < 0 else axis


@rule("Identity")
def identity(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Unchanged."""
    return [tensor(inputs, 0)]


@rule("Dropout")
def dropout(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Unchanged in inference."""
    training = optional(inputs, 2)
    if training is not None and training.value != Constant(0.0):
        raise OpenError("it draws random numbers")
    first = tensor(inputs, 0)
    return [first, Symbolic(first.axes)][: len(node.outputs)]


@rule("Transpose")
def transpose(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Axes in another order."""
    first = tensor(inputs, 0)
    perm = attr(node, "perm") or list(range(first.rank))[::-1]
    return [replace(first, axes=tuple(first.axes[i] for i in perm), ints=None)]


@rule("Reshape")
def reshape(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """The same elements in another shape."""
    first = tensor(inputs, 0)
    goal = list(ints(inputs, 1) or ())
    shape = ctx.space.shape(first)
    if not attr(node, "allowzero", 0):
        goal = [shape[i] if size == 0 else size for i, size in enumerate(goal)]
    open_axes = [i for i, size in enumerate(goal) if size == -1]
    if open_axes:
        total, rest = ONE, ONE
        for size in shape:
            total = total * size
        for i, size in enumerate(goal):
            if i not in open_axes:
                rest = rest * size
        quotient = total.divided_by(rest)
        if quotient is None:
            raise OpenError(f"{shape!r} does not divide into {goal!r}")
        goal[open_axes[0]] = quotient
    return [_kept_ints(first, ctx.space.regroup(first, goal))]


def _kept_ints(before: Symbolic, after: Symbolic) -> Symbolic:
    """Numbers survive a change between scalar and vector."""
    if before.ints is not None and after.rank <= 1:
        return replace(after, ints=before.ints)
    return after


@rule("Flatten")
def flatten(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Two axes."""
    first = tensor(inputs, 0)
    axis = axis_of(attr(node, "axis", 1), first.rank)
    rows = tuple(n for own in first.axes[:axis] for n in own)
    columns = tuple(n for own in first.axes[axis:] for n in own)
    return [replace(first, axes=(rows, columns), ints=None)]


def _axes(node: ir.Node, inputs: Sequence[Given]) -> list[int] | None:
    given = numbers(inputs, 1)
    return list(attr(node, "axes") or ()) or None if given is None else given


@rule("Squeeze")
def squeeze(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Without axes of size 1."""
    first = tensor(inputs, 0)
    axes = _axes(node, inputs)
    if axes is None:
        gone = {i for i, own in enumerate(first.axes) if not own}
        if any(ctx.space.size(own).constant is None for own in first.axes):
            raise OpenError("which axes it drops depends on the sizes")
    else:
        gone = {axis_of(axis, first.rank) for axis in axes}
    if any(first.axes[axis] for axis in gone):
        raise OpenError("it drops an axis that is not of size 1 for all sizes")
    kept = tuple(own for i, own in enumerate(first.axes) if i not in gone)
    return [_kept_ints(first, replace(first, axes=kept, ints=None))]


@rule("Unsqueeze")
def unsqueeze(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """New axes of size 1."""
    first = tensor(inputs, 0)
    axes = _axes(node, inputs) or []
    rank = first.rank + len(axes)
    new = {axis_of(axis, rank) for axis in axes}
    old = iter(first.axes)
    made = tuple(() if i in new else next(old) for i in range(rank))
    return [_kept_ints(first, replace(first, axes=made, ints=None))]


@rule("Expand")
def expand(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Broadcast to a shape."""
    goal = ints(inputs, 1) or ()
    return [expand_to(ctx.space, tensor(inputs, 0), goal)]


def expand_to(space: Space, first: Symbolic, goal: Sequence[Poly]) -> Symbolic:
    """The tensor broadcast to (at least) the shape."""
    rank = max(first.rank, len(goal))
    axes = [()] * (rank - first.rank) + list(first.axes)
    sizes = [ONE] * (rank - len(goal)) + list(goal)
    made: list[tuple[str, ...]] = []
    for own, size in zip(axes, sizes, strict=True):
        if size == 1 or space.size(own) == size:
            made.append(own)
        elif not own:
            made.append(space.axis(size))
        else:
            raise OpenError(f"sizes {space.size(own)!r} and {size!r} meet")
    return replace(first, axes=tuple(made), ints=None)


@rule("Tile")
def tile(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Copies one after the other along the axes."""
    first = tensor(inputs, 0)
    repeats = ints(inputs, 1) or ()
    axes = tuple(
        own if count == 1 else (*ctx.space.axis(count), *own)
        for own, count in zip(first.axes, repeats, strict=True)
    )
    return [replace(first, axes=axes, ints=None)]


@rule("Slice")
def slice_(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Parts of axes."""
    first = tensor(inputs, 0)
    starts, ends = ints(inputs, 1), ints(inputs, 2)
    if starts is None or ends is None:
        starts = tuple(Poly.of(x) for x in attr(node, "starts", ()))
        ends = tuple(Poly.of(x) for x in attr(node, "ends", ()))
    axes = numbers(inputs, 3)
    if axes is None:
        axes = attr(node, "axes") or list(range(len(starts)))
    steps = numbers(inputs, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first = cut(ctx, node, first, axis_of(axis, first.rank), start, end=end, step=step)
    return [first]


def cut(
    ctx: SymbolicContext,
    node: ir.Node,
    first: Symbolic,
    axis: int,
    start: Poly,
    *,
    end: Poly,
    step: int = 1,
) -> Symbolic:
    """start:end:step of one axis, with ONNX's clamping."""
    space = ctx.space
    size = space.size(first.axes[axis])
    if step == -1:
        if (
            not (_at_least(start, size - 1) or start == -1)
            or end.constant is None
            or (end.constant > -FAR)
        ):
            raise OpenError("it reverses part of an axis")
        return _flip(space, first, axis)
    if step != 1:
        return _every(space, first, axis, (start, end), step)
    begin = _bound(ctx, node, start, size)
    stop = _bound(ctx, node, end, size)
    if first.rank == 1 and first.ints is not None and size.constant is not None:
        part = first.ints[whole(begin) : whole(stop)]
        return Symbolic((space.axis(Poly.of(len(part))),), ints=part, known=first.known)
    if begin == 0 and stop == size:
        return first
    length = stop - begin
    if not space.nonnegative(length):
        raise OpenError(f"it takes {begin!r} to {stop!r}")
    first, index = space.single(first, axis)
    made = space.axis(length)
    moved = first
    if index != ZERO:
        place = (symbol(made[0]) if made else ZERO) + begin
        space.stays_within(place, size)
        (name,) = index.variables()
        moved = first.subs({name: place})
    axes = (*first.axes[:axis], made, *first.axes[axis + 1 :])
    return replace(moved, axes=axes, ints=None)


def _every(
    space: Space, first: Symbolic, axis: int, limits: tuple[Poly, Poly], step: int
) -> Symbolic:
    """Every step-th element from a fixed start to the end of an axis."""
    start, end = (limit.constant for limit in limits)
    size = space.size(first.axes[axis])
    if start is None or end is None or not 0 <= start < step or end < FAR:
        if size.constant is None or end is None:
            raise OpenError(f"it takes every {step}th element between bounds")
        if start is None or not 0 <= start < step or end < size.constant:
            raise OpenError(f"it takes every {step}th element between bounds")
    # ceil((size - start) / step) elements: exact where (size - start + extra) divides.
    count = None
    for extra in range(step):
        if size.constant is not None and (size.constant - start + extra) % step:
            continue
        count = (size - start + extra).divided_by(step)
        if count is not None:
            break
    if count is None:
        raise OpenError(f"it takes every {step}th element of {size!r}")
    counted(space, "CeilDiv", (size - start, step), count)
    first, index = space.single(first, axis)
    made = space.axis(count)
    place = (symbol(made[0]) if made else ZERO) * step + start
    space.stays_within(place, size)
    moved = first.subs(dict.fromkeys(index.variables(), place))
    return replace(moved, axes=(*first.axes[:axis], made, *first.axes[axis + 1 :]), ints=None)


def counted(space: Space, op: str, parts: Sequence[Poly | int], count: Poly) -> None:
    """Take it as given that dividing and rounding makes this count."""
    limits = tuple(space.limits)
    operation = Operation(op, tuple(Poly.of(part) for part in parts))
    conclude(operation, "==", count, given=limits, bounds=space.bounds)


def _at_least(poly: Poly, other: Poly) -> bool:
    value = poly.constant
    return value is not None and (value >= FAR or poly == other)


def _bound(ctx: SymbolicContext, node: ir.Node, bound: Poly, size: Poly) -> Poly:
    """A bound counted from the front and clamped to the axis.

    Where a length meets a fixed limit (a table of 64 rows cut at `seq`), the lengths beyond are
    left out of the proof, which is recorded.
    """
    found = _clamped(ctx, node, bound, size)
    value = bound.constant
    if value is None or abs(value) < FAR:
        clamped = Operation("Min", (Operation("Max", (_counted_back(bound, size), ZERO)), size))
        conclude(clamped, "==", found, given=tuple(ctx.space.limits), bounds=ctx.space.bounds)
    return found


def _counted_back(bound: Poly, size: Poly) -> Operation:
    """A bound, from the end where it is negative."""
    return Operation("Where", (Operation("GreaterOrEqual", (bound, ZERO)), bound, bound + size))


def _clamped(ctx: SymbolicContext, node: ir.Node, bound: Poly, size: Poly) -> Poly:
    space = ctx.space
    value = bound.constant
    if value is not None and value >= FAR:
        return size
    if value is not None and value <= -FAR:
        return ZERO
    if space.nonnegative(-bound - 1):
        bound = bound + size
    elif not space.nonnegative(bound):
        if size.constant is None:
            raise OpenError(f"the sign of the bound {bound!r} depends on the sizes")
        # ctx - seq of a table of ctx rows: beyond ctx it would count from the end.
        space.limits[bound] = node.name or node.op_type
    if space.nonnegative(size - bound):
        if space.nonnegative(bound):
            return bound
        if space.nonnegative(-bound):
            return ZERO
        if size.constant is not None:
            space.limits[bound] = node.name or node.op_type
            return bound
        raise OpenError(f"the bound {bound!r} is clamped at 0 for some sizes")
    if space.nonnegative(bound - size):
        return size
    if size.constant is not None:
        ctx.space.limits[size - bound] = node.name or node.op_type
        return bound
    raise OpenError(f"the bound {bound!r} is clamped at {size!r} for some sizes")


def _flip(space: Space, first: Symbolic, axis: int) -> Symbolic:
    first, index = space.single(first, axis)
    if index == ZERO:
        return first
    (name,) = index.variables()
    size = space.bounds.sizes[name]
    (made,) = space.axis(size)
    space.stays_within(size - 1 - symbol(made), size)
    moved = first.subs({name: size - 1 - symbol(made)})
    return replace(moved, axes=(*first.axes[:axis], (made,), *first.axes[axis + 1 :]), ints=None)


@rule("Split")
def split(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """One slice per output."""
    first = tensor(inputs, 0)
    axis = axis_of(attr(node, "axis", 0), first.rank)
    size = ctx.space.size(first.axes[axis])
    sizes = ints(inputs, 1)
    if sizes is None:
        given = attr(node, "split")
        if given is not None:
            sizes = tuple(Poly.of(n) for n in given)
        else:
            count = attr(node, "num_outputs", len(node.outputs))
            each = size.divided_by(count)
            if each is None:
                raise OpenError(f"{size!r} is split into {count} parts")
            sizes = (each,) * count
    outputs = []
    start = ZERO
    for part in sizes:
        outputs.append(cut(ctx, node, first, axis, start, end=start + part))
        start = start + part
    return outputs


@rule("Concat")
def concat(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Joined along an axis."""
    parts = [tensor(inputs, i) for i in range(len(inputs))]
    if parts[0].rank == 1 and all(part.ints is not None for part in parts):
        joined = tuple(poly for part in parts for poly in part.ints or ())
        axis = ctx.space.axis(Poly.of(len(joined)))
        return [Symbolic((axis,), ints=joined, known=all(p.known for p in parts))]
    return [concatenate(ctx.space, parts, axis_of(attr(node, "axis"), parts[0].rank))]


def concatenate(space: Space, parts: Sequence[Symbolic], axis: int) -> Symbolic:
    """The parts one after the other along an axis."""
    parts = [p for p in parts if space.size(p.axes[axis]) != 0]
    if len(parts) == 1:
        return parts[0]
    singles = [space.single(space.fresh(part), axis) for part in parts]
    sizes = [space.size(part.axes[axis]) for part in parts]
    bare = [
        replace(part, axes=(*part.axes[:axis], (), *part.axes[axis + 1 :])) for part, _ in singles
    ]
    names = [index.variables() for _, index in singles]
    moved, axes = space.align(bare)
    total = ZERO
    for size in sizes:
        total = total + size
    joint = space.axis(total)
    place = symbol(joint[0])
    terms: list[list[Term]] = []
    values: list[Expression] = []
    start = ZERO
    for part, own, size in zip(moved, names, sizes, strict=True):
        local = part.subs(dict.fromkeys(own, place - start))
        inside = (place - start, start + size - 1 - place)
        terms.append([Term(t.reach, (*t.where, *inside)) for t in local.terms])
        values.append(local.value)
        start = start + size
    value = _piecewise(values, sizes, place)
    whole_axes = (*axes[:axis], joint, *axes[axis + 1 :])
    known = all(part.known for part in parts)
    return Symbolic(whole_axes, _merge_pieces(space, terms), value, known=known)


def _piecewise(values: Sequence[Expression], sizes: Sequence[Poly], place: Poly) -> Expression:
    """The value of a concatenation, by where the index falls."""
    if all(value == values[0] for value in values):
        return values[0]
    result = values[-1]
    start = ZERO
    starts = []
    for size in sizes:
        starts.append(start)
        start = start + size
    for i in range(len(values) - 2, -1, -1):
        before_next = starts[i + 1] - 1 - place
        result = Select(AtLeastZero(before_next), values[i], result)
    return result


def _merge_pieces(space: Space, pieces: Sequence[Sequence[Term]]) -> tuple[Term, ...]:
    """Terms of all pieces; one that every piece has, within its range, has no range."""
    common = [
        term.reach
        for term in pieces[0]
        if len(term.where) == 2
        and all(any(t.reach == term.reach and len(t.where) == 2 for t in p) for p in pieces[1:])
    ]
    terms = [Term(reach) for reach in common]
    terms.extend(t for piece in pieces for t in piece if t.reach not in common)
    return space.join(terms)


@rule("Pad")
def pad(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """New elements around the axes."""
    first = tensor(inputs, 0)
    pads = ints(inputs, 1)
    if pads is None:
        pads = tuple(Poly.of(x) for x in attr(node, "pads", ()))
    if attr(node, "mode", "constant") != "constant":
        raise OpenError("it pads with other elements")
    fill: Expression = Constant(float(attr(node, "value", 0.0)))
    given = optional(inputs, 2)
    if given is not None:
        fill = given.value
    axes = numbers(inputs, 3) or list(range(first.rank))
    for i, axis in enumerate(axes):
        before, after = pads[i], pads[len(axes) + i]
        if before == 0 and after == 0:
            continue
        first = _pad_axis(
            ctx, node, first, axis_of(axis, first.rank), pads=(before, after), fill=fill
        )
    return [first]


def _pad_axis(
    ctx: SymbolicContext,
    node: ir.Node,
    first: Symbolic,
    axis: int,
    *,
    pads: tuple[Poly, Poly],
    fill: Expression,
) -> Symbolic:
    space = ctx.space
    before, after = pads
    size = space.size(first.axes[axis])
    # A negative pad crops.
    begin = ZERO if space.nonnegative(before) else -before
    stop = size if space.nonnegative(after) else size + after
    if begin != 0 or stop != size:
        first = cut(ctx, node, first, axis, begin, end=stop)
        size = stop - begin
        before = before if begin == 0 else ZERO
        after = after if space.nonnegative(after) else ZERO
    if before == 0 and after == 0:
        return first
    first, index = space.single(first, axis)
    made = space.axis(size + before + after)
    place = symbol(made[0]) - before
    moved = first.subs(dict.fromkeys(index.variables(), place))
    inside = (place, size - 1 - place)
    value = moved.value
    for edge in inside:
        value = Select(AtLeastZero(edge), value, fill)
    terms = tuple(Term(t.reach, (*t.where, *inside)) for t in moved.terms)
    axes = (*first.axes[:axis], made, *first.axes[axis + 1 :])
    return replace(moved, axes=axes, terms=terms, value=value, ints=None)


@rule("Trilu")
def trilu(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """One side of a diagonal of the last two axes, 0 elsewhere."""
    first = tensor(inputs, 0)
    k = ints(inputs, 1)
    diagonal = ZERO if k is None else k[0]
    first, row = ctx.space.single(first, first.rank - 2)
    first, column = ctx.space.single(first, first.rank - 1)
    upper = bool(attr(node, "upper", 1))
    edge = column - row - diagonal if upper else row + diagonal - column
    value = Select(AtLeastZero(edge), first.value, Constant(0.0))
    terms = tuple(Term(t.reach, (*t.where, edge)) for t in first.terms)
    return [replace(first, value=value, terms=terms, ints=None)]


@rule("Gather")
def gather(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Rows by index."""
    space = ctx.space
    data, indices = tensor(inputs, 0), tensor(inputs, 1)
    axis = axis_of(attr(node, "axis", 0), data.rank)
    if data.rank == 1 and data.ints is not None and indices.ints is not None:
        count = len(data.ints)
        picked = tuple(data.ints[whole(i) % count] for i in indices.ints)
        return [Symbolic(indices.axes, ints=picked, value=_only(picked), known=data.known)]
    data = space.fresh(data)
    axes = (*data.axes[:axis], *indices.axes, *data.axes[axis + 1 :])
    pair = _row_and_column(space, indices, data.axes[axis])
    if pair is not None:
        return [_gathered(space, data.subs(pair), indices, axes)]
    data, index = space.single(data, axis)
    axes = (*data.axes[:axis], *indices.axes, *data.axes[axis + 1 :])
    if index == ZERO:
        return [_gathered(space, data, indices, axes)]
    (name,) = index.variables()
    place = as_poly(indices.value)
    if place is None and indices.ints is not None and len(indices.ints) == 1:
        place = indices.ints[0]
    if place is not None:
        place = _from_front(space, place, space.bounds.sizes[name])
        moved = data.subs({name: place})
        return [_gathered(space, moved, indices, axes)]
    if any(name in term.variables() for term in data.terms):
        raise OpenError("it picks positions by an index that is no known function of the place")
    return [_gathered(space, replace(data, value=UNKNOWN), indices, axes)]


def _row_and_column(
    space: Space, indices: Symbolic, merged: tuple[str, ...]
) -> dict[str, Poly] | None:
    """Where a flat index into an axis that merges two picks: row r, column c of r * columns + c.

    None where the index is not written so.
    """
    flat = _sum_of_products(indices.value)
    if len(merged) != 2 or flat is None:
        return None
    columns = space.bounds.sizes[merged[1]]
    for axis in indices.axes:
        for name in axis:
            column = flat - symbol(name) * columns
            if name in column.variables():
                continue
            if space.nonnegative(column) and space.nonnegative(columns - 1 - column):
                counted(space, "FloorDiv", (flat, columns), symbol(name))
                counted(space, "Mod", (flat, columns), column)
                return {merged[0]: symbol(name), merged[1]: column}
    return None


def _sum_of_products(value: Expression) -> Poly | None:
    """The polynomial that sums and products of polynomials are."""
    if isinstance(value, Apply) and value.op in ("Add", "Mul") and len(value.parts) == 2:
        first, second = (_sum_of_products(part) for part in value.parts)
        if first is None or second is None:
            return None
        return first + second if value.op == "Add" else first * second
    return as_poly(value)


def _from_front(space: Space, place: Poly, size: Poly) -> Poly:
    """An index counted from the front.

    Raises:
        OpenError: Whether it counts from the end depends on the sizes.
    """
    if space.nonnegative(place):
        return place
    if space.nonnegative(-place - 1):
        return place + size
    raise OpenError(f"the sign of the index {place!r} depends on the sizes")


def _gathered(
    space: Space,
    data: Symbolic,
    indices: Symbolic,
    axes: tuple[tuple[str, ...], ...],
) -> Symbolic:
    terms, value = data.terms, data.value
    ints_ = None
    poly = as_poly(value)
    if not axes and poly is not None:
        ints_ = (poly,)
    return Symbolic(
        axes,
        space.join([*terms, *indices.terms]),
        value,
        ints=ints_,
        known=data.known and indices.known,
    )


def _only(polys: Sequence[Poly]) -> Expression:
    """The value of a vector with one number."""
    return linear(polys[0]) if len(polys) == 1 else UNKNOWN


@rule("GatherND")
def gather_nd(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Elements by tuples of indices that are known functions of the place."""
    space = ctx.space
    data, indices = space.fresh(tensor(inputs, 0)), tensor(inputs, 1)
    if attr(node, "batch_dims", 0):
        raise OpenError("batch_dims is not followed")
    depth = whole(space.size(indices.axes[-1]))
    out = indices.axes[:-1]
    for i in range(depth):
        place = as_poly(_component(indices, i, depth))
        data, index = space.single(data, i)
        if index == ZERO:
            continue
        (name,) = index.variables()
        if place is None:
            if any(name in term.variables() for term in data.terms):
                raise OpenError("the index is not a known function of the place")
            data = replace(data, value=UNKNOWN)
            continue
        data = data.subs({name: _from_front(space, place, space.bounds.sizes[name])})
    axes = (*out, *data.axes[depth:])
    return [
        Symbolic(
            axes,
            space.join([*data.terms, *indices.terms]),
            data.value,
            known=data.known and indices.known,
        )
    ]


def _component(indices: Symbolic, i: int, depth: int) -> Expression:
    """The i-th number of the index tuples."""
    names = indices.axes[-1]
    if not names:
        return indices.value
    if len(names) > 1:
        return UNKNOWN
    return settle(substitute(indices.value, {names[0]: Poly.of(i)}))


def settle(value: Expression) -> Expression:
    """Take the branch of each Select whose condition has become a number."""
    match value:
        case Select(AtLeastZero(poly), then, other) if poly.constant is not None:
            return settle(then if poly.constant >= 0 else other)
        case Select(condition, then, other):
            return Select(condition, settle(then), settle(other))
        case _:
            return value


@rule("GatherElements")
def gather_elements(
    ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]
) -> Sequence[Symbolic]:
    """Elements within their line; harmless where the line is not along positions."""
    space = ctx.space
    data, indices = tensor(inputs, 0), tensor(inputs, 1)
    axis = axis_of(attr(node, "axis", 0), data.rank)
    data, index = space.single(space.fresh(data), axis)
    if any(index.variables() & term.variables() for term in data.terms):
        raise OpenError("it picks among positions by an index")
    bare = replace(data, axes=(*data.axes[:axis], (), *data.axes[axis + 1 :]))
    for i in range(data.rank):
        same = space.size(data.axes[i]) == space.size(indices.axes[i])
        if i != axis and not same:
            raise OpenError("its index is smaller than its data")
    (moved, picks), axes = space.align([bare, indices])
    return [Symbolic(axes, space.join([*moved.terms, *picks.terms]))]


@rule("ScatterElements")
def scatter_elements(
    ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]
) -> Sequence[Symbolic]:
    """Elements put into their line; harmless where the line is not along positions."""
    space = ctx.space
    data, indices, updates = (tensor(inputs, i) for i in range(3))
    axis = axis_of(attr(node, "axis", 0), data.rank)
    axes = data.axes
    if len(axes[axis]) > 1:
        raise OpenError("its axis merges several")
    parts = [data]
    for other in (indices, updates):
        line = other.axes[axis]
        if any(set(line) & term.variables() for term in other.terms):
            raise OpenError("it moves data among positions by an index")
        for i in range(data.rank):
            if i != axis and space.size(other.axes[i]) != space.size(axes[i]):
                raise OpenError("its index is smaller than its data")
        parts.append(replace(other, axes=(*other.axes[:axis], (), *other.axes[axis + 1 :])))
    moved, out = space.align(parts)
    return [Symbolic(out, space.join([t for part in moved for t in part.terms]))]


@rule("TensorScatter")
def tensor_scatter(
    ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]
) -> Sequence[Symbolic]:
    """New positions put into a cache, at an index that is the same for each row."""
    space = ctx.space
    given = optional(inputs, 2)
    start = ZERO if given is None else as_poly(given.value)
    if start is None or attr(node, "mode", "linear") != "linear":
        raise OpenError("where it writes is no known number")
    data, update = tensor(inputs, 0), tensor(inputs, 1)
    return [_written(space, data, update, axis_of(attr(node, "axis", -2), data.rank), start)]


def _written(space: Space, data: Symbolic, update: Symbolic, axis: int, start: Poly) -> Symbolic:
    """`data` with `update` from `start` on along an axis; what is overwritten still counts."""
    count = space.size(update.axes[axis])
    data, place = space.single(data, axis)
    update, own = space.single(space.fresh(update), axis)
    bare = [replace(t, axes=(*t.axes[:axis], (), *t.axes[axis + 1 :])) for t in (data, update)]
    (old, new), axes = space.align(bare)
    new = new.subs(dict.fromkeys(own.variables(), place - start))
    inside = (place - start, start + count - 1 - place)
    terms = [*old.terms, *(Term(t.reach, (*t.where, *inside)) for t in new.terms)]
    whole_axes = (*axes[:axis], data.axes[axis], *axes[axis + 1 :])
    return Symbolic(whole_axes, space.join(terms), known=data.known and update.known)


@rule("ScatterND")
def scatter_nd(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Rows put at places of one axis that follow each other, all other indices their own."""
    space = ctx.space
    data, indices, update = (tensor(inputs, i) for i in range(3))
    depth = whole(space.size(indices.axes[-1]))
    axis = depth - 1
    if attr(node, "reduction", "none") != "none" or indices.rank != depth + 1 or indices.terms:
        raise OpenError("where it writes is no known run of places")
    start: Poly | None = None
    for i in range(depth):
        names = indices.axes[i]
        place = as_poly(_component(indices, i, depth))
        if place is None or len(names) > 1:
            raise OpenError("where it writes is no known run of places")
        start = place - (symbol(names[0]) if names else ZERO)
        full = space.size(names) == space.size(data.axes[i])
        if start.variables() & set(space.bounds.sizes) or (i < axis and (start != 0 or not full)):
            raise OpenError("where it writes is no known run of places")
    assert start is not None
    return [_written(space, data, update, axis, start)]


@rule("Shape")
def shape(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """The sizes."""
    sizes = ctx.space.shape(tensor(inputs, 0))[attr(node, "start", 0) : attr(node, "end")]
    axis = ctx.space.axis(Poly.of(len(sizes)))
    return [Symbolic((axis,), ints=sizes, value=_only(sizes), known=True)]


@rule("Size")
def size(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """The number of elements."""
    total = ONE
    for part in ctx.space.shape(tensor(inputs, 0)):
        total = total * part
    return [Symbolic((), ints=(total,), value=linear(total), known=True)]


@rule("ConstantOfShape")
def constant_of_shape(
    ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]
) -> Sequence[Symbolic]:
    """One number everywhere."""
    sizes = ints(inputs, 0) or ()
    fill = attr(node, "value")
    number = 0.0 if fill is None else float(fill.numpy().reshape(-1)[0])
    axes = tuple(ctx.space.axis(n) for n in sizes)
    held = None
    if len(sizes) <= 1 and number == int(number):
        count = 1 if not sizes else sizes[0].constant
        if count is not None and count <= 16:
            held = (Poly.of(int(number)),) * count
    return [Symbolic(axes, value=Constant(number), ints=held, known=True)]


@rule("Range")
def range_(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """start, start + delta, ..."""
    start, limit, delta = (ints(inputs, i) for i in range(3))
    if start is None or limit is None or delta is None:
        raise OpenError("its bounds are not known")
    step = whole(delta[0])
    count = (limit[0] - start[0]).divided_by(step)
    if count is None or not ctx.space.nonnegative(count):
        raise OpenError(f"it may run from {start[0]!r} to {limit[0]!r}")
    counted(ctx.space, "CeilDiv", (limit[0] - start[0], step), count)
    axis = ctx.space.axis(count)
    place = symbol(axis[0]) if axis else ZERO
    return [Symbolic((axis,), value=linear(start[0] + place * step), known=True)]


@rule("EyeLike")
def eye_like(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Ones on a diagonal."""
    axes = tuple(ctx.space.axis(n) for n in ctx.space.shape(tensor(inputs, 0)))
    row, column = (symbol(axis[0]) if axis else ZERO for axis in axes)
    edge = column - row - attr(node, "k", 0)
    value = Select(AtLeastZero(edge), Select(AtLeastZero(-edge), Constant(1.0), ZERO_), ZERO_)
    return [Symbolic(axes, value=value, known=True)]


ZERO_ = Constant(0.0)

__all__ = ["axis_of", "concatenate", "counted", "cut", "expand_to", "settle"]
