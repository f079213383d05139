"""attest: a certificate of causality for any ONNX file, without PyTorch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_ir as ir

from causal_onnx.export.analysis.analyse import default_grid, other_sizes
from causal_onnx.export.analysis.assumptions import AssumptionKind
from causal_onnx.export.analysis.branches import optional_inputs
from causal_onnx.export.analysis.graph import describe, load_model, source_of
from causal_onnx.export.analysis.signature import Signature, Sizes, read_signature
from causal_onnx.export.attention.core import AttentionCore
from causal_onnx.export.attention.in_branches import find_all_cores
from causal_onnx.export.proof.certificate import Assumption, Certificate, CoreFinding
from causal_onnx.export.proof.confirm import MAX_RUNS, Confirmation, Suspect, confirm
from causal_onnx.export.proof.judge import all_leaks
from causal_onnx.export.proof.perturb import DynamicCheck, cuts_at, perturb, vocabulary_sizes
from causal_onnx.export.proof.prefix_stability import length_dependent
from causal_onnx.export.proof.prove import StaticProof, batch_independent, prove
from causal_onnx.export.proof.running import (
    GraphRunner,
    Runnable,
    open_evaluator,
    open_session,
)
from causal_onnx.runtime.artifact.folder import model_file

__all__ = ["attest"]

ROUNDING = 1e-5
"""Where the graph is causal only up to rounding, the past may move by this much, relative to the
output's scale."""

PREFIX_LIMIT = 1e-2
"""Outputs of one position at two lengths differ by rounding: products of other sizes are summed in
another order, at worst in half precision."""

MAX_WORK = 2e11
"""Weights times positions of one run of the dynamic check at a long length: some seconds."""

Progress = Callable[[str, int, int], None]
"""(stage, done, total)."""


def attest(
    source: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
    *,
    axes: Mapping[str, Mapping[int, str]] | None = None,
    max_seq_len: int | None = None,
    lengths: Sequence[int] | None = None,
    dynamic: bool = True,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    progress: Progress | None = None,
) -> Certificate:
    """Judge whether the output at position t of a graph depends only on inputs up to t.

    A static proof from the graph comes first, then a check by perturbation in onnxruntime. The
    verdict is "causal" only if the proof succeeds and the check does not contradict it. It is
    "not_causal" only if a run showed an earlier element that moves when a later position changes.
    Otherwise it is "undecided", and the certificate names the node at which the proof ends.

    Args:
        source: An ONNX file of any origin, the folder of a model, or a model in memory.
        axes: What the axes of the inputs are, {input: {axis: name}}, names batch, seq, past_seq and
            total_seq, or a name of your own for an axis of something else, such as a memory.
            Without it: the contract in the file, the graph's names, or the rank.
        max_seq_len: The longest sequence (past included) that the graph is meant for, if the
            contract in the file does not say; longer ones are left out.
        lengths: Sequence lengths at which every element is followed, instead of the usual ones.
        dynamic: Whether to run the check by perturbation. Without it, only a leak that the proof
            names is run, to confirm it.
        providers: Execution providers of onnxruntime for the runs.
        progress: Called with (stage, done, total); stages are "read", "static" (following every
            element), "attention" (recognising it) and "dynamic".

    Returns:
        The certificate; `str()` of it is the report.

    Raises:
        ValueError: The file is not an ONNX model, or no input has an axis that could be positions.
    """
    tell = progress or (lambda stage, done, total: None)
    tell("read", 0, 1)
    if isinstance(source, str | os.PathLike) and Path(source).is_dir():
        source = model_file(source)
    model = load_model(source)
    signature = read_signature(model, axes)
    if max_seq_len is not None:
        if max_seq_len < 1:
            raise ValueError(f"max_seq_len must be positive, got {max_seq_len}")
        signature = replace(signature, max_seq_len=max_seq_len)
    started = time.perf_counter()
    grid = default_grid(signature, lengths, other_sizes(model, signature))
    count = len(model.graph)
    proof = prove(model, signature, grid, step=_counter(progress, "static", count * len(grid)))
    cores: list[AttentionCore] = []
    independent = None
    if proof.analysis is not None:
        tell("attention", 0, 1)
        probe = proof.analysis.probe_sizes()
        if probe is not None:
            independent = batch_independent(proof.analysis, probe)
        cores = find_all_cores(proof.analysis)
    static_seconds = time.perf_counter() - started
    opened = _Opened(source, model, providers)
    confirmation = None
    if proof.verdict == "not_causal":
        proof, confirmation = _confirmed(opened, model, signature, proof)
    check = DynamicCheck(skipped="it was not asked for")
    if dynamic:
        tell("dynamic", 0, 1)
        check = _dynamic(opened, model, signature, proof, grid=grid, progress=progress)
    return _certificate(
        model,
        signature,
        proof,
        check,
        cores=cores,
        independent=independent,
        confirmation=confirmation,
        static_seconds=static_seconds,
    )


