"""A cached core as onnxruntime's `GroupQueryAttention`, rotary positions inside where it can.

Before onnxruntime 1.32 the operator takes several new positions after a past for one row at a time,
and counts the rows of a batch as filled without gaps; a call that is neither a prompt nor fits that
goes through the form of the other targets, in the second branch of an If. Since then it can be
given the number of new positions of each row, and takes every call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from causal_onnx.export.attention.canonical_core import (
    DOMAIN,
    CanonicalCore,
    Heads,
    Projected,
    Rotary,
)
from causal_onnx.export.graph.subgraphs import name_inside
from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.lower.contrib import fits_operator, operator_attributes
from causal_onnx.export.lower.packed_projection import join_projections
from causal_onnx.runtime.contract import CONTRIB

__all__ = ["fits_grouped", "shares_buffers", "write_chunked", "write_grouped"]

Fallback = Callable[[Writer, CanonicalCore], Sequence[ir.Value]]


def fits_grouped(core: CanonicalCore) -> bool:
    """Whether the operator computes this core: cached, causal, without bias, rows of their own."""
    return (
        core.bias is None
        and core.past is not None
        and core.rows is not None
        and core.projected is not None
        and core.is_causal
        and not core.bounded
        and fits_operator(core)
    )


def _projected(core: CanonicalCore) -> Projected:
    assert core.projected is not None
    return core.projected


def shares_buffers(core: CanonicalCore) -> bool:
    """Whether every call that fits the operator goes there by `write_grouped`, whatever the length.

    Its past may then be a larger buffer that is the present too (`CachePair.shared`).
    """
    rotary = _projected(core).rotary
    return rotary is None or rotary.complete or not _turns_inside(rotary, core.head_dim)


def write_grouped(write: Writer, core: CanonicalCore, fallback: Fallback) -> Sequence[ir.Value]:
    """Output (batch, num_heads, seq, head_dim), present keys, present values.

    Past buffers may have more slots than are in use, where the first branch runs.

    Args:
        write: Before the core.
        core: One for which `fits_grouped` holds.
        fallback: Writes a canonical core, for calls that the operator does not take.
    """
    node = core.node
    operands = _Operands(write, core)
    lengths = _Lengths(write, core, operands.rotary)
    branches = []
    for name, build in (("grouped", _grouped), ("general", _general)):
        graph = ir.Graph([], [], nodes=[], opset_imports=dict(write.graph.opset_imports), name=name)
        inner = Writer(graph, None, write.graph, node)
        results = build(inner, core, operands, lengths, fallback)
        for result, old in zip(results, node.outputs, strict=True):
            result.type = old.type
        graph.outputs.extend(results)
        name_inside(graph, f"{node.outputs[0].name}_{name}")
        branches.append(graph)
    attributes = {"then_branch": branches[0], "else_branch": branches[1]}
    chosen, present_k, present_v = write.node("If", [lengths.fit], attributes, 3).outputs
    return [_as_read(write, core, chosen), present_k, present_v]


def write_chunked(write: Writer, core: CanonicalCore) -> Sequence[ir.Value]:
    """The same by one operator for all calls, in onnxruntime 1.32 and newer.

    Each row is said to have as many new positions as the call. Those of padding are then computed
    and stored like others, behind the row's tokens, where its next ones overwrite them; the
    operator says nothing of what it would leave there if it were given the tokens alone.

    Past buffers may have more slots than are in use, in any call.

    Args:
        write: Before the core.
        core: One for which `fits_grouped` holds.
    """
    operands = _Operands(write, core, within_tables=False)
    seq, past, row_past, _ = _places_of(core)
    int32 = ir.DataType.INT32.value
    last = write("Sub", write("Add", row_past, seq), write.ints(1))
    total = write("Squeeze", write("Add", past, seq))
    new = write("Expand", seq, write("Shape", row_past))
    last, total, new = (write("Cast", value, to=int32) for value in (last, total, new))
    output, *presents = _operator(write, core, operands, last, total, new=new)
    return [_as_read(write, core, output), *presents]


def _places_of(core: CanonicalCore) -> tuple[ir.Value, ir.Value, ir.Value, ir.Value]:
    """Its new positions and those of the past, `row_past` and `row_total`."""
    assert core.seq is not None
    assert core.past_seq is not None
    assert core.rows is not None
    return core.seq, core.past_seq, *core.rows


def _as_read(write: Writer, core: CanonicalCore, result: ir.Value) -> ir.Value:
    """The output of the core, of (batch, seq, heads * head_dim)."""
    result.type = core.node.outputs[0].type
    packed_output = core.packed_output
    if packed_output is not None and not packed_output.is_graph_output():
        # The reader of the transposed and merged output takes this one; what led there falls away.
        packed_output.replace_all_uses_with(result)
    return _split(write, result, core.num_heads, core.head_dim)


class _Lengths:
    """What the operator wants to know of the lengths; the same values for every core."""

    def __init__(self, write: Writer, core: CanonicalCore, rotary: Rotary | None):
        self.seq, self.past, row_past, row_total = _places_of(core)
        self.row_past = row_past
        one, int32 = write.ints(1), ir.DataType.INT32.value
        # A row without any token yet counts one, of padding, which its first token overwrites.
        last = write("Max", write("Sub", row_total, one), write.ints(0))
        self.last = write("Cast", last, to=int32)
        total = write("Squeeze", write("Add", self.past, self.seq))
        self.total = write("Cast", total, to=int32)
        new = write("ReduceMin", write("Sub", row_total, row_past), keepdims=1)
        is_alone = write("Equal", write("Min", self.seq, write("Shape", row_past)), one)
        is_regular = write("And", write("Equal", new, self.seq), is_alone)
        is_prompt = write("Equal", self.past, write.ints(0))
        fit = write("Squeeze", write("Or", is_prompt, is_regular))
        if rotary is not None and not rotary.complete:
            fit = write("And", fit, write("LessOrEqual", total, write.scalar(len(rotary.cos))))
        self.fit = fit
        """A prompt; or no padding, and one new position or one row. And within the tables."""


class _Operands:
    """Queries, keys and values as (batch, seq, heads * head_dim), before rotation if inside."""

    def __init__(self, write: Writer, core: CanonicalCore, *, within_tables: bool = True):
        """See `write_grouped`.

        Args:
            write: Before the core.
            core: The core.
            within_tables: Calls beyond the rotary tables, where those are not complete, do not go
                to the operator.
        """
        projected = _projected(core)
        heads, groups, self.width = core.num_heads, core.num_kv_heads, core.head_dim
        self.counts = (heads, groups, groups)
        self.projected, self.rotary = projected, projected.rotary
        sides: list[Heads | ir.Value | None] = [projected.q, projected.k, projected.v]
        if self.rotary is not None and not (
            _turns_inside(self.rotary, self.width) and (self.rotary.complete or within_tables)
        ):
            self.rotary = None
            sides[:2] = core.operands[:2]
        self._values = [
            _packed(write, side, count * self.width)
            for side, count in zip(sides, self.counts, strict=True)
        ]
        self._joined = join_projections(write.graph, core.node, self._values)

    def for_operator(self) -> list[ir.Value | None]:
        """Its first three inputs; what q, k, v are the parts of goes in as one."""
        return [*self._values] if self._joined is None else [self._joined, None, None]

    def apart(self, write: Writer) -> list[ir.Value]:
        """Queries, keys and values, each by itself."""
        if self._joined is None:
            return list(self._values)
        sizes = write.ints(*(count * self.width for count in self.counts))
        return list(write.node("Split", [self._joined, sizes], {"axis": -1}, 3).outputs)


def _turns_inside(rotary: Rotary, width: int) -> bool:
    """Whether the operator's own rotation takes these sizes."""
    return width % 16 == 0 and rotary.cos.shape[1] % 8 == 0


