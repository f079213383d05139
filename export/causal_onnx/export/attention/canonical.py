"""Canonical form: each attention core becomes one `Attention` node of this project's own domain.

    Attention(q, k, v, bias?, past_key?, past_value?, row_past?, row_total?, sink?)
        -> (output, present_key?, present_value?)

q is (batch, num_heads, seq, head_dim), k and v (batch, num_kv_heads, seq, width) hold the new
positions, bias is added to the scores and broadcasts to (batch, num_heads, seq, total_seq).
Attributes: `scale`, `softcap` (0: none), `is_causal`, `window` (0: none; else itself and
window - 1 before), `bounded` (with a past; 0: none). `sink` is one more score per head, which takes
weight and contributes no value. A row that may attend to nothing gives 0. `lower` writes it for a
target.

With a past, row b has row_past[b] tokens in the cache and row_total[b] - row_past[b] new ones,
which come first in its part of q, k and v; the rest is padding, whose output is finite and means
nothing. Query i stands at position row_past[b] + i. Without row_past and row_total every row has as
many tokens as the past has slots, and no padding.

Slot p of a row's cache holds its position p; of the present, slots from row_total[b] on hold
anything finite. With `bounded`, c slots of a past hold the last c positions: slot s of row b is
position max(row_past[b] - c, 0) + s, and likewise in the present of min(bounded, total_seq) slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from causal_onnx.export.analysis.analyse import Analysis
from causal_onnx.export.analysis.attributes import UnsupportedError
from causal_onnx.export.analysis.elements import VERY_NEGATIVE, Abstract, Elements, Known
from causal_onnx.export.analysis.interpret import Run
from causal_onnx.export.analysis.signature import Sizes, read_signature
from causal_onnx.export.attention.arrange import Arranger
from causal_onnx.export.attention.axis_map import Layout
from causal_onnx.export.attention.canonical_core import DOMAIN, CanonicalCore
from causal_onnx.export.attention.core import AttentionCore, MaskTerm, Operand
from causal_onnx.export.attention.find_footprint import footprint_by_positions
from causal_onnx.export.attention.footprint import Footprint
from causal_onnx.export.attention.identities import respell
from causal_onnx.export.attention.mask_terms import spread
from causal_onnx.export.attention.operands import tensor_of
from causal_onnx.export.attention.recognise import core_at, recognise
from causal_onnx.export.graph.edit import constant
from causal_onnx.export.graph.facts import probing_sizes

__all__ = ["canonicalise"]

SINK = 8
"""The place of the sink among the inputs."""


def canonicalise(
    model: ir.Model, max_seq_len: int | None = None, *, for_cache: bool = False
) -> tuple[list[CanonicalCore], dict[ir.Node, str]]:
    """Rewrite every core that can be, in place.

    Args:
        model: The graph.
        max_seq_len: The longest sequence.
        for_cache: Leave a core as it is whose scores data change, too: its cache is more than keys
            and values.

    Returns:
        The cores in graph order, and for each attention left as it is the reason.
    """
    analysis = _analysis(model, max_seq_len)
    if respell(model, analysis.runs[0]):
        common.RemoveUnusedNodesPass()(model)
        analysis = _analysis(model, max_seq_len)
    cores: list[CanonicalCore] = []
    others: dict[ir.Node, str] = {}
    fit: list[tuple[AttentionCore, Footprint, bool]] = []
    for found in recognise(analysis):
        if found.node.graph is not model.graph:
            continue
        try:
            _refuse_unfit(analysis, found)
            _refuse_changing(analysis, found)
            if for_cache and not all(term.known for term in found.terms):
                raise UnsupportedError("what is added to the scores depends on data")
            # Of all before any is rewritten: masks are evaluated by running the graph as captured.
            fit.append((found, *footprint_by_positions(analysis, found)))
        except UnsupportedError as reason:
            others[found.node] = str(reason)
    for found, footprint, has_bias in fit:
        try:
            cores.append(_Rewriting(analysis, found, footprint, has_bias).core())
        except UnsupportedError as reason:
            others[found.node] = str(reason)
    if cores:
        model.opset_imports[DOMAIN] = 1
        common.RemoveUnusedNodesPass()(model)
    return cores, others


def _analysis(model: ir.Model, max_seq_len: int | None) -> Analysis:
    signature = replace(read_signature(model), max_seq_len=max_seq_len)
    sizes: Sequence[Sizes] = probing_sizes(max_seq_len, signature.symbols)
    if signature.fixed_seq is not None:
        sizes = [replace(sizes[0], seq=signature.fixed_seq)]
    analysis = Analysis(model, signature)
    analysis.runs += [analysis.follow(size) for size in sizes]
    return analysis


def _refuse_unfit(analysis: Analysis, core: AttentionCore) -> None:
    """Leave alone what the canonical node does not say.

    Raises:
        UnsupportedError: It is one of those; says why.
    """
    if core.problem:
        raise UnsupportedError(core.problem)
    if core.weights_used:
        raise UnsupportedError("the attention weights are used elsewhere (returned, or read twice)")
    if any("past_seq" in item.axes for item in analysis.signature.inputs):
        # The canonical node has as many keys as queries before a cache is derived for it.
        raise UnsupportedError("the module takes a past of its own")
    if core.kind == "fused" and (
        core.node.domain not in ("", "ai.onnx")
        or any(value is not None for value in core.node.inputs[4:])
        or len(core.node.outputs) > 1
    ):
        raise UnsupportedError("the attention has a past of its own")
    if core.sink is not None and core.sink_scores is None:
        raise UnsupportedError("the score of its sink depends on data or on the position")
    for what, operand, width in (
        ("queries", core.q, core.head_dim),
        ("keys", core.k, core.head_dim),
        ("values", core.v, core.v_dim),
        ("results", core.output, core.v_dim),
    ):
        if operand is None or width is None:
            raise UnsupportedError("an operand was not found")
        for found in analysis.runs:
            _refuse_other_shape(core, what, operand, width, found)
    assert core.q is not None
    if core.q.layout.picks is None and core.q.layout.heads != core.num_heads:
        raise UnsupportedError("its queries are repeated over the heads")
    for term in core.terms:
        if term.scores is None or _splits_groups(analysis, term, term.scores):
            raise UnsupportedError(f"the mask {term.value.name} is not laid out like the scores")
        if not term.known and term.kind not in ("where", "add"):
            raise UnsupportedError(f"{term.value.name} multiplies the scores")
    _refuse_rows_of_padding(analysis, core)


def _refuse_rows_of_padding(analysis: Analysis, core: AttentionCore) -> None:
    """A row that sees nothing averages over whatever is hidden by a finite number.

    Beside a mask of padding that data decides there are such rows, and the causal rule of the
    canonical node hides later positions from that average too.

    Raises:
        UnsupportedError: There may be such a row.
    """
    hides = any(
        term.kind == "where" or "s" not in Arranger.letters(_axes_used(analysis, term, term.scores))
        for term in core.terms
        if not term.known and term.scores is not None
    )
    for term in core.terms if hides else ():
        if term.known and _lowest(analysis, term) != -np.inf:
            raise UnsupportedError(
                f"{term.value.name} hides positions by a finite number, beside a mask that data "
                "decides: a row of padding alone averages over all positions"
            )
    for before, term in combinations(core.terms, 2):
        is_finite = term.kind == "where" and term.fill is not None and np.isfinite(term.fill)
        if before.known and not term.known and is_finite:
            raise UnsupportedError(
                f"{term.value.name} hides by a finite number what {before.value.name} hid before: "
                "a row of padding alone sees it again"
            )


def _lowest(analysis: Analysis, term: MaskTerm) -> float:
    """What a known term adds to the scores that it hides; -inf where it hides none."""
    if term.kind == "where":
        return -np.inf if term.fill is None else term.fill
    found = tensor_of(analysis.runs[0], term.value)
    if term.kind != "add" or not isinstance(found, Known) or not found.size:
        return -np.inf
    lowest = float((found.value.astype(np.float64) * term.factor).min())
    return lowest if lowest <= VERY_NEGATIVE else -np.inf


def _refuse_changing(analysis: Analysis, core: AttentionCore) -> None:
    """The numbers were read at one length, and the canonical node holds them for every length.

    Raises:
        UnsupportedError: They are others at another length.
    """
    sizes = analysis.probe_sizes()
    assert sizes is not None
    others = [found for found in analysis.runs if found.sizes.seq != sizes.seq]
    if not others:
        return  # one length is all that the graph takes
    longest = max(others, key=lambda found: found.sizes.seq)
    again = core_at(analysis, longest, analysis.by_batch(longest.sizes), core.node)
    if again is None or again.problem:
        return  # too short to recognise anything
    for (name, mine), (_, other) in zip(_numbers(core), _numbers(again), strict=False):
        for here, there in zip(mine, other, strict=True):
            if not np.isclose(here, there, rtol=1e-6, atol=0):
                raise UnsupportedError(
                    f"{name} changes with the length: {here:.6g} at {sizes.seq} positions, "
                    f"{there:.6g} at {longest.sizes.seq}"
                )


def _numbers(core: AttentionCore) -> list[tuple[str, tuple[float, ...]]]:
    """What the canonical node holds as numbers, by name."""
    found: list[tuple[str, tuple[float, ...]]] = [
        ("the scale of the scores", (core.scale or 0.0,)),
        ("the softcap", (core.softcap or 0.0,)),
    ]
    if core.sink_scores is not None:
        found.append(("the score of the sink", core.sink_scores))
    for term in core.terms:
        what = f"what {term.value.name} does to the scores"
        found.append((what, (term.factor, 0.0 if term.fill is None else term.fill)))
    return found


def _refuse_other_shape(
    core: AttentionCore, what: str, operand: Operand, width: int, found: Run
) -> None:
    """The layout was read at one choice of sizes: it must explain the shape at every other.

    Raises:
        UnsupportedError: It does not, as of a past or of memory that stands before the keys.
    """
    shape = operand.layout.shape(
        batch=found.sizes.batch if core.has_batch else 1, seq=found.sizes.seq, width=width
    )
    tensor: Abstract = tensor_of(found, operand.value)
    if not isinstance(tensor, Elements | Known) or tensor.shape != shape:
        raise UnsupportedError(
            f"its {what} ({operand.value.name}) do not stand for the positions of the sequence, "
            "one each, as those of a memory do not"
        )


class _Rewriting:
    """Writes one core as the canonical node."""

    def __init__(
        self, analysis: Analysis, core: AttentionCore, footprint: Footprint, has_bias: bool
    ):
        assert core.output is not None
        last = core.output.value.producer()
        assert last is not None
        self._core = core
        self._footprint, self._has_bias = footprint, has_bias
        # Before the last node of the core: the values may be computed after the softmax.
        self._write = Arranger(analysis.model.graph, last, analysis.signature)
        self._dtype = core.q.value.dtype if core.q is not None else None
        self._analysis = analysis

    def core(self) -> CanonicalCore:
        core, write = self._core, self._write
        assert core.q is not None
        assert core.k is not None
        assert core.v is not None
        assert core.output is not None
        assert core.num_heads is not None
        assert core.head_dim is not None
        assert core.v_dim is not None
        k_layout, k_heads = _grouped(core.k.layout, core.num_heads)
        v_layout, v_heads = _grouped(core.v.layout, core.num_heads)
        q = self._four_axes(core.q.value, core.q.layout, core.head_dim)
        k = self._four_axes(core.k.value, k_layout, core.head_dim)
        v = self._four_axes(core.v.value, v_layout, core.v_dim)
        groups = max(k_heads, v_heads)
        k, v = self._repeated(k, k_heads, groups), self._repeated(v, v_heads, groups)
        # Where data alone decides what is hidden, that stands in the bias, and nowhere else.
        is_told = not core.terms or any(term.known for term in core.terms)
        is_causal = core.is_causal or (self._footprint.kind in ("causal", "window") and is_told)
        sink = None
        if core.sink_scores is not None:
            sink = constant(write.graph, np.array(core.sink_scores, self._numpy_dtype()))
        inputs = [q, k, v, self._bias()]
        if sink is not None:
            inputs += [*[None] * (SINK - len(inputs)), sink]
        node = write.node(
            "Attention",
            inputs,
            domain=DOMAIN,
            attributes={
                "scale": float(core.scale or 0.0),
                "softcap": float(core.softcap or 0.0),
                "is_causal": int(is_causal),
                "window": (self._footprint.window or 0) if is_causal else 0,
            },
        )
        node.outputs[0].type = ir.TensorType(self._dtype or ir.DataType.FLOAT)
        node.metadata_props.update(core.node.metadata_props)
        packed_output = self._replace_output(node)
        return CanonicalCore(
            node=node,
            footprint=self._footprint,
            has_bias=self._has_bias,
            has_batch=core.has_batch,
            num_heads=core.num_heads,
            num_kv_heads=groups,
            head_dim=core.head_dim,
            value_dim=core.v_dim,
            bias_is_whole=self._bias_is_whole(),
            bias_is_known=all(term.known for term in core.terms),
            packed_inputs=self._packed_inputs() if k_heads == v_heads else (),
            packed_output=packed_output,
        )

    def _numpy_dtype(self) -> np.dtype[np.generic]:
        return np.dtype((self._dtype or ir.DataType.FLOAT).numpy())

    def _four_axes(self, value: ir.Value, layout: Layout, width: int) -> ir.Value:
        return self._write.four_axes(self._write.cast(value, self._dtype), layout, width)

    def _repeated(self, value: ir.Value, heads: int, wanted: int) -> ir.Value:
        """Keys and values have equally many heads: the fewer are repeated."""
        if heads == wanted:
            return value
        order = np.repeat(np.arange(heads), wanted // heads)
        return self._write("Gather", value, self._write.ints(*order.tolist()), axis=1)

    def _replace_output(self, node: ir.Node) -> ir.Value | None:
        """Give the readers of the core's output the new one, in the axes that the module had.

        Returns the new one where it is packed.
        """
        core, graph = self._core, self._write.graph
        assert core.output is not None
        assert core.v_dim is not None
        old = core.output.value
        restored = self._write.restore(node.outputs[0], core.output.layout, core.v_dim)
        result = self._write.cast(restored, old.dtype)
        if old.is_graph_output():
            index = list(graph.outputs).index(old)
            result.name, old.name = old.name, f"{old.name}_replaced"
            result.type, result.shape = old.type, old.shape
            graph.outputs[index] = result
        old.replace_all_uses_with(result)
        return result if _is_packed(core.output) and result is restored else None

    def _packed_inputs(self) -> tuple[ir.Value, ...]:
        """q, k, v as (batch, seq, heads * width), heads not yet split: operators that take that
        form spare the transpositions. Empty where the graph does not have them."""
        operands = (self._core.q, self._core.k, self._core.v)
        packed = tuple(op.value for op in operands if op is not None and _is_packed(op))
        is_whole = len(packed) == len(operands) and len({value.dtype for value in packed}) == 1
        return packed if is_whole else ()

    def _bias(self) -> ir.Value | None:
        """What the mask adds to the scores, where the causal rule and the window do not say it."""
        total: ir.Value | None = None
        for term in self._added_terms():
            value = self._added(term)
            total = value if total is None else self._write("Add", total, value)
            total.type = ir.TensorType(self._dtype or ir.DataType.FLOAT)
        return total

    def _added_terms(self) -> list[MaskTerm]:
        plain = self._footprint.is_plain and not self._has_bias
        # What multiplies the scores is 1 wherever they count.
        return [
            term
            for term in self._core.terms
            if not (term.known and (plain or term.kind == "multiply"))
        ]

    def _bias_is_whole(self) -> bool:
        """Whether what is added has an entry for each query and key, not one for all of an axis."""
        letters: set[str] = set()
        for term in self._added_terms():
            assert term.scores is not None
            letters |= set(self._write.letters(_axes_used(self._analysis, term, term.scores)))
        return {"s", "d"} <= letters

    def _added(self, term: MaskTerm) -> ir.Value:
        """One term as something to add to scores (batch, heads, seq, total)."""
        write, dtype = self._write, self._numpy_dtype()
        if term.kind == "add":
            value = write.cast(term.value, self._dtype)
            if term.factor != 1.0:
                factor = constant(write.graph, np.array(term.factor, dtype))
                value = write("Mul", value, factor)
        else:
            choice = term.value
            if term.kind == "after":
                choice = write("Cast", choice, to=int(ir.DataType.BOOL))
                choice.type = ir.TensorType(ir.DataType.BOOL)
            with np.errstate(over="ignore"):
                low = np.array(-np.inf if term.fill is None else term.fill).astype(dtype)
            sides = [constant(write.graph, side) for side in (np.zeros((), dtype), low)]
            value = write("Where", choice, *(sides if term.keep else sides[::-1]))
        value.type = ir.TensorType(self._dtype or ir.DataType.FLOAT)
        value = self._like_scores(value, term)
        if self._core.sink is None and _counts_from_the_end(self._analysis, self._core, term):
            # A softmax does not see what is the same along a row: count from the first key.
            first = write("Slice", value, *(write.ints(n) for n in (0, 1, -1)))
            value = write("Sub", value, first)
        return value

    def _like_scores(self, value: ir.Value, term: MaskTerm) -> ir.Value:
        """(seq, total) where that is all it depends on, else with axes for batch and heads."""
        layout = term.scores
        assert layout is not None
        wide = _axes_used(self._analysis, term, layout)
        letters = set(self._write.letters(wide))
        value = self._write.ordered(value, wide, layout)
        least = "bhsd" if letters & {"b", "h"} else "sd"
        missing = [index for index, letter in enumerate(least) if letter not in letters]
        if missing:
            value = self._write("Unsqueeze", value, self._write.ints(*missing))
        if layout.picks is not None and "h" in letters:
            value = self._write("Gather", value, self._write.ints(*layout.picks), axis=1)
        return value


def _axes_used(analysis: Analysis, term: MaskTerm, layout: Layout) -> list[tuple[str, ...]]:
    """What each axis of a term runs over; nothing where it is broadcast."""
    found = tensor_of(analysis.runs[0], term.value)
    assert isinstance(found, Elements | Known)
    axes = layout.axes[len(layout.axes) - len(found.shape) :]
    return [() if size == 1 else axis for size, axis in zip(found.shape, axes, strict=True)]


def _counts_from_the_end(analysis: Analysis, core: AttentionCore, term: MaskTerm) -> bool:
    """Whether a term grows with the length by the same along each row, and by nothing else."""
    if not term.known or term.kind != "add" or len(analysis.runs) < 2:
        return False
    values = []
    for found in analysis.runs[:2]:
        known = tensor_of(found, term.value)
        if not isinstance(known, Known):
            return False
        values.append(spread(core, term, known.value, found).astype(np.float64))
    short, long = values
    rows, columns = short.shape[2:]
    long = long[:, :, :rows, :columns]
    if columns < 2 or long.shape != short.shape or not np.isfinite([short, long]).all():
        return False
    first = slice(0, 1)
    return not np.allclose(short, long, 1e-6, 1e-7) and np.allclose(
        short - short[..., first], long - long[..., first], 1e-6, 1e-7
    )


def _splits_groups(analysis: Analysis, term: MaskTerm, layout: Layout) -> bool:
    """Whether a term differs between groups of heads but not inside, or the other way round."""
    letters = Arranger.letters(_axes_used(analysis, term, layout))
    return layout.groups > 1 and ("g" in letters) != ("h" in letters)


def _is_packed(operand: Operand) -> bool:
    if operand.layout.picks is not None:
        return False
    return operand.layout.axes in ((("b",), ("s",), ("h", "d")), (("b",), ("s",), ("d",)))


def _grouped(layout: Layout, num_heads: int) -> tuple[Layout, int]:
    """Key or value heads without the copies of neighbours, and how many they are."""
    if layout.picks is None:
        return layout, layout.heads
    for count in range(1, num_heads):
        chosen = layout.picks[:: num_heads // count]
        repeats = num_heads // count
        if num_heads % count == 0 and layout.picks == tuple(
            head for head in chosen for _ in range(repeats)
        ):
            return replace(layout, picks=chosen), count
    return layout, num_heads
