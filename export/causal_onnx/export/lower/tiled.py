"""A core as a Loop over blocks of queries: standard operators, memory linear in the length."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.graph.subgraphs import choose, repeat
from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.lower.attend import attend, hiding
from causal_onnx.export.lower.cache_rows import join_rows
from causal_onnx.export.lower.heads import give_merged, merge_heads

__all__ = ["BLOCK", "Blocks", "blocks_of", "write_tiled"]

BLOCK = 64
"""The most queries of one step. Processor time relative to PyTorch's SDPA by this number, and of
the other forms (12 heads of 64, batch 1, fp32, one thread, AMD Zen 4, onnxruntime 1.32):

    seq    64    96   128   192   256   Attention-24   GroupQueryAttention
     256  0.70  0.74  0.78  0.76  0.95      0.84              1.03
     512  0.62  0.66  0.68  0.74  0.82      0.95              1.03
    1024  0.79  0.83  0.82  0.87  0.94      1.36              1.07
    2048  0.95  1.03  0.99  1.02  1.04      1.82              1.08
    4096  1.32  1.30  1.20  1.16  1.16      2.14              1.08
"""


def write_tiled(
    write: Writer, core: CanonicalCore, max_seq_len: int | None = None
) -> Sequence[ir.Value]:
    """Attention block of queries by block of queries, all heads at once.

    A step multiplies its queries with the keys up to the block's end (and, with a window, from the
    first that its first query may see), so little above the diagonal is computed, and no
    more than heads x BLOCK x total_seq scores exist at a time. The softmax is over whole rows, as
    it is without blocks. Up to BLOCK positions there is one step, and no Loop.
    """
    blocks, presents = blocks_of(write, core)
    if max_seq_len is not None and max_seq_len <= BLOCK:
        result = blocks.at_once(write)
    else:
        is_long = write("Greater", write("Squeeze", blocks.seq), write.scalar(BLOCK))
        result = choose(write, core.node, is_long, blocks.looped, blocks.at_once)
    result.type = core.node.outputs[0].type
    if blocks.is_merged:
        result = give_merged(write, core, result)
    return [result, *presents][: len(core.node.outputs)]


def blocks_of(write: Writer, core: CanonicalCore) -> tuple[Blocks, Sequence[ir.Value]]:
    """The blocks of a core over its past and new keys, and its present keys and values."""
    q, k, v = core.operands
    if core.rows is not None:
        joined = join_rows(write, core)
        blocks = Blocks(write, core, (q, joined.k, joined.v), joined.held)
        return blocks, (joined.present_k, joined.present_v)
    if core.past is not None:
        k, v = (write("Concat", old, x, axis=2) for old, x in zip(core.past, (k, v), strict=True))
    return Blocks(write, core, (q, k, v)), (k, v)


class Blocks:
    """The values that all blocks of one core share."""

    def __init__(
        self,
        write: Writer,
        core: CanonicalCore,
        operands: tuple[ir.Value, ir.Value, ir.Value],
        held: ir.Value | None = None,
    ) -> None:
        """Take the queries, all keys and values, and the slot of the first query.

        Args:
            write: Where the values go that the blocks share.
            core: The core.
            operands: (batch, num_heads, seq, head_dim), (batch, num_kv_heads, slots, head_dim) and
                (batch, num_kv_heads, slots, value_dim).
            held: int64 (batch,) or (1,). None: the queries are the last of the slots.
        """
        self.core = core
        self.bias = core.bias
        self.q, self.k, self.v = q, k, _ = operands
        self.is_merged = core.packed_output is not None
        self.is_causal, self.window = core.is_causal, core.window
        self.seq = write("Shape", q, start=2, end=3)
        self.slots = write("Shape", k, start=2, end=3)
        held = held or write("Sub", self.slots, self.seq)
        self.held, self.least, self.most = held, held, held
        if core.rows is not None:
            self.held = write("Unsqueeze", held, write.ints(1, 2, 3))
            self.least = write("ReduceMin", held, keepdims=1)
            self.most = write("ReduceMax", held, keepdims=1)

    def at_once(self, write: Writer) -> ir.Value:
        """All queries in one step."""
        begin, end = write.ints(0), self.slots
        mask = self.mask(write, self.places(write, begin, self.seq), begin, end)
        return self.attended(write, self.q, (self.k, self.v), mask, self.seq)

    def looped(self, write: Writer) -> ir.Value:
        """Blocks of equal size, the last one filled up with queries that are cut off again."""
        one = write.ints(1)
        count = write("Div", write("Add", self.seq, write.ints(BLOCK - 1)), write.ints(BLOCK))
        size = write("Div", write("Add", self.seq, write("Sub", count, one)), count)
        missing = write("Sub", write("Mul", count, size), self.seq)
        pads = write("Concat", write.ints(0, 0, 0, 0, 0, 0), missing, write.ints(0), axis=0)
        q = write("Pad", self.q, pads)
        q.type = self.q.type

        def step(inner: Writer, number: ir.Value) -> ir.Value:
            start = inner("Mul", number, size)
            rows = inner("Slice", q, start, inner("Add", start, size), inner.ints(2))
            rows.type = q.type
            return self.block(inner, rows, start, size)

        stacked = repeat(write, self.core.node, write("Squeeze", count), step)
        heads, width = self.core.num_heads, self.core.value_dim
        if self.is_merged:
            # (count, batch, size, heads * width)
            joined = write("Transpose", stacked, perm=[1, 0, 2, 3])
            joined = write("Reshape", joined, write.ints(0, -1, heads * width))
            return write("Slice", joined, write.ints(0), self.seq, write.ints(1))
        joined = write("Transpose", stacked, perm=[1, 2, 0, 3, 4])
        joined = write("Reshape", joined, write.ints(0, 0, -1, width))
        return write("Slice", joined, write.ints(0), self.seq, write.ints(2))

    def block(self, write: Writer, q: ir.Value, start: ir.Value, count: ir.Value) -> ir.Value:
        """`count` queries from `start` on against the keys that any of them may see."""
        k, v, begin, end = self.k, self.v, write.ints(0), self.slots
        if self.is_causal:
            stop = write("Add", write("Add", self.most, start), count)
            end = write("Min", self.slots, stop)
            if self.window:
                first = write("Add", self.least, start)
                begin = write("Max", begin, write("Sub", first, write.ints(self.window - 1)))
            k, v = (write("Slice", x, begin, end, write.ints(2)) for x in (k, v))
        mask = self.mask(write, self.places(write, start, count), begin, end)
        return self.attended(write, q, (k, v), mask, count)

    def attended(
        self,
        write: Writer,
        q: ir.Value,
        keys: tuple[ir.Value, ir.Value],
        mask: ir.Value | None,
        count: ir.Value,
    ) -> ir.Value:
        """The output of some queries, with the heads where the reader wants them."""
        result = attend(write, self.core, q, *keys, mask=mask, count=count)
        if not self.is_merged:
            return result
        return merge_heads(write, result, self.core.num_heads, self.core.value_dim)

    def places(self, write: Writer, start: ir.Value, count: ir.Value) -> ir.Value:
        """`count` numbers from `start` on."""
        first, last = write("Squeeze", start), write("Squeeze", write("Add", start, count))
        return write("Range", first, last, write.scalar(1))

    def mask(
        self, write: Writer, places: ir.Value, begin: ir.Value, end: ir.Value
    ) -> ir.Value | None:
        """What to add to the scores of queries at `places` and keys from `begin` to `end`."""
        allowed = self.allowed(write, places, begin, end) if self.is_causal else None
        bias = None if self.bias is None else self.bias_of(write, places, begin, end)
        return hiding(write, allowed, bias, like=self.q)

    def allowed(self, write: Writer, places: ir.Value, begin: ir.Value, end: ir.Value) -> ir.Value:
        """(count, columns) or (batch, 1, count, columns) bool, by the rule and the window."""
        rows = write("Add", self.held, write("Unsqueeze", places, write.ints(1)))
        limits = [write("Squeeze", x) for x in (begin, end)]
        columns = write("Range", *limits, write.scalar(1))
        allowed = write("LessOrEqual", columns, rows)
        if self.window:
            least = write("Sub", rows, write.ints(self.window - 1))
            allowed = write("And", allowed, write("GreaterOrEqual", columns, least))
        return allowed

    def bias_of(self, write: Writer, places: ir.Value, begin: ir.Value, end: ir.Value) -> ir.Value:
        """The bias of these queries and keys, where it is not one row or column for all."""
        bias = self.bias
        one = write.ints(1)
        # Of one row every query takes that; queries that fill up the last block take the last.
        last = write("Sub", write("Shape", bias, start=-2, end=-1), one)
        rows = write("Gather", bias, write("Min", places, last), axis=-2)
        if not self.is_causal:
            return rows
        columns = write("Sub", write("Shape", bias, start=-1), one)
        return write("Slice", rows, write("Min", begin, columns), end, write.ints(-1))
