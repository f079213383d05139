"""Where a power of two for each channel can move from activations into the weights that read them.

Dividing the activations is free where something stored makes them: a norm's weight, or the linear
layer before. Both ways a power of two loses no bit, so that the graph computes what it did.
Source: Xiao et al. 2023 (SmoothQuant), https://arxiv.org/abs/2211.10438, section 4.

A place is found by what the graph computes, never by a name, and only if every reader of the
activations multiplies them by a stored matrix of its own. What is not understood is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.analysis.interpret import SizesRefusedError, StuckError
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.edit import constant, constant_value
from causal_onnx.export.graph.facts import Axis, Layouts
from causal_onnx.export.graph.match import producer
from causal_onnx.export.graph.weights import Use, find_uses

__all__ = ["Exponents", "Place", "find_places", "fold"]

Exponents = npt.NDArray[np.int8]
"""(channels,): activations are divided, and the weights behind them multiplied, by 2^k."""

_NORMS = {"LayerNormalization": (1, 2), "RMSNormalization": (1,)}
"""Norms, and their inputs that scale what they return."""


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """Something stored that is divided: an input of a node."""

    node: ir.Node
    index: int
    axis: int
    """Of the stored array: the one that the channels run along."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Activations whose channels may be divided, and the products that read them."""

    value: ir.Value
    """What a product reads: (..., channels)."""
    channels: int
    uses: tuple[Use, ...]
    """All that reads it."""
    before: tuple[_Stored, ...]
    """What is divided instead."""
    columns: npt.NDArray[np.int64]
    """(channels,): for each channel the one of what is divided. Several heads may read one of V,
    and these channels have one exponent."""
    width: int
    """Channels of what is divided; those that `columns` does not name stay."""

    @property
    def weights(self) -> Iterator[ir.Value]:
        """Every stored matrix that is changed."""
        yield from (use.weight for use in self.uses)
        for stored in self.before:
            weight = stored.node.inputs[stored.index]
            if weight is not None and stored.node.op_type in ("MatMul", "Gemm"):
                yield weight


def find_places(model: ir.Model, max_seq_len: int | None = None) -> list[Place]:
    """All of them, in the order of the graph, which takes at most so many positions."""
    products = {id(use.node): use for use in find_uses(model) if not use.is_lookup}
    attention = _Attention(model, max_seq_len)
    found: dict[int, Place] = {}
    for use in products.values():
        root = _root(use.node.inputs[0], _width(use))
        if root is None or id(root) in found or use.node.graph is not model.graph:
            continue
        place = _place(root, use.node.inputs[0], _width(use), products, attention)
        if place is not None:
            found[id(root)] = place
    return list(found.values())


def fold(model: ir.Model, place: Place, exponents: Exponents) -> None:
    """Divide what makes the activations, and multiply what reads them, in place."""
    factors = np.exp2(exponents.astype(np.float32))
    divisors = np.ones(place.width, np.float32)
    divisors[place.columns] = factors
    for stored in place.before:
        old = constant_value(stored.node.inputs[stored.index])
        assert old is not None
        new = old / _along(divisors, stored.axis, old.ndim)
        weight = stored.node.inputs[stored.index]
        if weight is not None and stored.node.op_type in ("MatMul", "Gemm") and stored.index == 1:
            weight.const_value = ir.tensor(new, name=weight.name)
        else:  # other norms may share it
            stored.node.replace_input_with(stored.index, constant(model.graph, new))
    for use in place.uses:
        assert use.weight.const_value is not None
        array = use.weight.const_value.numpy()
        scaled = np.ascontiguousarray(array * _along(factors, use.axis, 2))
        use.weight.const_value = ir.tensor(scaled, name=use.weight.name)


def _along(factors: npt.NDArray[np.float32], axis: int, ndim: int) -> npt.NDArray[np.float32]:
    shape = [1] * ndim
    shape[axis] = -1
    return factors.reshape(shape)


def _width(use: Use) -> int:
    assert use.weight.const_value is not None
    return int(use.weight.const_value.numpy().shape[use.axis])


def _place(
    root: ir.Value,
    read: ir.Value | None,
    channels: int,
    products: Mapping[int, Use],
    attention: _Attention,
) -> Place | None:
    graph = attention.graph
    uses = _readers(root, channels, products, graph)
    if uses is None or read is None or channels < 2:
        return None
    if any(not _is_own(use) or _width(use) != channels for use in uses):
        return None
    columns, width = np.arange(channels), channels
    before = _before(root, channels, products, graph)
    if before is None:
        values = attention.values(root, channels)
        if values is None:
            return None
        columns, width = values.columns, values.width
        before = _before(values.source, width, products, graph)
    if before is None:
        return None
    return Place(
        value=read,
        channels=channels,
        uses=tuple(uses),
        before=tuple(before),
        columns=columns,
        width=width,
    )


