"""Fused attention and rotary positions, ONNX's own and those of onnxruntime."""

from __future__ import annotations

from causal_onnx.runtime.scan.rules.contraction import matmul_shape
from causal_onnx.runtime.scan.sizes import (
    Number,
    Size,
    add,
    between,
    divide,
    high_of,
    hull,
    multiply,
    quotient,
)
from causal_onnx.runtime.scan.values import Node, Shape, Value, extent

__all__ = [
    "attention", "contrib_attention", "grouped_query", "linear_attention", "multi_head",
    "rotary_embedding",
]  # fmt: skip

MAX_HEADS = 1 << 14


def _heads(node: Node, name: str) -> int:
    heads = node.number(name, 0)
    if not 1 <= heads <= MAX_HEADS:
        node.refuse(f"has {name} = {heads}, expected 1 to {MAX_HEADS}")
    return heads


def _share(node: Node, width: Number, heads: int) -> Number:
    """The width of one head."""
    found = quotient(width, heads)
    if found is None or (not isinstance(found, Size) and found < 1):
        node.refuse(f"shares a width of {_shown(width)} among {heads} heads")
    return found


def _shown(size: Number) -> str:
    return "an unknown size" if isinstance(size, Size) else str(size)


def _attend(node: Node, scores: Value, widths: Number) -> None:
    """What all scores cost, which are held at once."""
    node.work += scores.elements * (extent(widths) + 32)
    node.transient += 3 * scores.elements * 4


def _past(node: Node, index: int) -> Number:
    """How many positions came before; (batch, heads, past, width)."""
    return node.ranked(index, 4).shape[2] if node.has(index) else 0


def attention(node: Node) -> list[Value]:
    """ONNX's own: queries, keys, values, a mask, past keys and values, lengths."""
    # Over empty axes it ends in an error, which was tried: not so those of onnxruntime below.
    query, key, value = (node.ranked(index, 3, 4) for index in range(3))
    if len({len(part.shape) for part in (query, key, value)}) != 1:
        node.refuse("has queries, keys and values of several ranks")
    heads: Number
    kv_heads: Number
    if len(query.shape) == 3:
        heads, kv_heads = stated = _heads(node, "q_num_heads"), _heads(node, "kv_num_heads")
        width = _share(node, query.shape[2], stated[0])
        value_width = _share(node, value.shape[2], stated[1])
        _share(node, key.shape[2], stated[1])
        seq, kv_seq = query.shape[1], key.shape[1]
    else:
        for part in (query, key, value):
            node.nonempty(part, [1], what="a tensor of heads")  # it divides by their number
        heads, kv_heads = query.shape[1], key.shape[1]
        width, value_width = query.shape[3], value.shape[3]
        seq, kv_seq = query.shape[2], key.shape[2]
    if isinstance(heads, Size) or isinstance(kv_heads, Size):
        copies = extent(heads)  # as a reshape left them: onnxruntime compares them in each call
    elif heads % kv_heads:
        node.refuse(f"has {heads} heads of queries and {kv_heads} of keys")
    else:
        copies = heads // kv_heads
    batch = query.shape[0]
    total = add(_past(node, 4), kv_seq)
    shape: Shape
    if len(query.shape) == 3:
        shape = (batch, seq, multiply(value_width, heads))
    else:
        shape = (batch, heads, seq, value_width)
    result = node.result(query.dtype, shape)
    keys = node.result(query.dtype, (batch, kv_heads, total, width))
    values = node.result(query.dtype, (batch, kv_heads, total, value_width))
    scores = node.result(query.dtype, (batch, heads, seq, total))
    _attend(node, scores, multiply(hull([width, value_width]), 2))
    node.transient += 2 * (keys.bytes + values.bytes) * copies + result.bytes * 4
    return [result, keys, values, scores][: max(node.outputs, 1)]


