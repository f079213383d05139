"""Products that sum over an axis: MatMul, Gemm, Einsum, convolutions.

A term of the sum leaves no trace where either factor is known to be 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import UnsupportedError, attr, required, tensor_at
from causal_onnx.export.analysis.elements import (
    NONE,
    Abstract,
    Array,
    BoolArray,
    Elements,
    IntArray,
    Known,
    RefusedByOnnxError,
    Tensor,
    compress,
    lift,
    normal,
    restructure,
    view,
)
from causal_onnx.export.analysis.rules.registry import Context, rule

__all__ = ["LETTERS", "contract", "equation_terms", "matmul"]

BLOCK = 1 << 24
"""Most elements of the space of all labels held at once (the operands are compressed, so that only
position-like axes count)."""

SMALL = 1 << 12
"""Constants up to this size are looked at for zeros wherever they stand; larger ones are mostly
weights, without zeros that matter."""


def _operand(tensor: Tensor, *, other_varies: bool) -> tuple[IntArray, BoolArray]:
    """Reach and "may be other than 0" of a factor.

    A weight is taken as dense without looking at it, unless the other factor's reach varies along
    the sum. What the sizes decide is looked at always: one row of a mask of chunks may be all 0,
    whatever it is multiplied by.
    """
    rank = len(tensor.shape)
    dense = np.ones((1,) * rank, np.bool_)
    if isinstance(tensor, Known):
        reach = np.full((1,) * rank, NONE, np.int32)
        wanted = other_varies or not tensor.constant or tensor.size <= SMALL
        if not wanted or tensor.size > BLOCK:
            return reach, dense
        return reach, compress(np.asarray(tensor.value != 0))
    if tensor.known is None or tensor.value is None:
        return tensor.reach, dense
    return tensor.reach, ~(tensor.known & (tensor.value == 0))


def _varies(tensor: Tensor, labels: str, summed: set[str]) -> bool:
    """Whether the records differ along a summed axis."""
    if isinstance(tensor, Known):
        return False
    records = [tensor.reach] + ([] if tensor.known is None else [tensor.known])
    return any(
        record.shape[axis] > 1
        for record in records
        for axis, label in enumerate(labels)
        if label in summed
    )


def contract(a_labels: str, b_labels: str, out_labels: str, a: Tensor, b: Tensor) -> Tensor:
    """Sum of products over the labels that `out_labels` lacks, as in einsum (labels may broadcast).

    Raises:
        RefusedByOnnxError: A label has two sizes.
    """
    sizes = _sizes((a_labels, a.shape), (b_labels, b.shape))
    summed = (set(a_labels) | set(b_labels)) - set(out_labels)
    reach_a, some_a = _operand(a, other_varies=_varies(b, b_labels, summed))
    reach_b, some_b = _operand(b, other_varies=_varies(a, a_labels, summed))
    space = out_labels + "".join(sorted(summed))
    axes = tuple(range(len(out_labels), len(space)))
    shape = tuple(sizes[label] for label in out_labels)
    reach_a, some_a = (_spread(record, a_labels, space) for record in (reach_a, some_a))
    reach_b, some_b = (_spread(record, b_labels, space) for record in (reach_b, some_b))
    if any(sizes[label] == 0 for label in summed):
        return Known(np.zeros(shape, np.float32))
    total = np.broadcast_shapes(reach_a.shape, some_a.shape, reach_b.shape, some_b.shape)
    if int(np.prod(total, dtype=np.int64)) > BLOCK:
        # Too large for one piece: give up the pattern of zeros and keep the largest reach per axis.
        reach_a = reach_a.max(axis=axes, keepdims=True)
        reach_b = reach_b.max(axis=axes, keepdims=True)
        some_a = some_b = np.ones((1,) * len(space), np.bool_)
    some = some_a & some_b
    reach = np.where(some, np.maximum(reach_a, reach_b), np.int32(NONE))
    out = Elements(shape, compress(reach.max(axis=axes) if axes else reach))
    zero = np.asarray(~some.any(axis=axes) if axes else ~some)
    if zero.any():
        out.known = compress(zero)
        out.value = np.zeros((1,) * len(shape), np.float32)
    return normal(out)


def _sizes(*operands: tuple[str, tuple[int, ...]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for labels, shape in operands:
        if len(labels) != len(shape):
            raise RefusedByOnnxError(
                f"{len(labels)} labels ({labels}) for a tensor of shape {shape}"
            )
        for label, size in zip(labels, shape, strict=True):
            if sizes.get(label, 1) != size and size != 1 and sizes.get(label, 1) != 1:
                raise RefusedByOnnxError(f"axis {label} has sizes {sizes[label]} and {size}")
            sizes[label] = size if sizes.get(label, 1) == 1 else sizes[label]
    return sizes


def _spread(record: Array, labels: str, space: str) -> Array:
    """The record with one axis per label of the space, and of size 1 where it has none.

    A label that occurs twice (a diagonal) takes the larger entry of the two axes.
    """
    for label in set(labels):
        while labels.count(label) > 1:
            first, second = (i for i, x in enumerate(labels) if x == label)
            if record.shape[first] == record.shape[second] > 1:
                record = np.moveaxis(record.diagonal(axis1=first, axis2=second), -1, first)
            elif record.shape[first] == 1:
                record = np.moveaxis(record.take(0, axis=first), second - 1, first)
            else:
                record = record.take(0, axis=second)
            labels = labels[:second] + labels[second + 1 :]
    order = sorted(range(len(labels)), key=lambda i: space.index(labels[i]))
    record = record.transpose(order)
    present = [labels[i] for i in order]
    sizes = dict(zip(present, record.shape, strict=True))
    return record.reshape([sizes.get(label, 1) for label in space])


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """numpy.matmul, including its treatment of vectors."""
    lead_a, lead_b = max(len(a.shape) - 2, 0), max(len(b.shape) - 2, 0)
    lead = max(lead_a, lead_b)
    batch = LETTERS[:lead]
    row, inner, column = "xyz"
    a_labels = batch[lead - lead_a :] + (row if len(a.shape) > 1 else "") + inner
    b_labels = batch[lead - lead_b :] + inner + (column if len(b.shape) > 1 else "")
    out = batch + (row if len(a.shape) > 1 else "") + (column if len(b.shape) > 1 else "")
    if a.shape[-1] != (b.shape[-2] if len(b.shape) > 1 else b.shape[0]):
        raise RefusedByOnnxError(f"MatMul of shapes {a.shape} and {b.shape}")
    return contract(a_labels, b_labels, out, a, b)


def transposed(tensor: Tensor, perm: Sequence[int]) -> Tensor:
    """The tensor with its axes in another order."""
    return normal(restructure(lift(tensor), lambda array, _: array.transpose(perm)))


@rule("MatMul")
def matmul_node(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """The product over the last axis of A and the last but one of B."""
    return [matmul(required(inputs, 0), required(inputs, 1))]


@rule("Einsum")
def einsum(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Products of any number of operands, two at a time."""
    tensors = [required(inputs, i) for i in range(len(inputs))]
    terms, out = equation_terms(attr(node, "equation"), [len(t.shape) for t in tensors])
    labels, current = terms[0], tensors[0]
    if len(tensors) == 1:
        one = Known(np.ones((), np.float32))
        return [contract(labels, "", out, current, one)]
    for index in range(1, len(tensors)):
        later = set(out).union(*terms[index + 1 :]) if index + 1 < len(terms) else set(out)
        joint = dict.fromkeys(labels + terms[index])
        kept = out if index == len(tensors) - 1 else "".join(x for x in joint if x in later)
        current = contract(labels, terms[index], kept, current, tensors[index])
        labels = kept
    return [current]


