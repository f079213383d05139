"""The static proof: runs of the analysis over several sizes, and what they add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.analyse import LENGTHS, Analysis
from causal_onnx.export.analysis.assumptions import AssumptionKind
from causal_onnx.export.analysis.branches import branch_sizes, missed_branches
from causal_onnx.export.analysis.elements import Abstract, Elements, view
from causal_onnx.export.analysis.graph import describe, source_of
from causal_onnx.export.analysis.interpret import Constants, Run, SizesRefusedError, StuckError
from causal_onnx.export.analysis.signature import (
    CAUSAL_ROLES,
    CONTROL_ROLES,
    InputAxes,
    Signature,
    Sizes,
)
from causal_onnx.export.proof.certificate import Assumption, Offence, OutputFinding
from causal_onnx.export.proof.judge import Leak, OutputVerdict, judge_output, offender, selection
from causal_onnx.export.proof.symbolic.engine import SymbolicProof, prove_symbolically

__all__ = ["StaticProof", "batch_independent", "prove"]


@dataclass
class StaticProof:
    """What the runs found."""

    verdict: str
    reason: str
    offence: Offence | None = None
    outputs: tuple[OutputFinding, ...] = ()
    assumptions: list[Assumption] = field(default_factory=list)
    analysis: Analysis | None = None
    refused: tuple[str, ...] = ()
    deterministic: bool = True
    picked: dict[str, tuple[ir.Value, tuple[int, ...]]] = field(default_factory=dict)
    """Output of the last position alone -> the tensor that it is taken from, its position axis."""
    symbolic: SymbolicProof | None = None
    """The proof for every length, where the runs found no leak."""


def prove(
    model: ir.Model,
    signature: Signature,
    grid: Sequence[Sizes],
    *,
    step: Callable[[], None] | None = None,
) -> StaticProof:
    """Follow every element through the graph at all sizes of the grid, and judge the outputs.

    Masks, positions and lengths among the inputs are data first. Where that fails, they are taken
    as those of unpadded sequences, which the proof then assumes; masks over pairs as causal ones,
    those alone first. The mask of a derived cache, by which rows find their place, can be no data:
    it is taken so at once.
    """
    rows = tuple(s for s in signature.inputs if s.name == signature.row_mask)
    control = tuple(s for s in signature.inputs if s.role in CONTROL_ROLES)
    causal = tuple(s for s in control if s in rows or s.role in CAUSAL_ROLES)
    constants = Constants()
    best: StaticProof | None = None
    for plain in dict.fromkeys((rows, causal, control)):
        proof = _attempt(Analysis(model, signature, constants, plain=plain), grid, step)
        step = None
        if proof.verdict == "causal":
            proof.assumptions.extend(_assumed_of(plain))
            return proof
        if best is None or best.verdict != "not_causal" or proof.verdict != "undecided":
            best = proof
    assert best is not None
    return best


def _assumed_of(inputs: Sequence[InputAxes]) -> Iterator[Assumption]:
    masks = [spec.name for spec in inputs if spec.role in CAUSAL_ROLES]
    others = [spec.name for spec in inputs if spec.role not in CAUSAL_ROLES]
    if masks:
        how = "hides" if len(masks) == 1 else "hide"
        yield Assumption(
            kind=AssumptionKind.CAUSAL_MASK,
            text=f"{', '.join(masks)} {how} every key that comes after its query",
        )
    if others:
        how = "has" if len(others) == 1 else "have"
        yield Assumption(
            kind=AssumptionKind.UNPADDED_INPUTS,
            text=f"{', '.join(others)} {how} the values of sequences without padding",
        )


def _attempt(
    analysis: Analysis, grid: Sequence[Sizes], step: Callable[[], None] | None
) -> StaticProof:
    signature = analysis.signature
    refused: dict[str, ir.Node] = {}
    for sizes in _with_branches(analysis, grid):
        try:
            found = analysis.follow(sizes, step=step)
        except SizesRefusedError as error:
            past = f" after a past of {sizes.past_seq}" if sizes.past_seq else ""
            text = f"length {sizes.seq}{past}: {describe(error.node)}: {error.reason}"
            refused[text] = error.node
        except StuckError as error:
            offence = _offence(error.node, f"it cannot be followed: {error.reason}")
            return StaticProof("undecided", _stuck_text(error), offence, analysis=analysis)
        else:
            analysis.runs.append(found)
    if not analysis.runs and signature.fixed_seq is None:
        _find_lengths(analysis, grid)
    if not analysis.runs:
        text = next(iter(refused), "no sizes to try")
        node = next(iter(refused.values()), None)
        return StaticProof(
            "undecided",
            f"the graph accepts none of the lengths tried ({text})",
            None if node is None else _offence(node, text),
            refused=tuple(refused),
            analysis=analysis,
        )
    proof = judge_runs(analysis.model, analysis.runs)
    proof.analysis = analysis
    proof.refused = tuple(refused)
    return proof if proof.verdict != "causal" else _for_every_length(proof)


def _with_branches(analysis: Analysis, grid: Sequence[Sizes]) -> Iterator[Sizes]:
    """The grid, then sizes at which branches are entered that the runs over the grid were not in.

    Branches within branches show when the outer ones are entered.
    """
    yield from grid
    while more := [sizes for sizes in branch_sizes(analysis) if sizes not in analysis.branching]:
        analysis.branching.extend(more)
        yield from more


def _find_lengths(analysis: Analysis, grid: Sequence[Sizes]) -> None:
    """Where a graph refuses all usual lengths: the few that it takes, baked in by its export."""
    longest = 0 if not grid else max(sizes.seq for sizes in grid)
    for batch in (2, 3, 1):
        for n in range(1, 33):
            if batch == 2 and n <= longest and n in LENGTHS:
                continue
            found = analysis.by_position(replace(grid[0], batch=batch, seq=n, past_seq=0))
            if found is not None:
                analysis.runs.append(found)
                if len(analysis.runs) > 1:
                    return
        if analysis.runs:
            return


def _for_every_length(proof: StaticProof) -> StaticProof:
    """Go from the lengths that were run to all; where that needs evidence, run more lengths."""
    analysis = proof.analysis
    assert analysis is not None
    if analysis.signature.fixed_seq is not None:
        return proof
    named = {value.name or "": value for value in analysis.model.graph.outputs}
    axes = {named[out.name]: out.position_axes for out in proof.outputs if out.position_axes}
    axes.update(proof.picked.values())
    proof.symbolic = prove_symbolically(analysis, axes)
    if proof.symbolic.holds and not proof.symbolic.measured:
        return proof
    more = analysis.run_longer(proof.symbolic.longest)
    if not more:
        return _unless_missed(proof)
    longer = judge_runs(analysis.model, analysis.runs)
    longer.analysis, longer.refused = analysis, proof.refused
    if longer.verdict == "causal":
        longer.symbolic = prove_symbolically(analysis, axes)
        longer = _unless_missed(longer)
    return longer


def _unless_missed(proof: StaticProof) -> StaticProof:
    """The proof; undecided where it stands on the runs alone and no run entered some branch."""
    assert proof.analysis is not None
    missed = missed_branches(proof.analysis)
    if not missed or (proof.symbolic is not None and proof.symbolic.holds):
        return proof
    node, condition = missed[0]
    text = f"its branch for {str(condition).lower()} is taken at none of the lengths followed"
    reason = f"{describe(node)}: {text}"
    return replace(proof, verdict="undecided", reason=reason, offence=_offence(node, text))


def _stuck_text(error: StuckError) -> str:
    return f"{describe(error.node)} cannot be followed: {error.reason}"


def judge_runs(model: ir.Model, runs: list[Run]) -> StaticProof:
    """The verdict over all outputs."""
    verdicts = [(value, judge_output(value, runs)) for value in model.graph.outputs]
    leaking = [(value, v) for value, v in verdicts if v.leak is not None]
    outputs = tuple(_finding(v) for _, v in verdicts)
    assumptions = _assumptions(runs)
    deterministic = not any(r.context.random for r in runs)
    common = {
        "outputs": outputs,
        "assumptions": assumptions,
        "deterministic": deterministic,
    }
    if leaking:
        verdict, reason, offence = _blame(model, runs, leaking)
        return StaticProof(verdict, reason, offence, **common)  # type: ignore[arg-type]
    longest = max(runs, key=lambda r: r.sizes.total_seq)
    picked = {
        v.name: found
        for value, v in verdicts
        if not v.axes and (found := selection(longest, value)) is not None
    }
    common["picked"] = picked
    common["outputs"] = tuple(
        replace(out, note="is of the last position alone") if out.name in picked else out
        for out in outputs
    )
    if not picked and not any(v.axes for _, v in verdicts):
        return StaticProof(
            "undecided",
            "no output has a position axis, so there is nothing to prove",
            **common,  # type: ignore[arg-type]
        )
    reason = "every output at position t depends on inputs up to t"
    return StaticProof("causal", reason, **common)  # type: ignore[arg-type]


def _finding(verdict: OutputVerdict) -> OutputFinding:
    causal = None if not verdict.axes else verdict.leak is None
    return OutputFinding(
        name=verdict.name, position_axes=verdict.axes, causal=causal, note=verdict.note
    )


def _assumptions(runs: Iterable[Run]) -> list[Assumption]:
    found: dict[tuple[AssumptionKind, str], set[str]] = {}
    for one in runs:
        for caveat, nodes in one.context.caveats.items():
            found.setdefault(caveat, set()).update(nodes)
    return [
        Assumption(kind=kind, text=text, nodes=tuple(sorted(nodes)))
        for (kind, text), nodes in found.items()
    ]


def _blame(
    model: ir.Model, runs: Sequence[Run], leaking: Sequence[tuple[ir.Value, OutputVerdict]]
) -> tuple[str, str, Offence | None]:
    """Name the node that mixes positions, and say whether that is certain."""
    order = {node: index for index, node in enumerate(model.graph.all_nodes())}
    found: list[tuple[int, ir.Node, Run, Leak, str]] = []
    for value, verdict in leaking:
        leak = verdict.leak
        assert leak is not None
        # At a long length, few wrong readings of the axes fit by chance.
        where = max(
            (r for r in runs if judge_output(value, [r], dict.fromkeys(verdict.axes, "")).leak),
            key=lambda r: r.sizes.total_seq,
        )
        node = offender(where, value, order)
        if node is not None:
            node = _softmax_behind(node, where)
            found.append((order.get(node, 0), node, where, leak, verdict.name))
    if not found:
        name = leaking[0][1].name
        return "not_causal", f"output {name} is an input, at other positions", None
    _, node, where, leak, name = min(found, key=lambda item: item[0])
    witness = _witness(name, leak)
    unknown = where.unknown.get(node) or next(
        (r.unknown[node] for r in runs if node in r.unknown), None
    )
    if unknown is not None:
        reason = f"{describe(node)} is taken to mix all positions: {unknown}"
        return "undecided", reason, _offence(node, unknown, witness)
    guess = where.context.approximate.get(node)
    if guess is not None:
        reason = f"{describe(node)} may mix positions: {guess}"
        return "undecided", reason, _offence(node, guess, witness)
    text = explain(node, where)
    return "not_causal", f"{describe(node)}: {text}", _offence(node, text, witness)


PLAIN_MOVES = frozenset(
    {"Cast", "Identity", "Dropout", "Mul", "Div", "Reshape", "Squeeze", "Unsqueeze", "Expand"}
)
"""What may stand between a softmax and the sum that it weights, leaving rows as rows."""


def _softmax_behind(node: ir.Node, where: Run) -> ir.Node:
    """For a sum of values weighted by a softmax: the softmax, whose mask lets them in."""
    if node.op_type not in ("MatMul", "Einsum", "Gemm", "FusedMatMul"):
        return node
    for value in node.inputs:
        for _ in range(8):
            maker = None if value is None else value.producer()
            if maker is None or not isinstance(where.values.get(maker.outputs[0]), Elements):
                break
            if maker.op_type == "Softmax":
                return maker
            if maker.op_type == "Where" and len(maker.inputs) == 3:
                value = maker.inputs[2]  # noqa: PLW2901 - walking back
            elif maker.op_type in PLAIN_MOVES:
                value = maker.inputs[0]  # noqa: PLW2901 - walking back
            else:
                break
    return node


def _witness(name: str, leak: Leak) -> str:
    past = f" after a past of {leak.sizes.past_seq}" if leak.sizes.past_seq else ""
    return (
        f"{name}{list(leak.index)}, position {leak.position}, depends on position {leak.reach} "
        f"(length {leak.sizes.seq}{past})"
    )


def explain(node: ir.Node, where: Run) -> str:
    """One sentence on what the node does to the order of positions."""
    value = next((out for out in node.outputs if out in where.values), None)
    found = None if value is None else where.values[value]
    spread = ""
    if isinstance(found, Elements) and found.reach.size:
        reach = view(found.reach, found.shape)
        index = tuple(int(i) for i in np.unravel_index(int(reach.argmax()), reach.shape))
        length = where.sizes.total_seq
        spread = (
            f" (at length {length}, element {list(index)} of its output depends on position "
            f"{int(reach[index])})"
        )
    texts = {
        "Softmax": "its weights, or the scores it normalises, are open to keys after the query",
        "LogSoftmax": "the scores it normalises are open to keys after the query",
        "MatMul": "it sums over positions after the one it computes",
        "Gemm": "it sums over positions after the one it computes",
        "Einsum": "it sums over positions after the one it computes",
        "Attention": "its mask lets a query see later keys",
        "MultiHeadAttention": "its mask lets a query see later keys",
        "GroupQueryAttention": "its mask lets a query see later keys",
        "Conv": "its window reaches past the position it computes",
        "CumSum": "it sums from the end",
        "DynamicQuantizeLinear": "its scale is computed from all positions",
        "BatchNormalization": "it normalises over positions",
        "InstanceNormalization": "it normalises over positions",
        "LayerNormalization": "it normalises over positions",
        "GroupNormalization": "it normalises over positions",
    }
    text = texts.get(node.op_type)
    if text is None and node.op_type.startswith("Reduce"):
        text = "it reduces over positions"
    if text is None and node.op_type in ("Slice", "Pad", "Gather", "Concat", "Reshape"):
        text = "it puts data of a later position in the place of an earlier one"
    return (text or "it carries data of later positions to earlier ones") + spread


def _offence(node: ir.Node, reason: str, witness: str = "") -> Offence:
    source = source_of(node)
    name = node.name or (node.outputs[0].name if node.outputs else "") or ""
    return Offence(
        node=name,
        op_type=node.op_type,
        domain=node.domain,
        module=source.module or "",
        line=source.line or "",
        reason=reason,
        witness=witness,
    )


def batch_independent(analysis: Analysis, sizes: Sizes) -> bool | None:
    """Whether row b of every output depends on row b of the inputs alone; None: not found out.

    Two runs with the batch in the place of the positions, once counted backwards: a row that
    depends on no later row in either order depends on itself.
    """
    if not analysis.signature.has_batch:
        return None
    rows = np.arange(sizes.batch, dtype=np.int32)
    verdicts: list[bool] = []
    for backwards in (False, True):
        found = analysis.by_batch(sizes, backwards=backwards)
        if found is None:
            return None
        order = rows[::-1] if backwards else rows
        verdicts.extend(_rows_alone(found.values[v], order) for v in analysis.model.graph.outputs)
    return all(verdicts)


def _rows_alone(value: Abstract, rows: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> bool:
    if not isinstance(value, Elements) or value.reach.max(initial=-1) < 0:
        return True
    for axis, size in enumerate(value.shape):
        if size % len(rows) == 0 and value.reach.shape[axis] == size:
            for own in (np.repeat(rows, size // len(rows)), np.tile(rows, size // len(rows))):
                place = own.reshape([-1 if i == axis else 1 for i in range(len(value.shape))])
                if (value.reach <= place).all():
                    return True
    return False
