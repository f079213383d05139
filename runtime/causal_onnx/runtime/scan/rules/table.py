"""The allow list: every operator that was reviewed, with its rule. What is not here is refused.

A rule bounds the shapes of what a node gives, its work and its memory, from the inputs' shapes and
what is known of their numbers, and refuses what it cannot bound. It also refuses the inputs with
which onnxruntime was seen to end the process; `kills` says which those are. Strings, and control
flow other than `If` and a bounded `Loop`, have no rule, since no export has them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from causal_onnx.runtime.contract import CONTRIB
from causal_onnx.runtime.scan.rules import (
    attention,
    contraction,
    elementwise,
    quantised,
    reduction,
    selecting,
    sequences,
    shapes,
)
from causal_onnx.runtime.scan.values import Node, Value

__all__ = ["ALLOWED", "CONTRIB", "OPSETS", "Rule"]


OPSETS = {"": (13, 26), CONTRIB: (1, 1)}
"""Domain -> the versions of its operators that were reviewed, from the first to the last."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What is known of one operator."""

    result: Callable[[Node], Sequence[Value]]
    """The outputs; it adds to the node's work and scratch memory, and refuses."""
    cost: float = 1
    """Work for each element that it reads or writes, in multiplications of a matrix product."""
    check: Callable[[Node], None] | None = None
    """Refuses inputs that `result` could bound and that end the process all the same."""
    kills: str = ""
    """Which inputs end the process in onnxruntime, all of which are refused."""
    since: int = 1
    """The first opset that has it."""


def _rules(names: str, rule: Rule, domain: str = "") -> dict[tuple[str, str], Rule]:
    return {(domain, name): rule for name in names.split()}


EMPTY = "an axis without elements"
SLOW = 32
"""Of functions computed by a series, one element at a time."""