def _counter(progress: Progress | None, stage: str, total: int) -> Callable[[], None] | None:
    """A function that counts its calls and reports every hundredth of the total."""
    if progress is None:
        return None
    done = 0
    every = max(1, total // 100)

    def count() -> None:
        nonlocal done
        done += 1
        if done % every == 0 or done == total:
            progress(stage, min(done, total), total)

    return count


class _Opened:
    """The graph for running it, opened when first needed."""

    def __init__(
        self,
        source: str | os.PathLike[str] | onnx.ModelProto | ir.Model,
        model: ir.Model,
        providers: Sequence[str],
    ) -> None:
        self.source = source
        self.model = model
        self.providers = providers
        self._session: tuple[GraphRunner | None, str] | None = None

    def session(self) -> tuple[GraphRunner | None, str]:
        """The graph in onnxruntime; None and the reason where that is not possible."""
        if self._session is None:
            given = self._runnable()
            self._session = (
                (None, "the model is too large to be passed in memory")
                if given is None
                else open_session(given, self.providers)
            )
        return self._session

    def runners(self) -> Iterator[tuple[GraphRunner | None, str]]:
        """What could run the graph, one after the other."""
        yield self.session()
        given = self._runnable()
        if given is not None:
            yield open_evaluator(given)

    def _runnable(self) -> Runnable | None:
        if isinstance(self.source, str | os.PathLike):
            return Path(self.source)
        proto = self.source if isinstance(self.source, onnx.ModelProto) else ir.to_proto(self.model)
        return None if proto.ByteSize() > 1 << 31 else proto.SerializeToString()


def _confirmed(
    opened: _Opened, model: ir.Model, signature: Signature, proof: StaticProof
) -> tuple[StaticProof, Confirmation]:
    """Run what the proof calls a leak: without a run that shows it, the verdict is "undecided"."""
    named = {value.name or "": value for value in model.graph.outputs}
    runs = [] if proof.analysis is None else proof.analysis.runs
    suspects = [
        Suspect(output=out.name, leak=leak, place=place)
        for out in proof.outputs
        if out.causal is False
        for leak, place in all_leaks(named[out.name], runs, out.position_axes)
    ]
    reasons: list[str] = []
    found = Confirmation(confirmed=False)
    for runner, problem in opened.runners():
        if runner is None:
            reasons.append(problem)
            continue
        found = confirm(
            runner,
            signature,
            suspects,
            vocabulary=vocabulary_sizes(model),
            fixed=[] if proof.analysis is None else [s.name for s in proof.analysis.plain],
            max_runs=int(min(MAX_RUNS, max(20, MAX_WORK / (16 * max(1, _weights(model)))))),
        )
        if found.is_run:
            break
        reasons.append(found.reason)
    if not found.is_run:
        found = replace(found, reason="; ".join(reasons))
    offence = proof.offence
    if found.confirmed:
        if offence is not None:
            offence = replace(offence, witness=found.witness)
        return replace(proof, offence=offence), found
    doubt = f"{found.reason}, so that this is no proof of a leak"
    if offence is not None:
        may = offence.witness.replace("depends on", "may depend on")
        offence = replace(offence, witness=f"{may}; {found.reason}")
    outputs = tuple(
        out if out.causal is not False else replace(out, causal=None) for out in proof.outputs
    )
    reason = f"{proof.reason}; but {doubt}"
    return (
        replace(proof, verdict="undecided", reason=reason, offence=offence, outputs=outputs),
        found,
    )


def _weights(model: ir.Model) -> int:
    tensors = [value.const_value for value in model.graph.initializers.values()]
    return sum(tensor.size for tensor in tensors if tensor is not None)


def _dynamic(
    opened: _Opened,
    model: ir.Model,
    signature: Signature,
    proof: StaticProof,
    *,
    grid: Sequence[Sizes],
    progress: Progress | None,
) -> DynamicCheck:
    if not proof.outputs:
        return DynamicCheck(skipped="the proof ended before it found the position axes of outputs")
    runner, problem = opened.session()
    if runner is None:
        return DynamicCheck(skipped=problem)
    batches = _sizes_to_run(model, proof, grid)
    cuts = sum(len(cuts_at(sizes)) for sizes in batches)
    position_axes = {out.name: out.position_axes for out in proof.outputs}
    check = DynamicCheck()
    # Random ids may happen to be all padding, of which the proof says nothing: leave out the
    # smallest, which the id of padding mostly is.
    for lowest in (0, 1) if _assumes(proof, AssumptionKind.PADDED_ROWS) else (0,):
        check = perturb(
            runner,
            signature,
            position_axes,
            batches,
            vocabulary=vocabulary_sizes(model),
            lowest_id=lowest,
            fixed=[] if proof.analysis is None else [s.name for s in proof.analysis.plain],
            step=_counter(progress, "dynamic", cuts),
        )
        if not check.leaks:
            break
    if _assumes(proof, AssumptionKind.ROUNDING):
        check = replace(check, tolerance=ROUNDING)
    return check


def _sizes_to_run(model: ir.Model, proof: StaticProof, grid: Sequence[Sizes]) -> list[Sizes]:
    """Some of the sizes that the proof was at, and one in each branch that those do not enter."""
    taken, branching = list(grid), []
    if proof.analysis is not None:
        taken = [run.sizes for run in proof.analysis.runs] or taken
        branching = [sizes for sizes in taken if sizes in proof.analysis.branching]
    short = [sizes for sizes in taken if 1 < sizes.total_seq <= 32][:8]
    weights = _weights(model)
    # One row tells as much as two, and at such lengths a run of a large model takes seconds.
    long = [replace(sizes, batch=1) for sizes in branching if sizes not in short]
    return short + [sizes for sizes in long if weights * sizes.seq <= MAX_WORK]


def _assumes(proof: StaticProof, kind: AssumptionKind) -> bool:
    return any(assumption.kind == kind for assumption in proof.assumptions)


def _certificate(
    model: ir.Model,
    signature: Signature,
    proof: StaticProof,
    check: DynamicCheck,
    *,
    cores: Sequence[AttentionCore],
    independent: bool | None,
    confirmation: Confirmation | None,
    static_seconds: float,
) -> Certificate:
    verdict, reason = proof.verdict, proof.reason
    if verdict == "causal" and signature.block > 1:
        block = f"the end of its block of {signature.block}"
        reason = f"every output at position t depends on inputs up to {block}"
    if verdict == "causal" and signature.free_axes:
        reason += f", whatever stands in {' and '.join(signature.free_axes)}"
    if verdict != "not_causal" and check.leaks:
        worst = max(check.leaks, key=lambda case: case.leak)
        reason = (
            f"changing positions >= {worst.cut} of {worst.past_seq + worst.seq} moved earlier "
            f"entries of {worst.output} by {worst.leak:.1e}"
            + (f"; {proof.reason}" if verdict == "undecided" else "")
        )
        verdict = "not_causal"
    assumptions = [*proof.assumptions]
    guessed = [s.name for s in signature.inputs if s.guessed]
    if guessed:
        names = ", ".join(guessed)
        text = f"the position axis of {names} was chosen by rank, because no name gives it"
        assumptions.append(Assumption(kind=AssumptionKind.GUESSED_AXIS, text=text))
    runs = [] if proof.analysis is None else proof.analysis.runs
    optional = [] if proof.analysis is None else optional_inputs(proof.analysis.model)
    if optional:
        listed = ", ".join(value.name or "" for value in optional)
        text = f"optional inputs are left out, and have the values that the file stores: {listed}"
        assumptions.append(Assumption(kind=AssumptionKind.OPTIONAL_INPUTS, text=text))
    scope, every_length, open_step = _scope(signature, proof)
    measured = {} if proof.symbolic is None else proof.symbolic.measured
    if every_length and measured:
        steps = tuple(node.name or node.op_type for node in measured)
        text = "these nodes behave at every length as they do at the lengths tried"
        assumptions.append(Assumption(kind=AssumptionKind.MEASURED_STEPS, text=text, nodes=steps))
    return Certificate(
        verdict=verdict,
        scope=scope,
        every_length=every_length,
        open_step=open_step,
        reason=reason,
        offence=proof.offence,
        inputs=tuple(
            f"{s.name} ({', '.join(map(str, s.axes))}), {s.role}" for s in signature.inputs
        ),
        outputs=proof.outputs,
        cores=tuple(_core(core) for core in cores),
        assumptions=tuple(assumptions),
        lengths=tuple(f"{r.sizes.past_seq}+{r.sizes.seq}" for r in runs),
        refused=proof.refused,
        length_dependent=() if proof.analysis is None else length_dependent(proof.analysis),
        prefix_stable=None if check.prefix_change is None else check.prefix_change <= PREFIX_LIMIT,
        batch_independent=independent,
        deterministic=proof.deterministic,
        confirmation=confirmation,
        nodes=sum(1 for _ in model.graph.all_nodes()),
        static_seconds=static_seconds,
        dynamic=replace(check),
    )


def _scope(signature: Signature, proof: StaticProof) -> tuple[str, bool, str]:
    """The lengths the static analysis speaks of, whether that is every one, and why not."""
    runs = [] if proof.analysis is None else proof.analysis.runs
    tried = sorted({r.sizes.seq for r in runs})
    some = f"lengths {', '.join(map(str, tried))}" if tried else "no length"
    if proof.verdict != "causal":
        return some, False, ""
    if signature.fixed_seq is not None:
        return f"length {signature.fixed_seq}, the only one that the graph accepts", True, ""
    symbolic = proof.symbolic
    if symbolic is None or not symbolic.holds:
        where = None if symbolic is None else symbolic.node
        reason = "" if symbolic is None else symbolic.reason
        return some, False, reason + (f" (at {describe(where)})" if where is not None else "")
    limits = f" with {', '.join(symbolic.limits)}" if symbolic.limits else ""
    return f"every length{limits}", True, ""


def _core(core: AttentionCore) -> CoreFinding:
    return CoreFinding(
        node=core.node.name or "",
        op_type=core.node.op_type,
        footprint=core.describe(),
        num_heads=core.num_heads,
        num_kv_heads=core.num_kv_heads,
        head_dim=core.head_dim,
        scale=core.scale,
        module=source_of(core.node).module or "",
        problem=core.problem,
    )