@dataclass(frozen=True, kw_only=True)
class _Values:
    """What the values of an attention are made of."""

    source: ir.Value
    """(..., width), read by nothing else."""
    columns: npt.NDArray[np.int64]
    """For each channel of the result."""
    width: int


class _Attention:
    """Attention, from its result back to its values: each channel is a sum of theirs."""

    def __init__(self, model: ir.Model, max_seq_len: int | None):
        self.graph = model.graph
        self._model, self._limit = model, max_seq_len

    def values(self, result: ir.Value | None, channels: int) -> _Values | None:
        """Where the channels of all heads together come from; None: that is not understood."""
        flat = producer(result, "Reshape")  # to a last axis that it need not name
        if flat is not None and self._sizes(result, 1) == (channels,):
            result = flat.inputs[0] if _is_read_once(flat.inputs[0]) else None
        turned = _turned(result)
        node = producer(turned, "Attention")
        if node is None or turned is None or turned is not node.outputs[0]:
            return None
        if any(node.inputs[4:]) or any(x.uses() or x.is_graph_output() for x in node.outputs[1:]):
            return None  # past and present values would have to be scaled, too
        given = self._before_repeated(node.inputs[2])
        apart = _turned(given) if _is_read_once(given) else None
        shaped = producer(apart, "Reshape") if _is_read_once(apart) else None
        source = None if shaped is None else shaped.inputs[0]
        if apart is None or source is None or not (_is_read_once(turned) and _is_read_once(source)):
            return None
        heads, head_dim = self._sizes(result, 2)
        kv_heads, kv_dim = self._sizes(apart, 2)
        (width,) = self._sizes(source, 1)
        if not kv_heads or not head_dim:
            return None
        is_whole = heads * head_dim == channels and kv_heads * kv_dim == width
        if not is_whole or kv_dim != head_dim or heads % kv_heads:
            return None
        kv_head = np.arange(heads) // (heads // kv_heads)
        columns = (kv_head[:, None] * head_dim + np.arange(head_dim)).reshape(-1)
        split = producer(source, "Split")
        if split is None or not _is_read_once(split.inputs[0]):
            return _Values(source=source, columns=columns, width=width)
        (whole,) = self._sizes(split.inputs[0], 1)
        parts = [self._sizes(part, 1)[0] for part in split.outputs]
        before = sum(parts[: split.outputs.index(source)])
        assert split.inputs[0] is not None
        if sum(parts) != whole or 0 in parts:
            return None  # along another axis
        return _Values(source=split.inputs[0], columns=columns + before, width=whole)

    def _before_repeated(self, value: ir.Value | None) -> ir.Value | None:
        """Values (batch, kv_heads, seq, head_dim) before each head was repeated for its queries."""
        chain, source = [], value
        for op_type in ("Reshape", "Expand", "Unsqueeze"):
            node = producer(source, op_type) if _is_read_once(source) else None
            if node is None:
                return value
            chain.append(node.outputs[0])
            source = node.inputs[0]
        many, wide, apart = chain
        new_axis = apart.producer()
        place = None if new_axis is None else constant_value(new_axis.inputs[1])
        if place is None or place.tolist() != [2] or len(self._axes(wide)) != 5:
            return value
        heads, times, _, head_dim = self._sizes(wide, 4)
        total, _, last = self._sizes(many, 3)
        is_repeated = self._sizes(source, 3)[0] == heads and total == heads * times
        return source if is_repeated and last == head_dim and len(self._axes(many)) == 4 else value

    def _axes(self, value: ir.Value) -> tuple[Axis, ...]:
        return () if self._layouts is None else self._layouts.axes(value)

    def _sizes(self, value: ir.Value | None, count: int) -> tuple[int, ...]:
        """Of the last axes, 0 where one is not fixed."""
        axes = () if value is None else self._axes(value)[-count:]
        found = tuple(axis.count if axis.is_fixed else 0 for axis in axes)
        return found if len(found) == count else (0,) * count

    @cached_property
    def _layouts(self) -> Layouts | None:
        try:
            return Layouts(self._model, self._limit)
        except (NotSupportedError, SizesRefusedError, StuckError):
            return None


def _turned(value: ir.Value | None) -> ir.Value | None:
    """What becomes `value` when heads and positions change places."""
    node = producer(value, "Transpose")
    perm = None if node is None else node.attributes.get("perm")
    if node is None or perm is None or list(perm.as_ints()) != [0, 2, 1, 3]:
        return None
    return node.inputs[0]


