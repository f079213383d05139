"""Symbolic rules of operators that compute: element by element, along axes, and products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import attr
from causal_onnx.export.analysis.elements import Known
from causal_onnx.export.proof.judge import reads
from causal_onnx.export.proof.symbolic.arranging import axis_of, counted
from causal_onnx.export.proof.symbolic.expression import (
    UNKNOWN,
    Constant,
    Expression,
    IsZero,
    Lookup,
    Vanish,
    apply,
    as_poly,
    linear,
    mentions,
    settled,
)
from causal_onnx.export.proof.symbolic.implication import Operation, conclude
from causal_onnx.export.proof.symbolic.poly import ZERO, Poly, symbol
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

__all__ = ["contract", "mixed", "softmax"]

ELEMENTWISE = (
    "Abs", "Neg", "Ceil", "Floor", "Round", "Sqrt", "Exp", "Log", "Sin", "Cos", "Tan", "Asin",
    "Acos", "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Acosh", "Atanh", "Sigmoid", "Relu", "Sign",
    "Reciprocal", "Not", "BitwiseNot", "IsNaN", "IsInf", "Add", "Sub", "Mul", "Div", "Pow", "Max",
    "Min", "Sum", "Mean", "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal",
    "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Where", "Mod", "BitShift", "PRelu",
    "Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Selu", "Shrink",
    "Softplus", "Softsign", "Swish", "ThresholdedRelu",
)  # fmt: skip


@rule(*ELEMENTWISE)
def elementwise(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Each element alone, with broadcasting."""
    parts = [part for part in inputs if part is not None]
    op = node.op_type
    if op == "Mod" and attr(node, "fmod", 0):
        op = "FMod"  # it has the dividend's sign, and is not followed
    if op == "Div":
        dtype = ctx.dtype(node.outputs[0])
        if dtype is None:
            parts = [replace(part, value=UNKNOWN, ints=None) for part in parts]
        elif not dtype.is_floating_point():
            op = "DivInt"
    return [combine(ctx.space, op, parts)]