def equation_terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The labels of each operand and of the result, with "..." spelled out."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise RefusedByOnnxError(f"einsum {equation!r} of {len(ranks)} operands")
    dots = max(
        (
            rank - len(term.replace("...", ""))
            for term, rank in zip(terms, ranks, strict=True)
            if "..." in term
        ),
        default=0,
    )
    used = set(equation)
    spare = [x for x in LETTERS + LETTERS.upper() if x not in used][:dots]
    full = []
    for term, rank in zip(terms, ranks, strict=True):
        own = rank - len(term.replace("...", ""))
        full.append(term.replace("...", "".join(spare[dots - own :])))
    if not arrow:
        once = sorted(x for x in set(left) - set(",.") if left.count(x) == 1)
        return full, "".join(spare) + "".join(once)
    return full, right.replace("...", "".join(spare))


@rule("Conv", "ConvInteger")
def conv(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Each output gathers its window; taps whose weights are all 0 leave no trace."""
    tensor, weight = required(inputs, 0), required(inputs, 1)
    source = lift(tensor)
    kernel = list(weight.shape[2:])
    groups = attr(node, "group", 1)
    reach = _channels(source, groups, weight.shape[0])
    reach = _windows(node, reach, source.shape[2:], kernel, _live_taps(weight, kernel))
    shape = (source.shape[0], weight.shape[0], *reach.shape[2:])
    return _with_others(Elements(shape, compress(reach)), inputs, weight)


def _with_others(out: Elements, inputs: Sequence[Abstract], weight: Tensor) -> Sequence[Abstract]:
    """Weights, biases and scales that depend on data reach everywhere they are used."""
    top = int(lift(weight).reach.max(initial=NONE)) if isinstance(weight, Elements) else NONE
    for index in range(2, len(inputs)):
        extra = tensor_at(inputs, index)
        if isinstance(extra, Elements):
            top = max(top, int(extra.reach.max(initial=NONE)))
    if top > NONE:
        out.reach = np.maximum(out.reach, np.int32(top))
    return [out]


def _channels(source: Elements, groups: int, out_channels: int) -> IntArray:
    """Reach per output channel: the largest of the input channels of its group."""
    reach = view(source.reach, source.shape)
    n, channels, *space = source.shape
    grouped = reach.reshape(n, groups, channels // groups, *space).max(axis=2)
    return np.repeat(grouped, out_channels // groups, axis=1)


def _live_taps(weight: Tensor, kernel: Sequence[int]) -> BoolArray:
    if isinstance(weight, Known) and weight.size <= BLOCK:
        return np.asarray((weight.value != 0).any(axis=(0, 1)))
    return np.ones(kernel, np.bool_)


def _windows(
    node: ir.Node,
    reach: IntArray,
    space: Sequence[int],
    kernel: Sequence[int],
    live: BoolArray,
) -> IntArray:
    """The largest reach in the window of each output position."""
    rank = len(space)
    strides = list(attr(node, "strides") or [1] * rank)
    dilations = list(attr(node, "dilations") or [1] * rank)
    before, after = _conv_pads(node, space, kernel, strides, dilations)
    width = [(0, 0), (0, 0), *zip(before, after, strict=True)]
    padded = np.pad(reach, width, constant_values=NONE)
    extent = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    sizes = []
    for i in range(rank):
        room = padded.shape[2 + i] - extent[i]
        extra = strides[i] - 1 if attr(node, "ceil_mode", 0) else 0
        sizes.append((room + extra) // strides[i] + 1)
        if room < 0:
            raise RefusedByOnnxError(f"a window of {extent[i]} on an axis of size {space[i]}")
    need = [(n - 1) * s + e for n, s, e in zip(sizes, strides, extent, strict=True)]
    more = [(0, max(0, n - p)) for n, p in zip(need, padded.shape[2:], strict=True)]
    padded = np.pad(padded, [(0, 0), (0, 0), *more], constant_values=NONE)
    out = np.full((*reach.shape[:2], *sizes), NONE, np.int32)
    for tap in product(*(range(k) for k in kernel)):
        if live[tap]:
            window = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, dilations, sizes, strides, strict=True)
            )
            out = np.maximum(out, padded[(slice(None), slice(None), *window)])
    return out


def _conv_pads(
    node: ir.Node,
    space: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    rank = len(space)
    mode = attr(node, "auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = list(attr(node, "pads") or [0] * (2 * rank))
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return [0] * rank, [0] * rank
    before, after = [], []
    for size, k, s, d in zip(space, kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + d * (k - 1) + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(small if mode == "SAME_UPPER" else large)
        after.append(large if mode == "SAME_UPPER" else small)
    return before, after


@rule("MaxPool", "AveragePool", "LpPool")
def pool(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Each output gathers its window."""
    source = lift(required(inputs, 0))
    kernel = list(attr(node, "kernel_shape"))
    reach = view(source.reach, source.shape)
    found = _windows(node, reach, source.shape[2:], kernel, np.ones(kernel, np.bool_))
    out = Elements(found.shape, compress(found))
    return [out, Elements(out.shape, out.reach)][: len(node.outputs)]


@rule("ConvTranspose")
def conv_transpose(ctx: Context, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
    """Each input spreads over its window."""
    tensor, weight = required(inputs, 0), required(inputs, 1)
    source = lift(tensor)
    space, kernel = source.shape[2:], list(weight.shape[2:])
    rank, groups = len(space), attr(node, "group", 1)
    if attr(node, "auto_pad", "NOTSET") not in ("NOTSET", "") or attr(node, "output_shape"):
        raise UnsupportedError("ConvTranspose with automatic padding is not followed")
    strides = list(attr(node, "strides") or [1] * rank)
    dilations = list(attr(node, "dilations") or [1] * rank)
    pads = list(attr(node, "pads") or [0] * (2 * rank))
    extra = list(attr(node, "output_padding") or [0] * rank)
    full = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(space, strides, dilations, kernel, extra, strict=True)
    ]
    reach = _channels(source, groups, weight.shape[1] * groups)
    out = np.full((*reach.shape[:2], *full), NONE, np.int32)
    live = _live_taps(weight, kernel)
    for tap in product(*(range(k) for k in kernel)):
        if live[tap]:
            taps = (
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, dilations, space, strides, strict=True)
            )
            window = (slice(None), slice(None), *taps)
            out[window] = np.maximum(out[window], reach)
    crop = tuple(slice(pads[i], full[i] - pads[rank + i]) for i in range(rank))
    found = out[(slice(None), slice(None), *crop)]
    return _with_others(Elements(found.shape, compress(found)), inputs, weight)