def _root(value: ir.Value | None, channels: int) -> ir.Value | None:
    """`value` before it took another shape with the same channels."""
    while value is not None:
        node = producer(value, "Reshape", "Identity")
        if node is None or not _keeps_channels(node, channels):
            return value
        value = node.inputs[0]
    return None


def _keeps_channels(node: ir.Node, channels: int) -> bool:
    """Whether (..., channels) stay the last axis; a Reshape of what has them says so itself."""
    if node.op_type != "Reshape":
        return node.op_type in ("Identity", "Relu")
    return _last_size(node.inputs[1]) == channels


def _last_size(shape: ir.Value | None) -> int | None:
    """The last entry of a shape, if it is always the same."""
    array = constant_value(shape)
    if array is None:
        node = producer(shape, "Concat")
        array = None if node is None else constant_value(node.inputs[-1])
    return int(array.reshape(-1)[-1]) if array is not None and array.size else None


def _readers(
    value: ir.Value, channels: int, products: Mapping[int, Use], graph: ir.Graph
) -> list[Use] | None:
    """The products that read `value`; None: something else does as well."""
    if value.is_graph_output():
        return None
    found = []
    for node, index in ((use.node, use.idx) for use in value.uses()):
        if node.graph is not graph or index != 0:
            return None
        if id(node) in products:
            found.append(products[id(node)])
            continue
        if producer(node.outputs[0], "Reshape", "Identity") is None:
            return None
        if not _keeps_channels(node, channels):
            return None
        more = _readers(node.outputs[0], channels, products, graph)
        if more is None:
            return None
        found += more
    return found


def _is_own(use: Use) -> bool:
    """Whether the product alone reads its weight."""
    return use.node.inputs[1] is use.weight and _is_read_once(use.weight)


def _is_read_once(value: ir.Value | None) -> bool:
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _before(
    value: ir.Value | None, channels: int, products: Mapping[int, Use], graph: ir.Graph
) -> list[_Stored] | None:
    """What to divide for `value`, whose readers are all known, to be divided; None: unknown."""
    node = None if value is None else value.producer()
    if node is None or node.graph is not graph or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in _NORMS:
        return _of_norm(node, channels) if node.outputs[0] is value else None
    if id(node) in products:
        return _of_product(products[id(node)], channels)

    def further(operand: ir.Value | None) -> list[_Stored] | None:
        return _before(operand, channels, products, graph) if _is_read_once(operand) else None

    if node.op_type in ("Reshape", "Identity", "Relu") and _keeps_channels(node, channels):
        return further(node.inputs[0])
    if node.op_type in ("Mul", "Add"):
        vectors = [i for i, x in enumerate(node.inputs) if _is_vector(x, channels)]
        if vectors:
            index = vectors[0]
            stored = _Stored(node=node, index=index, axis=_last_axis(node.inputs[index]))
            rest = further(node.inputs[1 - index]) if node.op_type == "Add" else []
            return None if rest is None else [stored, *rest]
        if node.op_type == "Mul":
            ways = (further(x) for x in node.inputs if constant_value(x) is None)
            return next((way for way in ways if way is not None), None)
    return None


def _of_norm(node: ir.Node, channels: int) -> list[_Stored] | None:
    axis = node.attributes.get("axis")
    if axis is not None and axis.as_int() != -1:
        return None
    indices = [i for i in _NORMS[node.op_type] if i < len(node.inputs) and node.inputs[i]]
    if not indices or not all(_is_vector(node.inputs[i], channels) for i in indices):
        return None
    return [_Stored(node=node, index=i, axis=0) for i in indices]


def _of_product(use: Use, channels: int) -> list[_Stored] | None:
    """The columns of the weight, and the bias of a Gemm."""
    node = use.node
    columns = 1 - use.axis
    assert use.weight.const_value is not None
    if not _is_own(use) or use.weight.const_value.shape[columns] != channels:
        return None
    found = [_Stored(node=node, index=1, axis=columns)]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None:
        if not _is_vector(bias, channels):
            return None
        found.append(_Stored(node=node, index=2, axis=_last_axis(bias)))
    return found


def _is_vector(value: ir.Value | None, channels: int) -> bool:
    """Whether it is a stored number for each channel."""
    array = constant_value(value)
    if array is None or array.dtype != np.float32 or array.ndim == 0:
        return False
    return bool(array.size == array.shape[-1] == channels)


def _last_axis(value: ir.Value | None) -> int:
    array = constant_value(value)
    assert array is not None
    return array.ndim - 1