def _grouped(
    write: Writer, core: CanonicalCore, operands: _Operands, lengths: _Lengths, _: Fallback
) -> Sequence[ir.Value]:
    """The contrib operator."""
    return _operator(write, core, operands, lengths.last, lengths.total)


def _operator(
    write: Writer,
    core: CanonicalCore,
    operands: _Operands,
    last: ir.Value,
    total: ir.Value,
    *,
    new: ir.Value | None = None,
) -> Sequence[ir.Value]:
    """`GroupQueryAttention`; what it gives is (batch, seq, heads * head_dim), and the presents.

    Args:
        write: Where to.
        core: The core.
        operands: Of the core.
        last: int32 (batch,), the position of each row's last query.
        total: int32 (), the most positions of a row.
        new: int32 (batch,), queries of each row (`query_seqlens`). None: the operator infers them.
    """
    inputs = [*operands.for_operator(), *(core.past or ()), last, total]
    attributes = operator_attributes(core)
    if operands.rotary is not None:
        inputs += [write.array(operands.rotary.cos), write.array(operands.rotary.sin)]
        attributes |= {"do_rotary": 1, "rotary_interleaved": int(operands.rotary.interleaved)}
    if core.sink is not None:
        inputs += [None] * (11 - len(inputs)) + [core.sink]
    if new is not None:
        inputs += [None] * (16 - len(inputs)) + [new]
    return write.node("GroupQueryAttention", inputs, attributes, 3, CONTRIB).outputs