ALLOWED: dict[tuple[str, str], Rule] = {
    # Each element by itself.
    **_rules("Add Sub Mul Max Min Sum Mean", Rule(elementwise.mapped, 2)),
    **_rules("BitwiseAnd BitwiseOr BitwiseXor", Rule(elementwise.mapped, 2, since=18)),
    **_rules(
        "Div",
        Rule(
            elementwise.mapped, 8, elementwise.divisor,
            "whole numbers: a divisor of 0, or of -1 with the least number (SIGFPE)",
        ),
    ),
    **_rules(
        "Mod",
        Rule(
            elementwise.mapped, SLOW, elementwise.divisor,
            "whole numbers: a divisor of 0, or of -1 with the least number (SIGFPE)",
        ),
    ),
    **_rules("Pow", Rule(elementwise.power, 64)),
    **_rules("BitShift", Rule(elementwise.power, 4)),
    **_rules(
        "And Or Xor Equal Less LessOrEqual Greater GreaterOrEqual", Rule(elementwise.comparison, 2)
    ),
    **_rules("Not IsNaN IsInf", Rule(elementwise.to_bool, 2)),
    **_rules("Where", Rule(elementwise.where, 4)),
    **_rules("PRelu", Rule(elementwise.prelu, 4)),
    **_rules("Clip", Rule(elementwise.clip, 2)),
    **_rules("Cast", Rule(elementwise.cast, 4)),
    **_rules("CastLike", Rule(elementwise.cast_like, 4, since=15)),
    **_rules("Abs Neg Ceil Floor", Rule(elementwise.mapped, 2)),
    **_rules(
        "Acos Acosh Asin Asinh Atan Atanh Celu Cos Cosh Elu Erf Exp HardSigmoid HardSwish "
        "LeakyRelu Log Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
        "Sqrt Tan Tanh ThresholdedRelu",
        Rule(elementwise.like_first, SLOW),
    ),
    **_rules("BitwiseNot Mish", Rule(elementwise.like_first, SLOW, since=18)),
    **_rules("Gelu", Rule(elementwise.like_first, SLOW, since=20)),
    **_rules("Swish", Rule(elementwise.like_first, SLOW, since=24)),
    **_rules("Gelu FastGelu QuickGelu BiasGelu", Rule(elementwise.gelu, SLOW), CONTRIB),
    # Elements moved, copied, joined, dropped or filled in.
    **_rules("Constant", Rule(shapes.constant)),
    **_rules("Identity", Rule(shapes.identity)),
    **_rules("Shape", Rule(shapes.shape_of, 0)),
    **_rules("Size", Rule(shapes.size_of, 0)),
    **_rules("Reshape", Rule(shapes.reshape)),
    **_rules("Flatten", Rule(shapes.flatten)),
    **_rules("Squeeze", Rule(shapes.squeeze)),
    **_rules("Unsqueeze", Rule(shapes.unsqueeze)),
    **_rules("Transpose", Rule(shapes.transpose, 4)),
    **_rules("Expand", Rule(shapes.expand, 2)),
    **_rules("Tile", Rule(shapes.tile, 2)),
    **_rules("ConstantOfShape", Rule(shapes.constant_of_shape)),
    **_rules("Range", Rule(shapes.range_of)),
    **_rules("Concat", Rule(selecting.concat, 2)),
    **_rules("Split", Rule(selecting.split, 2)),
    **_rules("Slice", Rule(selecting.slice_of, 2)),
    **_rules("Gather", Rule(selecting.gather, 4)),
    **_rules("GatherElements", Rule(selecting.gather_elements, 8)),
    **_rules("GatherND", Rule(selecting.gather_nd, 8)),
    **_rules("ScatterElements ScatterND", Rule(selecting.scatter, 8)),
    **_rules("TensorScatter", Rule(selecting.tensor_scatter, 4, since=24)),
    **_rules("Pad", Rule(selecting.pad, 4)),
    **_rules("Trilu", Rule(selecting.trilu, 2, since=14)),
    **_rules("EyeLike", Rule(shapes.eye_like, 2)),
    **_rules("OneHot", Rule(selecting.one_hot, 4)),
    **_rules("NonZero", Rule(selecting.nonzero, 8)),
    **_rules("Compress", Rule(selecting.compress, 8)),
    **_rules("ReverseSequence", Rule(selecting.reverse_sequence, 4)),
    **_rules("DepthToSpace", Rule(selecting.depth_to_space, 4, kills="a block of 0 (SIGFPE)")),
    **_rules("SpaceToDepth", Rule(selecting.space_to_depth, 4, kills="a block of 0 (SIGFPE)")),
    **_rules(
        "Bernoulli RandomNormalLike RandomUniformLike", Rule(shapes.random_like, SLOW)
    ),
    **_rules("RandomNormal RandomUniform", Rule(shapes.random, SLOW)),
    # Lists of tensors, each of which the graph writes out.
    **_rules("SequenceConstruct", Rule(sequences.sequence, 2)),
    **_rules("SequenceAt", Rule(sequences.sequence_at)),
    **_rules("SequenceLength", Rule(sequences.sequence_length, 0)),
    **_rules("ConcatFromSequence", Rule(sequences.concat_sequence, 2)),
    **_rules("SplitToSequence", Rule(sequences.split_to_sequence, 2)),
    # Elements joined along axes.
    **_rules(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare",
        Rule(reduction.reduce, SLOW),
    ),
    **_rules("ArgMax ArgMin", Rule(reduction.arg_extreme, 4, kills=EMPTY)),
    **_rules("Softmax LogSoftmax Hardmax", Rule(reduction.along_axis, SLOW)),
    **_rules("LpNormalization", Rule(reduction.along_axis, SLOW)),
    **_rules("CumSum", Rule(reduction.cumulative, 8)),
    **_rules("CumProd", Rule(reduction.cumulative, 8, since=26)),
    **_rules("TopK", Rule(reduction.top_k, SLOW, kills=EMPTY)),
    **_rules(
        "LayerNormalization", Rule(reduction.layer_normalization, 8, kills=EMPTY, since=17)
    ),
    **_rules(
        "RMSNormalization", Rule(reduction.layer_normalization, 8, kills=EMPTY, since=23)
    ),
    # onnxruntime has it in ONNX's own domain too, and genai writes it there.
    **_rules("SimplifiedLayerNormalization", Rule(reduction.layer_normalization, 8, kills=EMPTY)),
    **_rules(
        "SimplifiedLayerNormalization", Rule(reduction.layer_normalization, 8, kills=EMPTY), CONTRIB
    ),
    **_rules(
        "SkipLayerNormalization SkipSimplifiedLayerNormalization",
        Rule(reduction.simplified_skip, 8, kills=EMPTY),
        CONTRIB,
    ),
    **_rules("BatchNormalization", Rule(reduction.batch_normalization, 4)),
    **_rules("InstanceNormalization", Rule(reduction.group_normalization, 8)),
    **_rules("GroupNormalization", Rule(reduction.group_normalization, 8, since=18)),
    **_rules("LRN", Rule(reduction.local_normalization, 8)),
    **_rules("Dropout", Rule(reduction.dropout, 1)),
    **_rules("DFT", Rule(reduction.dft, SLOW, kills=EMPTY, since=17)),
    # Products and sums.
    **_rules("MatMul MatMulInteger", Rule(contraction.matmul)),
    **_rules("Gemm", Rule(contraction.gemm)),
    **_rules("Einsum", Rule(contraction.einsum, kills=EMPTY + " (SIGFPE)")),
    **_rules("FusedMatMul", Rule(contraction.fused_matmul), CONTRIB),
    **_rules("Conv", Rule(contraction.conv, kills="a stride or a group of 0 (SIGFPE)")),
    **_rules("ConvTranspose", Rule(contraction.conv_transpose, kills="a group of 0 (SIGFPE)")),
    **_rules("AveragePool MaxPool", Rule(contraction.pool, kills="a stride of 0 (SIGFPE)")),
    **_rules("GlobalAveragePool GlobalMaxPool", Rule(contraction.global_pool, kills=EMPTY)),
    **_rules("GRU LSTM RNN", Rule(contraction.recurrent, kills=EMPTY)),
    # Attention.
    **_rules("Attention", Rule(attention.attention, kills="no heads (SIGFPE)", since=23)),
    **_rules("RotaryEmbedding", Rule(attention.rotary_embedding, 8, since=23)),
    **_rules("RotaryEmbedding", Rule(attention.rotary_embedding, 8), CONTRIB),
    **_rules("Attention", Rule(attention.contrib_attention, kills="no heads (SIGFPE)"), CONTRIB),
    **_rules(
        "GroupQueryAttention",
        Rule(attention.grouped_query, kills="no heads, or an empty batch (SIGFPE)"),
        CONTRIB,
    ),
    **_rules("LinearAttention", Rule(attention.linear_attention), CONTRIB),
    **_rules("MultiHeadAttention", Rule(attention.multi_head, kills="no heads (SIGFPE)"), CONTRIB),
    # Numbers of few bits.
    **_rules("QuantizeLinear", Rule(quantised.quantize, 8)),
    **_rules("DequantizeLinear", Rule(quantised.dequantize, 4)),
    **_rules("QuantizeLinear", Rule(quantised.quantize, 8), CONTRIB),
    **_rules("DequantizeLinear", Rule(quantised.dequantize, 4), CONTRIB),
    **_rules("DynamicQuantizeLinear", Rule(quantised.dynamic_quantize, 8)),
    **_rules("QLinearMatMul", Rule(quantised.qlinear_matmul)),
    **_rules("DynamicQuantizeMatMul", Rule(quantised.dynamic_matmul), CONTRIB),
    **_rules("MatMulIntegerToFloat", Rule(quantised.integer_to_float), CONTRIB),
    **_rules(
        "MatMulNBits",
        Rule(quantised.matmul_blocks, kills="a block of 0 (SIGFPE); weights smaller than stated"),
        CONTRIB,
    ),
    **_rules(
        "GatherBlockQuantized",
        Rule(quantised.gather_block, 4, kills="a block of 0 (SIGFPE)"),
        CONTRIB,
    ),
}  # fmt: skip
"""(Domain, operator) -> its rule; the checker of graphs reads `If`, `Loop` and `SequenceMap`."""
