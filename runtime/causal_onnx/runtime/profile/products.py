"""Count the multiplications and additions of matrix products, from the shapes that were run.

A product of (m, k) and (k, n) takes 2 m k n operations. Nothing else is counted: norms, softmax and
activations are a small part, and wait for memory rather than arithmetic. Attention is counted where
a query may look: up to its own position, and within its window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from causal_onnx.runtime.profile.events import Event, Tensor
from causal_onnx.runtime.profile.graph import GraphNode

__all__ = ["attended_pairs", "product_flops"]

MATMULS = frozenset(
    {"MatMul", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "DynamicQuantizeMatMul"}
)
TRANSPOSING = frozenset({"Gemm", "FusedMatMul", "FusedGemm", "TransposeMatMul"})


def product_flops(event: Event, node: GraphNode | None, *, past: int) -> int:
    """Operations of the products in one execution of a node; 0 where it has none.

    Args:
        event: What was run.
        node: The node of the file, for its attributes; None: onnxruntime added it.
        past: Positions that the whole call had behind it, which a buffer does not tell.
    """
    inputs, outputs = event.inputs, event.outputs
    if not inputs or not outputs:
        return 0
    first, result = inputs[0].shape, outputs[0]
    if event.op_type in MATMULS:
        return 2 * result.elements * (first[-1] if first else 1)
    if event.op_type in TRANSPOSING:
        return 2 * result.elements * _inner(first, result.shape)
    if node is None:
        return 0
    numbers = node.integers
    if event.op_type == "Conv":
        weight = node.constants.get(1)
        kernel = weight.shape if weight is not None else inputs[1].shape if inputs[1:] else None
        return 2 * result.elements * math.prod(kernel[1:]) if kernel else 0
    if event.op_type == "Einsum":
        return _einsum(node.texts.get("equation", ""), inputs)
    placed = _placed(inputs, node)
    if event.op_type == "Attention" and "num_heads" not in numbers:
        return _attention(placed, numbers)
    if event.op_type == "MultiHeadAttention":
        return _multi_head(placed, numbers)
    if event.op_type == "GroupQueryAttention":
        return _grouped_query(placed, outputs, numbers, past)
    return 0


def attended_pairs(
    seq: int, past: int, *, is_causal: bool = True, window: int | None = None
) -> int:
    """Pairs of a query and a key that it may look at.

    Args:
        seq: Queries; query i stands at position past + i.
        past: Keys before them.
        is_causal: Each looks up to its own position; False: at all.
        window: At most so many keys, its own the last of them; None: any number.
    """
    if not is_causal:
        return seq * (past + seq)
    if window is None:
        return seq * past + seq * (seq + 1) // 2
    # Queries before position `window - 1` see all that is there, later ones see `window`.
    growing = min(max(0, window - 1 - past), seq)
    return growing * past + growing * (growing + 1) // 2 + (seq - growing) * window


def _inner(first: Sequence[int], result: Sequence[int]) -> int:
    """The size that is summed over, of a first matrix that may be transposed."""
    if len(first) < 2 or len(result) < 2 or result[-2] == first[-2]:
        return first[-1] if first else 1
    return first[-2]


def _einsum(equation: str, inputs: Sequence[Tensor]) -> int:
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or len(inputs) != 2 or "." in equation:
        return 0
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, inputs, strict=True):
        for label, size in zip(term, tensor.shape, strict=False):
            sizes[label] = max(size, sizes.get(label, 1))
    return 2 * math.prod(sizes.values())


def _placed(inputs: Sequence[Tensor], node: GraphNode) -> dict[int, Tensor]:
    """Place among the node's inputs -> tensor; the first ones only where some are not told."""
    places = [place for place, name in enumerate(node.inputs) if name]
    if len(places) != len(inputs):
        places = [place for place in places if place not in node.constants]
    return dict(zip(places, inputs, strict=False))


def _heads(tensor: Tensor, heads: int) -> tuple[int, int, int, int]:
    """(batch, heads, positions, width) of a tensor that has its heads apart or side by side."""
    if len(tensor.shape) == 4:
        batch, heads, seq, width = tensor.shape
        return batch, heads, seq, width
    batch, seq, features = tensor.shape
    return batch, heads, seq, features // max(1, heads)


def _attention(placed: Mapping[int, Tensor], numbers: Mapping[str, int]) -> int:
    """Source: https://onnx.ai/onnx/operators/onnx__Attention.html."""
    if not {0, 1, 2} <= set(placed):
        return 0
    batch, heads, seq, width = _heads(placed[0], numbers.get("q_num_heads", 1))
    kv_heads = numbers.get("kv_num_heads", 1)
    new = _heads(placed[1], kv_heads)[2]
    value_width = _heads(placed[2], kv_heads)[3]
    past = placed[4].shape[2] if 4 in placed else 0
    if numbers.get("is_causal", 0) and new == seq:
        pairs = attended_pairs(seq, past)
    else:
        pairs = seq * (past + new)
    return 2 * batch * heads * pairs * (width + value_width)


def _multi_head(placed: Mapping[int, Tensor], numbers: Mapping[str, int]) -> int:
    """Source: ContribOperators.md of onnxruntime, com.microsoft.MultiHeadAttention."""
    if not {0, 1, 2} <= set(placed) or len(placed[0].shape) != 3:
        return 0
    count = numbers.get("num_heads", 1)
    batch, heads, seq, width = _heads(placed[0], count)
    _, _, new, value_width = _heads(placed[2], count)
    past = placed[6].shape[2] if 6 in placed else 0
    if numbers.get("unidirectional", 0) and new == seq:
        pairs = attended_pairs(seq, past)
    else:
        pairs = seq * (past + new)
    return 2 * batch * heads * pairs * (width + value_width)


def _grouped_query(
    placed: Mapping[int, Tensor], outputs: Sequence[Tensor], numbers: Mapping[str, int], past: int
) -> int:
    """Source: ContribOperators.md of onnxruntime, com.microsoft.GroupQueryAttention."""
    if 0 not in placed or len(placed[0].shape) != 3:
        return 0
    batch, seq, features = placed[0].shape
    heads, kv_heads = numbers.get("num_heads", 1), numbers.get("kv_num_heads", 1)
    is_packed = 1 not in placed
    width = features // (heads + 2 * kv_heads if is_packed else heads)
    # Keys after the call, or the size of a buffer that has room for more.
    total = outputs[1].shape[2] if len(outputs) > 1 and len(outputs[1].shape) == 4 else seq
    before = min(past, max(0, total - seq))
    window = numbers.get("local_window_size", -1)
    pairs = attended_pairs(seq, before, window=window if window > 0 else None)
    return 4 * batch * heads * pairs * width
