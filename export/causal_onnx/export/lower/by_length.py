"""Attention for onnxruntime: the form of a core is chosen by the length, when the graph runs.

Few positions go to the `Attention` operator, more to the flash kernel of `GroupQueryAttention`, or
where that does not compute the core to a Loop over blocks of queries (fp32, for the CPU).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.graph.subgraphs import choose
from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.lower.attention import (
    attention_attributes,
    attention_of_rows,
    write_attention,
)
from causal_onnx.export.lower.cache_rows import join_rows
from causal_onnx.export.lower.contrib import fits_operator, operator_attributes
from causal_onnx.export.lower.heads import give_merged, merge_heads, split_heads
from causal_onnx.export.lower.positions import window_mask
from causal_onnx.export.lower.primitives import primitives_of_rows, write_primitives
from causal_onnx.export.lower.tiled import Blocks
from causal_onnx.runtime.contract import CONTRIB

__all__ = ["LONGEST_SHORT", "LONGEST_SHORT_HALF", "write_by_length"]

LONGEST_SHORT = 256
"""Up to here `Attention` takes no more time than the other forms, in fp32 on the CPU."""
LONGEST_SHORT_HALF = 640
"""Up to here `Attention` is faster than the flash kernel in half precision."""
# Time of a whole module relative to PyTorch eager (768 wide, 12 heads, batch 1, onnxruntime 1.32).
# Threads have little to share in a block of queries, so the kernel is taken wherever it fits.
#
#     seq                                  384   512  1024  2048  4096  8192
#     Xeon, 1 thread:  blocks             0.98  1.06  1.22  1.36  1.13
#                      flash kernel       0.98  1.04  1.22  1.20  1.12
#           2 threads: blocks             1.42  1.38  1.45  1.63  1.19
#                      flash kernel       0.99  1.04  1.16  1.19  1.20
#     Zen 4, 1 thread: blocks                   0.83  0.91  0.96  1.08  1.27
#                      flash kernel                   1.01  1.04  1.03  1.03


def write_by_length(
    write: Writer, core: CanonicalCore, max_seq_len: int | None = None
) -> Sequence[ir.Value]:
    """A core in one form where the sequence is short and in others where it is long.

    Args:
        write: Before the core.
        core: Without a past or with one whose rows differ in length.
        max_seq_len: No form is written for lengths beyond.

    Returns:
        Output (batch, num_heads, seq, value_dim); with a cache present keys and values too.
    """
    forms = _Forms(write, core)
    most = math.inf if max_seq_len is None else max_seq_len
    long = forms.flash if forms.has_flash else forms.blocks
    switch = LONGEST_SHORT if forms.has_blocks else LONGEST_SHORT_HALF
    if most > switch and (forms.has_blocks or forms.has_flash):
        chosen = choose(write, core.node, forms.beyond(write, switch), long, forms.short)
    else:
        chosen = forms.short(write)
    return forms.results(write, chosen)


class _Forms:
    """The forms of one core, each for a branch of its own.

    Where the module splits heads off and merges them again around plain attention, all read
    (batch, seq, heads * width) and give that; only the forms that need it transpose.
    """

    def __init__(self, write: Writer, core: CanonicalCore) -> None:
        self.core = core
        is_plain = _is_plain(core)
        self.has_blocks, self.has_flash = _fits_blocks(core), is_plain and _fits_flash(core)
        self.is_merged = core.packed_output is not None
        self.is_packed = is_plain and self.is_merged and bool(core.packed_inputs)
        self.values = core.packed_inputs if self.is_packed else core.operands
        self.joined = None if core.rows is None else join_rows(write, core)

    def beyond(self, write: Writer, length: int) -> ir.Value:
        """Whether the sequence is longer than `length`."""
        axis = 1 if self.is_packed else 2
        seq = write("Shape", self.values[0], start=axis, end=axis + 1)
        return write("Greater", write("Squeeze", seq), write.scalar(length))

    def short(self, write: Writer) -> ir.Value:
        """All queries at once."""
        if self.is_packed:
            return _packed(write, self.core, self.values)
        has_sink = self.core.sink is not None
        if self.joined is not None:
            of_rows = primitives_of_rows if has_sink else attention_of_rows
            return self.merged(write, of_rows(write, self.core, self.joined))
        standard = write_primitives if has_sink else write_attention
        return self.merged(write, standard(write, self.core)[0])

    def blocks(self, write: Writer) -> ir.Value:
        """A Loop over blocks of queries."""
        q, k, v = self.heads(write)
        if self.joined is None:
            return Blocks(write, self.core, (q, k, v)).looped(write)
        joined = self.joined
        return Blocks(write, self.core, (q, joined.k, joined.v), joined.held).looped(write)

    def flash(self, write: Writer) -> ir.Value:
        """The flash kernel of the contrib operator."""
        merged = _flash(write, self.core, self.values, packed=self.is_packed)
        if self.is_merged:
            return merged
        return split_heads(write, merged, self.core.num_heads, self.core.value_dim)

    def heads(self, write: Writer) -> Sequence[ir.Value]:
        """Queries, keys and values as (batch, heads, seq, width)."""
        if not self.is_packed:
            return self.values
        core = self.core
        counts = (core.num_heads, core.num_kv_heads, core.num_kv_heads)
        widths = (core.head_dim, core.head_dim, core.value_dim)
        found = []
        for value, count, width in zip(self.values, counts, widths, strict=True):
            found.append(split_heads(write, value, count, width))
            found[-1].type = value.type
        return found

    def merged(self, write: Writer, result: ir.Value) -> ir.Value:
        """The result as its reader wants it."""
        if not self.is_merged:
            return result
        return merge_heads(write, result, self.core.num_heads, self.core.value_dim)

    def results(self, write: Writer, chosen: ir.Value) -> Sequence[ir.Value]:
        """The outputs of the core."""
        chosen.type = self.core.node.outputs[0].type
        if self.is_merged:
            chosen = give_merged(write, self.core, chosen)
        if self.joined is None:
            return [chosen]
        return [chosen, self.joined.present_k, self.joined.present_v]


def _is_plain(core: CanonicalCore) -> bool:
    """Whether this core is causal attention without bias, sink and past."""
    return core.is_causal and core.bias is None and core.past is None and core.sink is None


def _fits_blocks(core: CanonicalCore) -> bool:
    """Whether blocks of queries leave something out: what is above the diagonal of this core.

    Not in half precision, which is for CUDA, where a Loop costs more than it saves.
    """
    is_float = core.operands[0].dtype == ir.DataType.FLOAT
    return is_float and core.is_causal and (core.rows is not None or core.past is None)


def _fits_flash(core: CanonicalCore) -> bool:
    """Whether `GroupQueryAttention` computes this plain core; a window it reads slowly."""
    is_half = core.operands[0].dtype == ir.DataType.FLOAT16
    return fits_operator(core) and (is_half or not core.window)


def _packed(write: Writer, core: CanonicalCore, values: Sequence[ir.Value]) -> ir.Value:
    """The standard operator on (batch, seq, heads * width)."""
    bias = None
    if core.window:
        bias = window_mask(write, values[0], values[1], None, core.window, axis=1)
    attributes = {
        **attention_attributes(core),
        "q_num_heads": core.num_heads,
        "kv_num_heads": core.num_kv_heads,
    }
    inputs = [*values, bias] if bias is not None else list(values)
    return write.node("Attention", inputs, attributes).outputs[0]


def _flash(
    write: Writer, core: CanonicalCore, values: Sequence[ir.Value], *, packed: bool
) -> ir.Value:
    """The contrib operator, with an empty past; gives (batch, seq, heads * width)."""
    heads, groups, width = core.num_heads, core.num_kv_heads, core.head_dim
    merged = list(values)
    if not packed:
        counts = (heads, groups, groups)
        merged = [merge_heads(write, x, n, width) for x, n in zip(values, counts, strict=True)]
    batch = write("Shape", merged[0], start=0, end=1)
    seq = write("Shape", merged[0], start=1, end=2)
    last = write("Cast", write("Sub", seq, write.ints(1)), to=ir.DataType.INT32.value)
    lasts = write("Expand", last, batch)
    total = write("Squeeze", write("Cast", seq, to=ir.DataType.INT32.value))
    shape = write("Concat", batch, write.ints(groups, 0, width), axis=0)
    dtype = (core.operands[0].dtype or ir.DataType.FLOAT).numpy()
    empty = write("ConstantOfShape", shape, value=ir.tensor(np.zeros(1, dtype)))
    inputs = [*merged, empty, empty, lasts, total]
    attributes = operator_attributes(core)
    return write.node("GroupQueryAttention", inputs, attributes, 3, CONTRIB).outputs[0]