@rule("Clip")
def clip(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """At least one limit, then at most the other; either may be absent."""
    found = tensor(inputs, 0)
    for index, op, name in ((1, "Max", "min"), (2, "Min", "max")):
        limit, fixed = optional(inputs, index), attr(node, name)  # attributes before opset 11
        if limit is None and fixed is not None:
            limit = Symbolic((), value=Constant(float(fixed)), known=True)
        if limit is not None:
            found = combine(ctx.space, op, [found, limit])
    return [found]


@rule("Cast")
def cast(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Another type; to integers it truncates, to booleans it tests."""
    first = tensor(inputs, 0)
    target = ir.DataType(attr(node, "to"))
    op = "Cast"
    if target == ir.DataType.BOOL:
        op = "CastBool"
    elif not target.is_floating_point():
        op = "CastInt"
    held = None if target == ir.DataType.BOOL else first.ints
    return [replace(first, value=apply(op, [first.value]), ints=held)]


@rule("CastLike")
def cast_like(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """The type of another tensor."""
    like = node.inputs[1]
    dtype = None if like is None else like.dtype
    if dtype is None:
        raise OpenError("the type it casts to is not declared")
    first = tensor(inputs, 0)
    op = "CastBool" if dtype == ir.DataType.BOOL else "Cast"
    op = op if dtype.is_floating_point() or op == "CastBool" else "CastInt"
    return [replace(first, value=apply(op, [first.value]))]


def combine(space: Space, op: str, parts: Sequence[Symbolic]) -> Symbolic:
    """An element-wise operator on tensors that broadcast."""
    known = all(part.known for part in parts)
    held = _whole_numbers(space, op, parts) if known else None
    moved, axes = space.align(parts)
    value = apply(op, [part.value for part in moved])
    if op in ("Max", "Min") and len(moved) == 2:
        sides = [poly for part in moved if (poly := as_poly(part.value)) is not None]
        chosen = _whole_number(space, op, sides) if len(sides) == 2 else None
        value = value if chosen is None else linear(chosen)
    terms = space.join(term for part in moved for term in part.terms)
    if held is not None and len(held) == 1:
        value = linear(held[0])
    poly = as_poly(value)
    if held is None and not axes and poly is not None:
        held = (poly,)
    return Symbolic(axes, terms, value, ints=held, known=known)


def _whole_quotient(space: Space, a: Poly, b: Poly) -> Poly | None:
    """Division of integers, which ONNX rounds towards zero."""
    exact = a.divided_by(b)
    if exact is not None or not b.constant:
        return exact
    if a.constant is None:
        return space.quotient(a, b.constant)
    quotient = abs(a.constant) // abs(b.constant)
    return Poly.of(quotient if (a.constant < 0) == (b.constant < 0) else -quotient)


def _whole_numbers(space: Space, op: str, parts: Sequence[Symbolic]) -> tuple[Poly, ...] | None:
    """Shape arithmetic: the operator on scalars and short vectors of whole numbers."""
    if any(part.ints is None or part.rank > 1 for part in parts):
        return None
    rows = [part.ints or () for part in parts]
    count = max(len(row) for row in rows)
    if any(len(row) not in (1, count) for row in rows):
        return None
    columns = zip(*(row * count if len(row) == 1 else row for row in rows), strict=True)
    found: list[Poly] = []
    for column in columns:
        poly = _whole_number(space, op, column)
        if poly is None:
            return None
        found.append(poly)
    return tuple(found)


def _whole_number(space: Space, op: str, column: Sequence[Poly]) -> Poly | None:
    """The number that the operator makes of whole numbers, where it is a polynomial."""
    carry_out = _ON_WHOLE.get(op)
    found = None if carry_out is None else carry_out(space, column)
    if found is not None:
        made, limits = Operation(op, tuple(column)), tuple(space.limits)
        conclude(made, "==", found, given=limits, bounds=space.bounds)
    return found


def _extreme(space: Space, op: str, column: Sequence[Poly]) -> Poly | None:
    if len(column) != 2:
        return None
    for a, b in (column, column[::-1]):
        if space.nonnegative(a - b):
            return a if op == "Max" else b
    # Elsewhere a symbol of its own would hide that a size is what the runs show it to be.
    return space.least_of(*column) if op == "Min" and space.is_bounded(column) else None


def _chosen(condition: Poly, then: Poly, other: Poly) -> Poly | None:
    number = condition.constant
    return None if number is None else then if number else other


def _of_numbers(
    function: Callable[..., int | None],
) -> Callable[[Space, Sequence[Poly]], Poly | None]:
    """Carried out where no size enters."""

    def carry_out(space: Space, column: Sequence[Poly]) -> Poly | None:
        numbers = [poly.constant for poly in column]
        found = None if None in numbers else function(*numbers)
        return None if found is None else Poly.of(found)

    return carry_out


_ON_WHOLE: dict[str, Callable[[Space, Sequence[Poly]], Poly | None]] = {
    "Add": lambda space, x: x[0] + x[1],
    "Sub": lambda space, x: x[0] - x[1],
    "Mul": lambda space, x: x[0] * x[1],
    "Div": lambda space, x: x[0].divided_by(x[1]),
    "DivInt": lambda space, x: _whole_quotient(space, x[0], x[1]),
    "Neg": lambda space, x: -x[0],
    "Abs": lambda space, x: x[0] if space.nonnegative(x[0]) else None,
    "Max": lambda space, x: _extreme(space, "Max", x),
    "Min": lambda space, x: _extreme(space, "Min", x),
    "Equal": lambda space, x: _surely(space, x[0] - x[1], x[1] - x[0]),
    "GreaterOrEqual": lambda space, x: _sign(space, x[0] - x[1]),
    "LessOrEqual": lambda space, x: _sign(space, x[1] - x[0]),
    "Greater": lambda space, x: _sign(space, x[0] - x[1] - 1),
    "Less": lambda space, x: _sign(space, x[1] - x[0] - 1),
    "Where": lambda space, x: _chosen(x[0], x[1], x[2]),
    "Mod": _of_numbers(lambda a, b: a % b if b else None),
    "And": _of_numbers(lambda *x: int(all(x))),
    "Or": _of_numbers(lambda *x: int(any(x))),
    "Not": _of_numbers(lambda a: int(not a)),
    **dict.fromkeys(("Floor", "Ceil", "Round"), lambda space, x: x[0]),
}


def _sign(space: Space, poly: Poly) -> Poly | None:
    """1 if poly >= 0 for all sizes, 0 if for none."""
    if space.nonnegative(poly):
        return Poly.of(1)
    return Poly.of(0) if space.nonnegative(-poly - 1) else None


def _surely(space: Space, forth: Poly, back: Poly) -> Poly | None:
    if forth == 0:
        return Poly.of(1)
    apart = space.nonnegative(forth - 1) or space.nonnegative(back - 1)
    return Poly.of(0) if apart else None


def mixed(space: Space, first: Symbolic, axes: Sequence[int]) -> Symbolic:
    """Every element comes to depend on its line along the axes, which stay."""
    gone = {name for axis in axes for name in first.axes[axis]}
    kept = [own for i, own in enumerate(first.axes) if i not in axes]
    terms = space.eliminate(first.terms, gone, kept)
    return Symbolic(first.axes, terms, known=first.known)


def _reduced(
    space: Space, first: Symbolic, axes: Sequence[int], *, dead: str, keep: bool
) -> Symbolic:
    gone = {name for axis in axes for name in first.axes[axis]}
    left = [own for i, own in enumerate(first.axes) if i not in axes]
    terms = space.eliminate(first.terms, gone, left, factors=[first.value], dead=dead)
    made = tuple(() if i in axes else own for i, own in enumerate(first.axes))
    if not keep:
        made = tuple(left)
    return Symbolic(made, terms, known=first.known)


@rule(
    "ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum",
    "ReduceLogSumExp", "ReduceMax", "ReduceMin", "ReduceProd",
)  # fmt: skip
def reduce(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Combine along axes; neutral elements leave no trace."""
    first = tensor(inputs, 0)
    op = node.op_type
    given = numbers(inputs, 1)
    axes = list(attr(node, "axes") or ()) if given is None else given
    keep = bool(attr(node, "keepdims", 1))
    if not axes:
        if attr(node, "noop_with_empty_axes", 0):
            return [first]
        axes = list(range(first.rank))
    axes = [axis_of(axis, first.rank) for axis in axes]
    dead = "zero"
    if op in ("ReduceMax", "ReduceLogSumExp"):
        dead = "low"
    elif op in ("ReduceMin", "ReduceProd"):
        dead = ""
    out = _reduced(ctx.space, first, axes, dead=dead, keep=keep)
    if op == "ReduceProd" and first.ints is not None and first.rank == 1:
        product = Poly.of(1)
        for poly in first.ints:
            product = product * poly
        out = replace(out, ints=(product,), value=linear(product))
    elif first.value == Constant(0.0) and op in ("ReduceSum", "ReduceMean", "ReduceMax"):
        out = replace(out, value=Constant(0.0))
    elif first.value == Constant(1.0) and op == "ReduceMean":
        out = replace(out, value=Constant(1.0))
    elif op in ("ReduceMax", "ReduceMin") and not mentions(first.value, _names(first, axes)):
        out = replace(out, value=first.value)
    elif first.value == Constant(1.0) and op == "ReduceSum":
        count = Poly.of(1)
        for axis in axes:
            count = count * ctx.space.size(first.axes[axis])
        out = replace(out, value=linear(count), ints=(count,) if not out.axes else None)
    return [out]


def _names(first: Symbolic, axes: Sequence[int]) -> set[str]:
    return {name for axis in axes for name in first.axes[axis]}


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax_node(
    ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]
) -> Sequence[Symbolic]:
    """Over one axis, or before opset 13 over all from one on."""
    first = tensor(inputs, 0)
    if ctx.opsets.get("", 18) < 13:
        start = axis_of(attr(node, "axis", 1), first.rank)
        axes = list(range(start, first.rank))
    else:
        axes = [axis_of(attr(node, "axis", -1), first.rank)]
    out = softmax(ctx.space, first, axes)
    if node.op_type != "Softmax":
        # The logarithm of a weight that vanishes is again -inf.
        out = replace(out, value=apply("Log", [out.value]))
    return [out]


def softmax(space: Space, first: Symbolic, axes: Sequence[int]) -> Symbolic:
    """Weights: 0 where the score is -inf or very negative, a function of the others elsewhere."""
    gone = {name for axis in axes for name in first.axes[axis]}
    left = [own for i, own in enumerate(first.axes) if i not in axes]
    terms = space.eliminate(first.terms, gone, left, factors=[first.value], dead="low")
    value: Expression = UNKNOWN if first.value == UNKNOWN else Vanish(first.value)
    return Symbolic(first.axes, terms, value, known=first.known)


@rule("CumSum")
def cumsum(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Sums of what came before."""
    space = ctx.space
    first = tensor(inputs, 0)
    axis = axis_of((numbers(inputs, 1) or [0])[0], first.rank)
    first, index = space.single(first, axis)
    reverse, exclusive = bool(attr(node, "reverse", 0)), bool(attr(node, "exclusive", 0))
    value: Expression = UNKNOWN
    size = space.size(first.axes[axis])
    poly = as_poly(first.value)
    if poly is not None and poly.constant is not None:
        count = size - index if reverse else index + 1
        count = count - 1 if exclusive else count
        value = linear(count * poly)
    terms: list[Term] = []
    (name,) = index.variables() or {""}
    for term in first.terms:
        if name not in term.variables():
            terms.append(term)
            continue
        parts = term.reach.split(name)
        if reverse or parts is None or not space.nonnegative(parts[0]):
            raise OpenError("it sums from the end")
        # Elements up to this one: the last has the largest reach; where it applies may differ.
        kept = tuple(w for w in term.where if name not in w.variables())
        terms.append(Term(term.reach, kept))
    return [Symbolic(first.axes, space.join(terms), value, known=first.known)]


@rule("ArgMax", "ArgMin")
def arg_extreme(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """The place of the extreme of each line."""
    first = tensor(inputs, 0)
    axis = axis_of(attr(node, "axis", 0), first.rank)
    dead = "low" if node.op_type == "ArgMax" else ""
    keep = bool(attr(node, "keepdims", 1))
    return [_reduced(ctx.space, first, [axis], dead=dead, keep=keep)]


@rule("TopK")
def top_k(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """The largest of each line and where they were."""
    first = tensor(inputs, 0)
    axis = axis_of(attr(node, "axis", -1), first.rank)
    k = ints(inputs, 1)
    out = _reduced(ctx.space, first, [axis], dead="", keep=True)
    count = Poly.of(attr(node, "k")) if k is None else k[0]
    made = (*out.axes[:axis], ctx.space.axis(count), *out.axes[axis + 1 :])
    found = replace(out, axes=made)
    return [found, found]


def _with_parameters(space: Space, out: Symbolic, inputs: Sequence[Given], start: int) -> Symbolic:
    extra = [part for part in inputs[start:] if part is not None and part.terms]
    if not extra:
        return out
    moved, axes = space.align([out, *extra])
    return Symbolic(axes, space.join(term for part in moved for term in part.terms))


@rule("SimplifiedLayerNormalization", domain="com.microsoft")
@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_norm(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Over the axes from `axis` on."""
    first = tensor(inputs, 0)
    start = axis_of(attr(node, "axis", -1), first.rank)
    axes = list(range(start, first.rank))
    out = _with_parameters(ctx.space, mixed(ctx.space, first, axes), inputs, 1)
    small = _reduced(ctx.space, first, axes, dead="", keep=True)
    return [out, *(small for _ in node.outputs[1:])]


@rule("BatchNormalization", follows=(0,))
def batch_norm(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Element by element with stored statistics."""
    if attr(node, "training_mode", 0):
        raise OpenError("it normalises over the batch and positions")
    return [replace(tensor(inputs, 0), value=UNKNOWN)]


def contract(space: Space, labels: tuple[str, str, str], a: Symbolic, b: Symbolic) -> Symbolic:
    """Sum of products over the labels that the result lacks."""
    a_labels, b_labels, out = labels
    joint = "".join(dict.fromkeys(a_labels + b_labels))
    if len(a_labels) != a.rank or len(b_labels) != b.rank:
        raise OpenError("ranks do not fit the equation")
    if len(set(a_labels)) < len(a_labels) or len(set(b_labels)) < len(b_labels):
        raise OpenError("it takes a diagonal")
    spread = [
        replace(part, axes=tuple(_at(part, own, label) for label in joint), ints=None)
        for part, own in ((a, a_labels), (b, b_labels))
    ]
    moved, axes = space.align(spread)
    by_label = dict(zip(joint, axes, strict=True))
    gone = {name for label in joint if label not in out for name in by_label[label]}
    made = tuple(by_label[label] for label in out)
    terms = space.eliminate(
        [term for part in moved for term in part.terms],
        gone,
        made,
        factors=[part.value for part in moved],
        dead="zero",
    )
    if gone:
        # A sum of products is 0 where one factor is, whatever the summed index.
        kept = [UNKNOWN if mentions(part.value, gone) else part.value for part in moved]
        value = apply("Mul", [UNKNOWN, apply("Mul", kept)])
    else:
        value = apply("Mul", [part.value for part in moved])
    return Symbolic(made, terms, value, known=a.known and b.known)


def _at(part: Symbolic, labels: str, label: str) -> tuple[str, ...]:
    return part.axes[labels.index(label)] if label in labels else ()


def matmul(space: Space, a: Symbolic, b: Symbolic) -> Symbolic:
    """numpy.matmul."""
    lead_a, lead_b = max(a.rank - 2, 0), max(b.rank - 2, 0)
    lead = max(lead_a, lead_b)
    batch = "abcdefghijklmnop"[:lead]
    row, column = ("x" if a.rank > 1 else ""), ("z" if b.rank > 1 else "")
    labels = (
        batch[lead - lead_a :] + row + "y",
        batch[lead - lead_b :] + "y" + column,
        batch + row + column,
    )
    return contract(space, labels, a, b)


@rule("MatMul")
def matmul_node(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """A product."""
    return [matmul(ctx.space, tensor(inputs, 0), tensor(inputs, 1))]


@rule("Einsum")
def einsum(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Products of any number of tensors, two at a time."""
    from causal_onnx.export.analysis.rules.contraction import equation_terms  # noqa: PLC0415

    parts = [tensor(inputs, i) for i in range(len(inputs))]
    terms, out = equation_terms(attr(node, "equation"), [part.rank for part in parts])
    labels, current = terms[0], parts[0]
    if len(parts) == 1:
        scalar = Symbolic((), value=Constant(1.0), known=True)
        return [contract(ctx.space, (labels, "", out), current, scalar)]
    for i in range(1, len(parts)):
        later = set(out).union(*terms[i + 1 :])
        joint = dict.fromkeys(labels + terms[i])
        kept = out if i == len(parts) - 1 else "".join(x for x in joint if x in later)
        current = contract(ctx.space, (labels, terms[i], kept), current, parts[i])
        labels = kept
    return [current]


@rule("Conv", follows=(0,))
def conv(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """A window along each axis after the channels."""
    space = ctx.space
    first, weight = tensor(inputs, 0), tensor(inputs, 1)
    if weight.terms or attr(node, "auto_pad", "NOTSET") not in ("NOTSET", ""):
        raise OpenError("its weight or its padding is not fixed")
    sizes = [whole(n) for n in space.shape(weight)]
    rank = first.rank - 2
    kernel = sizes[2:]
    strides = list(attr(node, "strides") or [1] * rank)
    dilations = list(attr(node, "dilations") or [1] * rank)
    pads = list(attr(node, "pads") or [0] * (2 * rank))
    live = _live_taps(weight.value, kernel)
    gone = set(first.axes[1])
    if any(gone & term.variables() for term in first.terms):
        raise OpenError("its channels are positions")
    for i in range(rank):
        taps = np.flatnonzero(live.any(axis=tuple(j for j in range(rank) if j != i)))
        if not len(taps):
            continue
        last = int(taps[-1]) * dilations[i] - pads[i]
        extent = dilations[i] * (kernel[i] - 1) + 1
        first = _window(space, first, 2 + i, (last, strides[i]), pads[i] + pads[rank + i] - extent)
    channels = space.axis(Poly.of(sizes[0]))
    out = replace(first, axes=(first.axes[0], channels, *first.axes[2:]), value=UNKNOWN, ints=None)
    return [out]


@rule("MaxPool", "AveragePool", "LpPool")
def pool(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """A window along each axis after the channels."""
    first = tensor(inputs, 0)
    if attr(node, "ceil_mode", 0) or attr(node, "auto_pad", "NOTSET") not in ("NOTSET", ""):
        raise OpenError("its padding is not fixed")
    kernel = list(attr(node, "kernel_shape"))
    rank = len(kernel)
    strides = list(attr(node, "strides") or [1] * rank)
    dilations = list(attr(node, "dilations") or [1] * rank)
    pads = list(attr(node, "pads") or [0] * (2 * rank))
    for i, (size, dilation) in enumerate(zip(kernel, dilations, strict=True)):
        extent = dilation * (size - 1)
        last = (extent - pads[i], strides[i])
        first = _window(ctx.space, first, 2 + i, last, pads[i] + pads[rank + i] - extent - 1)
    out = replace(first, value=UNKNOWN, ints=None)
    return [out] * len(node.outputs)


def _live_taps(
    weight: Expression, kernel: Sequence[int]
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    if isinstance(weight, Lookup) and weight.array.size <= 1 << 24:
        array = weight.array.value
        if array.ndim == len(kernel) + 2:
            return np.asarray((array != 0).any(axis=(0, 1)))
    return np.ones(tuple(kernel), np.bool_)


def _window(
    space: Space, first: Symbolic, axis: int, last: tuple[int, int], extra: int
) -> Symbolic:
    """An output at o reaches the input at o * stride + last; the size grows by extra + 1."""
    offset, stride = last
    size = space.size(first.axes[axis]) + extra
    count = size.divided_by(stride)
    if count is None:
        raise OpenError(f"a stride of {stride} over a size of {size!r}")
    counted(space, "FloorDiv", (size, stride), count)
    first, index = space.single(first, axis)
    made = space.axis(count + 1)
    place = (symbol(made[0]) if made else ZERO) * stride + offset
    terms = []
    for term in first.terms:
        for name in index.variables() & term.variables():
            parts = term.reach.split(name)
            if parts is None or not space.nonnegative(parts[0]):
                raise OpenError("positions run backwards")
            kept = tuple(w for w in term.where if name not in w.variables())
            term = Term(term.reach.subs({name: place}), kept)  # noqa: PLW2901 - one name at most
        terms.append(term)
    axes = (*first.axes[:axis], made, *first.axes[axis + 1 :])
    return replace(first, axes=axes, terms=tuple(terms), value=UNKNOWN, ints=None)


@rule("QuantizeLinear", "DequantizeLinear", domain="com.microsoft")
@rule("QuantizeLinear", "DequantizeLinear")
def scale_elements(
    ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]
) -> Sequence[Symbolic]:
    """Element by element with fixed scales."""
    if any(part is not None and part.terms for part in inputs[1:]):
        raise OpenError("its scale depends on data")
    first = tensor(inputs, 0)
    return [Symbolic(first.axes, first.terms, known=first.known)]


@rule("MatMulNBits", "MatMulBnb4", domain="com.microsoft", follows=(0,))
def matmul_nbits(
    ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]
) -> Sequence[Symbolic]:
    """Rows times a packed weight."""
    first = tensor(inputs, 0)
    out = _reduced(ctx.space, first, [first.rank - 1], dead="", keep=False)
    axes = (*out.axes, ctx.space.axis(Poly.of(attr(node, "N"))))
    return [Symbolic(axes, out.terms)]


@rule("LSTM", "GRU", "RNN")
def recurrent(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Each step depends on those before it."""
    space = ctx.space
    first = tensor(inputs, 0)
    if attr(node, "direction", "forward") != "forward":
        raise OpenError("it runs backwards as well")
    start: list[Term] = []
    for part in inputs[1:]:
        if part is not None:
            start += space.eliminate(part.terms, part.variables(), ())
    time = 1 if attr(node, "layout", 0) else 0
    flat = _reduced(space, first, [2], dead="", keep=False)
    for term in flat.terms:
        for name in flat.axes[time]:
            parts = term.reach.split(name)
            if parts is None or not space.nonnegative(parts[0]):
                raise OpenError("positions run backwards")
    hidden = space.axis(Poly.of(attr(node, "hidden_size")))
    one: tuple[str, ...] = ()
    terms = (*(Term(term.reach) for term in flat.terms), *start)
    if time:
        axes = (flat.axes[0], flat.axes[1], one, hidden)
        end_axes = (flat.axes[0], one, hidden)
    else:
        axes = (flat.axes[0], one, flat.axes[1], hidden)
        end_axes = (one, flat.axes[1], hidden)
    gone = set(flat.axes[time])
    last = space.eliminate(terms, gone, ())
    end = Symbolic(end_axes, last)
    return [Symbolic(axes, terms), end, end][: len(node.outputs)]


@rule("LinearAttention", domain="com.microsoft")
def linear_attention(
    ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]
) -> Sequence[Symbolic]:
    """Each position reads the keys, values and decays up to its own, and the state before them."""
    space = ctx.space
    heads, kv_heads = attr(node, "q_num_heads"), attr(node, "kv_num_heads")
    if attr(node, "state_window", 0):
        raise OpenError("it keeps several states")
    query, value = tensor(inputs, 0), tensor(inputs, 2)
    width = space.size(query.axes[2]).divided_by(heads)
    value_width = space.size(value.axes[2]).divided_by(kv_heads)
    if width is None or value_width is None or heads % kv_heads:
        raise OpenError("its widths do not divide into heads")
    step = space.axis(space.size(query.axes[1]))
    terms: list[Term] = []
    for index, part in enumerate(inputs):
        if part is None:
            continue
        if index == 3:
            terms += space.eliminate(part.terms, part.variables(), ())
            continue
        if space.size(part.axes[1]) != space.size(query.axes[1]):
            raise OpenError("queries, keys and values have different lengths")
        one, place = space.single(part, 1)
        terms += _steps(space, one, 1, place, step)
    last = space.eliminate(terms, set(step), ())
    out = (query.axes[0], step, space.axis(value_width * heads))
    state = (query.axes[0], *(space.axis(n) for n in (Poly.of(kv_heads), width, value_width)))
    return [Symbolic(out, tuple(terms)), Symbolic(state, last)][: len(node.outputs)]


def _steps(
    space: Space, part: Symbolic, axis: int, place: Poly, step: tuple[str, ...]
) -> list[Term]:
    """How far steps along an axis reach, each of which sees what those before it read.

    Args:
        space: Of the tensor.
        part: With one variable, or none, along the axis.
        axis: Along which the steps go.
        place: Where an entry lies along it.
        step: The axis of the result.

    Raises:
        OpenError: What later steps read lies before what earlier ones do.
    """
    found = []
    others = part.variables() - place.variables()
    for term in space.eliminate(part.terms, others, [part.axes[axis]]):
        for name in place.variables() & term.variables():
            parts = term.reach.split(name)
            if parts is None or not space.nonnegative(parts[0]):
                raise OpenError("positions run backwards")
        moved = {name: symbol(step[0]) for name in place.variables()} if step else {}
        found.append(Term(term.subs(moved).reach))
    return found


@rule("Scan")
def scan(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """Each step sees the entries up to its own, and what was there at the beginning."""
    space, body, count = ctx.space, attr(node, "body"), attr(node, "num_scan_inputs")
    for name in ("scan_input_directions", "scan_output_directions"):
        if any(attr(node, name) or ()):
            raise OpenError("it runs backwards")
    given = [tensor(inputs, index) for index in range(len(inputs))]
    states, scanned = given[: len(given) - count], given[len(given) - count :]
    axes = list(attr(node, "scan_input_axes") or [0] * count)
    (length,) = {space.size(t.axes[a % t.rank]) for t, a in zip(scanned, axes, strict=True)}
    step = space.axis(length)
    terms: list[Term] = []
    outside = [ctx.lookup(value) for value in reads(node) if value not in node.inputs]
    for part in (*states, *outside):
        if part is not None:
            terms += space.eliminate(part.terms, part.variables(), ())
    for part, axis in zip(scanned, axes, strict=True):
        one, index = space.single(part, axis % part.rank)
        terms += _steps(space, one, axis % part.rank, index, step)
    items = [
        Symbolic((*part.axes[: axis % part.rank], *part.axes[axis % part.rank + 1 :]))
        for part, axis in zip(scanned, axes, strict=True)
    ]
    found = ctx.run_graph(body, [*(Symbolic(part.axes) for part in states), *items])
    last = space.eliminate(terms, set(step), ())
    ends = [Symbolic(part.axes, last) for part in states]
    places = list(attr(node, "scan_output_axes") or [0] * (len(found) - len(states)))
    for part, place in zip(found[len(states) :], places, strict=True):
        at = place % (part.rank + 1)
        ends.append(Symbolic((*part.axes[:at], step, *part.axes[at:]), tuple(terms)))
    return ends


@rule("RandomNormal", "RandomUniform")
def random_of_shape(
    ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]
) -> Sequence[Symbolic]:
    """Numbers that depend on no data."""
    return [Symbolic(tuple(ctx.space.axis(Poly.of(n)) for n in attr(node, "shape")))]


@rule("RandomNormalLike", "RandomUniformLike")
def random_like(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """The same in the shape of another tensor."""
    return [Symbolic(tensor(inputs, 0).axes)]


@rule("If")
def branch(ctx: SymbolicContext, node: ir.Node, inputs: Sequence[Given]) -> Sequence[Symbolic]:
    """The branch that is taken for all sizes, or what either may give."""
    condition = tensor(inputs, 0)
    number: float | None = None if condition.ints is None else condition.ints[0].constant
    if number is None:
        number = settled(condition.value, ctx.space.bounds, tuple(ctx.space.limits))
    if number is not None:
        return ctx.run_graph(attr(node, "then_branch" if number else "else_branch"))
    then, otherwise = (ctx.run_graph(attr(node, f"{name}_branch")) for name in ("then", "else"))
    if isinstance(condition.value, IsZero) and ctx.space.nonnegative(condition.value.poly):
        given = (*ctx.space.limits, condition.value.poly - 1)
        otherwise = [_with_ones(ctx.space, part, given) for part in otherwise]
    found = []
    for one, other in zip(then, otherwise, strict=True):
        if ctx.space.shape(one) != ctx.space.shape(other):
            raise OpenError("the branches differ in shape")
        moved, axes = ctx.space.align([one, other])
        terms = [*condition.terms, *(term for part in moved for term in part.terms)]
        known = condition.known and one.known and other.known
        found.append(Symbolic(axes, ctx.space.join(terms), known=known))
    return found


def _with_ones(space: Space, part: Symbolic, given: Sequence[Poly]) -> Symbolic:
    """The tensor without an index along axes whose size is the least of two, and 1 where all of
    `given` are >= 0."""
    bounds = space.bounds
    for axis, names in enumerate(part.axes):
        size = space.size(names)
        pair = next((pair for pair, least in bounds.least_of.items() if least == size), ())
        is_one = bool(names and pair) and bounds.implied(1 - size, given)
        if not is_one or not all(bounds.implied(number - 1, given) for number in pair):
            continue
        conclude(size, "==", 1, given=given, bounds=bounds)
        part, index = space.single(part, axis)
        (name,) = index.variables()
        axes = (*part.axes[:axis], (), *part.axes[axis + 1 :])
        part = replace(part.subs({name: ZERO}), axes=axes, ints=None)
    return part


MAX_LOADED = 1 << 16
"""Largest matrix that is looked at for being all one number: larger ones are mostly weights, which
need not be read for the proof."""


def constant(space: Space, known: Known) -> Symbolic:
    """A tensor that does not depend on the sizes."""
    axes = tuple(space.axis(Poly.of(n)) for n in known.shape)
    held: tuple[Poly, ...] | None = None
    value: Expression = UNKNOWN
    rank = len(known.shape)
    if known.size == 1:
        number = known.value.reshape(-1)[0]
        kind = known.value.dtype.kind
        if kind in "biuf":
            value = Constant(float(number))
            if rank <= 1 and (kind != "f" or float(number).is_integer()):
                held = (Poly.of(int(number)),)
    elif known.size > 0:
        index = tuple(symbol(axis[0]) if axis else ZERO for axis in axes)
        value = Lookup(known, index)
        long = [axis for axis, size in enumerate(known.shape) if size > 1]
        if rank == 1:
            held, value = _vector(known, index[0], value)
        elif len(long) == 1 and known.size <= MAX_LOADED:
            _, value = _vector(Known(known.value.reshape(-1)), index[long[0]], value)
        elif known.size <= MAX_LOADED and rank == 2 and known.value.dtype.kind in "biuf":
            array = known.value
            if (array == array.flat[0]).all():
                value = Constant(float(array.flat[0]))
    elif rank == 1:
        held = ()
    return Symbolic(axes, value=value, ints=held, known=True)


def _vector(
    known: Known, place: Poly, value: Expression
) -> tuple[tuple[Poly, ...] | None, Expression]:
    """Short vectors of whole numbers, and those that count up evenly."""
    array = known.value
    if array.dtype.kind not in "biuf":
        return None, UNKNOWN
    if (array == array[0]).all():
        value = Constant(float(array[0]))
    held = None
    if array.dtype.kind in "iub" and len(array) <= 64:
        held = tuple(Poly.of(int(x)) for x in array)
    if len(array) > 1 and array.dtype.kind in "iuf" and np.isfinite(array).all():
        steps = np.diff(array)
        step = float(steps[0])
        if (
            step
            and step == int(step)
            and (steps == step).all()
            and float(array[0]) == int(array[0])
        ):
            value = linear(place * int(step) + int(array[0]))
    return held, value


__all__ += ["combine", "constant", "matmul"]