def _general(
    write: Writer,
    core: CanonicalCore,
    operands: _Operands,
    lengths: _Lengths,
    fallback: Fallback,
) -> Sequence[ir.Value]:
    """Through the canonical core again, with the rotation written before it."""
    node = core.node
    parts = operands.apart(write)
    if operands.rotary is not None and operands.rotary.complete:
        places = _places(write, lengths, len(operands.rotary.cos))
        parts[:2] = [
            _turned(write, value, places, operands, count)
            for value, count in zip(parts[:2], operands.counts[:2], strict=True)
        ]
    heads = [
        _split(write, value, count, operands.width)
        for value, count in zip(parts, operands.counts, strict=True)
    ]
    if operands.rotary is not None and not operands.rotary.complete:
        sides = (operands.projected.q, operands.projected.k)
        heads[:2] = [
            _again(write, node.inputs[index], side, parts[index])
            for index, side in enumerate(sides)
        ]
    # A buffer may have more slots than are in use.
    zero, axis = write.ints(0), write.ints(2)
    pasts = [write("Slice", past, zero, lengths.past, axis) for past in node.inputs[4:6]]
    for value, old in zip((*heads, *pasts), (*node.inputs[:3], *node.inputs[4:6]), strict=True):
        assert old is not None
        value.type = old.type
    again = ir.node(
        node.op_type,
        [*heads, None, *pasts, *node.inputs[6:]],
        {a.name: a.value for a in node.attributes.values()},
        domain=DOMAIN,
        num_outputs=3,
    )
    for new, old in zip(again.outputs, node.outputs, strict=True):
        new.type = old.type
    output, present_k, present_v = fallback(write, replace(core, node=again))
    for index in range(len(again.inputs)):
        again.replace_input_with(index, None)
    moved = write("Transpose", output, perm=[0, 2, 1, 3])
    width = operands.counts[0] * operands.width
    return [write("Reshape", moved, write.ints(0, 0, width)), present_k, present_v]


def _places(write: Writer, lengths: _Lengths, limit: int) -> ir.Value:
    """(batch, seq): where each new position stands; padding at most at the end of the table."""
    steps = write("Range", write.scalar(0), write("Squeeze", lengths.seq), write.scalar(1))
    places = write("Add", write("Unsqueeze", lengths.row_past, write.ints(1)), steps)
    return write("Min", places, write.ints(limit - 1))


def _turned(
    write: Writer, value: ir.Value, places: ir.Value, operands: _Operands, heads: int
) -> ir.Value:
    rotary, width = operands.rotary, operands.width
    assert rotary is not None
    attributes: dict[str, Any] = {"interleaved": int(rotary.interleaved)}
    rotary_dim = 2 * rotary.cos.shape[1]
    if rotary_dim != width:
        attributes |= {"num_heads": heads, "rotary_embedding_dim": rotary_dim}
    inputs = [value, places, write.array(rotary.cos), write.array(rotary.sin)]
    return write.node("RotaryEmbedding", inputs, attributes, domain=CONTRIB).outputs[0]


def _again(write: Writer, value: ir.Value | None, side: Heads, packed: ir.Value) -> ir.Value:
    """Write what leads from `side` to `value` in the branch too, so that it runs only there."""
    assert value is not None
    known = {side.value: side.value} if side.packed is None else {side.packed: packed}

    def copied(value: ir.Value | None) -> ir.Value | None:
        if value is None or value in known:
            return None if value is None else known[value]
        node = value.producer()
        if node is None:
            return value
        inputs = [copied(source) for source in node.inputs]
        attributes = {a.name: a.value for a in node.attributes.values()}
        twin = write.node(node.op_type, inputs, attributes, len(node.outputs), node.domain)
        for old, new in zip(node.outputs, twin.outputs, strict=True):
            new.type = old.type
            known[old] = new
        return known[value]

    result = copied(value)
    assert result is not None
    return result


def _packed(write: Writer, side: Heads | ir.Value | None, width: int) -> ir.Value:
    """(batch, seq, heads * head_dim)."""
    if isinstance(side, Heads):
        if side.packed is not None:
            return side.packed
        value, heads_first = side.value, side.heads_first
    else:
        assert side is not None
        value, heads_first = side, True
    moved = write("Transpose", value, perm=[0, 2, 1, 3]) if heads_first else value
    result = write("Reshape", moved, write.ints(0, 0, width))
    result.type = value.type
    return result


def _split(write: Writer, value: ir.Value, heads: int, width: int) -> ir.Value:
    """(batch, heads, seq, head_dim)."""
    split = write("Reshape", value, write.ints(0, 0, heads, width))
    return write("Transpose", split, perm=[0, 2, 1, 3])