def grouped_query(node: Node) -> list[Value]:
    """Onnxruntime's GroupQueryAttention; lengths are checked by it, element by element."""
    query = node.ranked(0, 3)
    node.nonempty(query)
    heads, kv_heads = _heads(node, "num_heads"), _heads(node, "kv_num_heads")
    if heads % kv_heads:
        node.refuse(f"has {heads} heads of queries and {kv_heads} of keys")
    batch, seq, hidden = query.shape
    packed = not node.has(1)
    if packed != (not node.has(2)):
        node.refuse("has keys without values, or values without keys")
    if packed:
        width = _share(node, hidden, heads + 2 * kv_heads)
    else:
        width = _share(node, hidden, heads)
        for index in (1, 2):
            node.nonempty(node.ranked(index, 3))
            if node.input(index).shape[2] != multiply(width, kv_heads):
                node.refuse(f"has an input {index} that is not of {kv_heads} heads")
    if node.has(3) != node.has(4):
        node.refuse("has past keys without past values, or the other way round")
    known = node.input(6).numbers
    if known is None or known.high >= 1 << 31 or known.low < 0:
        node.refuse("has a total length (input 6) that does not come from the sizes of its inputs")
    past = hull([_past(node, 3), _past(node, 4)])
    # It gives room for the total length, and checks that against the past and the keys.
    total = between((0,), high_of(hull([add(past, seq), known.all])))
    if node.number("local_window_size", -1) < -1:
        node.refuse(f"has the window {node.number('local_window_size')}")
    for index in (7, 8):
        if node.has(index):
            node.nonempty(node.ranked(index, 2))
    result = node.result(query.dtype, (batch, seq, multiply(width, heads)))
    present = node.result(query.dtype, (batch, kv_heads, total, width))
    scores = node.result(query.dtype, (batch, heads, seq, total))
    _attend(node, scores, multiply(width, 2))
    node.transient += query.bytes * 4 + result.bytes * 2
    return [result, present, present, scores][: max(node.outputs, 1)]


def multi_head(node: Node) -> list[Value]:
    """Onnxruntime's MultiHeadAttention, in its form with queries, keys and values apart."""
    heads = _heads(node, "num_heads")
    query = node.ranked(0, 3)
    key, value = node.ranked(1, 3, 4), node.ranked(2, 3, 4)
    for part in (query, key, value):
        node.nonempty(part)
    batch, seq, hidden = query.shape
    width = _share(node, hidden, heads)
    if len(key.shape) != len(value.shape):
        node.refuse("has keys and values of several ranks")
    if len(key.shape) == 3:
        kv_seq, value_width = key.shape[1], _share(node, value.shape[2], heads)
        if key.shape[2] != hidden:
            node.refuse("has keys of another width than its queries")
    else:
        if key.shape[1] != heads or value.shape[1] != heads or key.shape[3] != width:
            node.refuse(f"has keys that are not of {heads} heads")
        kv_seq, value_width = key.shape[2], value.shape[3]
    if node.has(3):
        biases = add(multiply(hidden, 2), multiply(value_width, heads))
        if node.ranked(3, 1).shape[0] != biases:
            node.refuse("has a bias of another width than queries, keys and values")
    if node.has(8) or node.has(9) or node.has(6) != node.has(7):
        node.refuse("has a past that is shared, or of keys alone")
    total = add(_past(node, 6), kv_seq)
    result = node.result(query.dtype, (batch, seq, multiply(value_width, heads)))
    keys = node.result(query.dtype, (batch, heads, total, width))
    values = node.result(query.dtype, (batch, heads, total, value_width))
    scores = node.result(query.dtype, (batch, heads, seq, total))
    _attend(node, scores, multiply(hull([width, value_width]), 2))
    node.transient += 3 * (keys.bytes + values.bytes) + result.bytes * 4
    return [result, keys, values][: max(node.outputs, 1)]


def linear_attention(node: Node) -> list[Value]:
    """Onnxruntime's LinearAttention; it checks the sizes of its inputs against each other."""
    query, key, value = (node.ranked(index, 3) for index in range(3))
    heads, kv_heads = _heads(node, "q_num_heads"), _heads(node, "kv_num_heads")
    if heads % kv_heads:
        node.refuse(f"has {heads} heads of queries and {kv_heads} of keys")
    if node.number("state_window", 0):
        node.refuse("keeps several states, which onnxruntime does on GPUs alone")
    width = _share(node, query.shape[2], heads)
    value_width = _share(node, value.shape[2], kv_heads)
    if key.shape[2] != multiply(width, kv_heads):
        node.refuse(f"has an input 1 that is not of {kv_heads} heads")
    if node.has(3):
        node.ranked(3, 4)
    for index in (4, 5):
        if node.has(index):
            node.ranked(index, 3)
    batch, seq = query.shape[:2]
    result = node.result(query.dtype, (batch, seq, multiply(value_width, heads)))
    state = node.result(query.dtype, (batch, kv_heads, width, value_width))
    steps = node.result(query.dtype, (batch, seq, multiply(width, heads), value_width))
    node.work += steps.elements * 4
    node.transient += state.bytes * 2 + result.bytes
    return [result, state][: max(node.outputs, 1)]


def contrib_attention(node: Node) -> list[Value]:
    """Onnxruntime's Attention: one weight for queries, keys and values."""
    value, weight = node.ranked(0, 3), node.ranked(1, 2)
    node.nonempty(value)
    node.nonempty(weight)
    heads = _heads(node, "num_heads")
    sizes = node.several("qkv_hidden_sizes")
    columns = weight.shape[1]
    if isinstance(columns, Size) or value.shape[2] != weight.shape[0]:
        node.refuse("has a weight of another width than its input")
    if sizes is None:
        sizes = [int(columns) // 3] * 3
    if len(sizes) != 3 or min(sizes) < 1 or sum(sizes) != columns or sizes[0] != sizes[1]:
        node.refuse(f"has the widths {sizes} and a weight of {columns} columns")
    widths = [_share(node, size, heads) for size in sizes]
    if node.has(2) and node.ranked(2, 1).shape[0] != columns:
        node.refuse("has another number of biases than columns of its weight")
    if node.has(6):
        node.refuse("has a past that is shared")
    batch, seq, _ = value.shape
    past = node.ranked(4, 5).shape[3] if node.has(4) else 0
    total = add(past, seq)
    projected, _ = matmul_shape(node, value.shape, weight.shape)
    result = node.result(value.dtype, (batch, seq, sizes[2]))
    present = node.result(value.dtype, (2, batch, heads, total, hull(widths)))
    node.work += extent(batch) * extent(seq) * extent(weight.shape[0]) * int(columns)
    node.transient += 3 * node.result(value.dtype, projected).bytes
    node.scratch += weight.bytes
    scores = node.result(value.dtype, (batch, heads, seq, total))
    _attend(node, scores, multiply(hull(widths), 2))
    return [result, present][: max(node.outputs, 1)]


def rotary_embedding(node: Node) -> list[Value]:
    """Rotary positions; tables of (positions, half a head), looked up by number."""
    value = node.ranked(0, 3, 4)
    node.nonempty(value)
    is_contrib = bool(node.domain)
    tables = (2, 3) if is_contrib else (1, 2)
    for index in tables:
        node.nonempty(node.ranked(index, 2, 3))
    if node.number("rotary_embedding_dim", 0) < 0:
        node.refuse("has a negative number of rotated elements")
    heads = node.number("num_heads", 0)
    if len(value.shape) == 3 and heads:
        _share(node, value.shape[2], _heads(node, "num_heads"))
    elif len(value.shape) == 3 and not is_contrib:
        node.refuse("has an input of rank 3, and does not state its heads")
    if node.number("is_packed_batching", 0):
        node.refuse("has packed rows, which exports do not have")
    half = divide(value.shape[-1], 2)
    node.transient += extent(half) * 8
    return [node.result(value.dtype, value.shape)]
