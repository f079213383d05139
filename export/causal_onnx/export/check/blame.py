"""When a graph fails a check: whose doing it is, and at which node it begins.

The graph as captured, before any rewrite, is compared at the same shapes. Where it disagrees too,
PyTorch's exporter is wrong, and another way of capturing may do better. Where it agrees, a rewrite
of this package is wrong: a defect, which no other form may hide.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from causal_onnx.export.attestation import attest
from causal_onnx.export.check.parity import Session, compare, tolerance_for
from causal_onnx.export.errors import CausalityError, ExportError, ParityError, RewriteError
from causal_onnx.export.forms import Form
from causal_onnx.export.graph.bfloat16 import contract_of_twin, make_twin
from causal_onnx.export.precision.choose import CODED_BITS
from causal_onnx.export.report import ParityReport
from causal_onnx.export.source.arrays import Array, to_numpy
from causal_onnx.export.source.budget import Budget
from causal_onnx.export.source.inputs import CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.export.subject import Subject
from causal_onnx.export.torch_patches.user_code import quoted_line
from causal_onnx.export.write import write_model
from causal_onnx.runtime.artifact.golden import relative_error
from causal_onnx.runtime.contract import CONTRACT_KEY, Contract

__all__ = ["AsCaptured", "blamed", "changes_as_it_grows", "naming_the_node"]


_MOST_OF_ONE_NODE = 5e-2
"""Of its scale; a whole file may be allowed more, as the roundings of its products add up."""


def blamed(
    error: ExportError, form: Form, captured: ir.Model, subject: Subject, path: Path
) -> ExportError:
    """What to raise for a form that failed its proof: `error`, if the capture fails it too.

    Args:
        error: What the proof said.
        form: What failed.
        captured: The graph before any rewrite, its weights as in the form.
        subject: What was captured.
        path: Where the file would have appeared.
    """
    as_captured = AsCaptured(
        model=captured,
        contract=subject.contract,
        source=subject.reference,
        specs=subject.specs,
        budget=subject.budget,
    )
    parity = error.report if isinstance(error, ParityError) else ParityReport(cases=(), tolerance=0)
    limit = form.contract.max_seq_len
    failed = [case for case in parity.cases if not case.passed]
    if limit is not None and failed and all(case.seq > limit for case in failed):
        return error  # the limit that was found is not the module's, which no form changes
    if not as_captured.agrees(path):
        return error
    name, target = subject.name, form.contract.form
    if form.contract.cache and parity.passed:
        growth = changes_as_it_grows(subject.reference.fresh(), subject.specs, subject.contract)
        if growth:
            return ParityError(
                f"no cache can be derived: {name} changes earlier outputs as a sequence grows "
                f"({growth}); no file was written. Positions counted from the end, or a division "
                f"by the length, must go\n{error}",
                parity,
            )
    place = as_captured.first_difference(form.model, form.contract, parity)
    other = next(name for name in ("portable", "ort") if name != target)
    return RewriteError(
        f"a defect of causal-onnx, please report it: {form.name} for target={target!r} disagrees "
        f"with {name}, and the graph as captured does not"
        f"{f'; first at {place}' if place else ''}. No file was written. "
        f"Until then try target={other!r}: other operators, under the same proof\n{error}",
        parity,
    )


@dataclass(frozen=True, kw_only=True)
class AsCaptured:
    """The graph before any rewrite, and what it must equal."""

    model: ir.Model
    contract: Contract
    """Of the module: without a cache."""
    source: Source
    specs: Sequence[InputSpec]
    budget: Budget | None = None
    """Which shapes may be run; None: one of its own."""

    def agrees(self, beside: Path) -> bool:
        """Whether it equals the module at every shape; files go to a folder beside `beside`."""
        contract = self.contract
        if contract.precision in CODED_BITS:  # its weights are rounded already, and not yet codes
            contract = replace(contract, precision="fp32")
        model, ran = self.model, contract
        if contract.precision == "bf16":
            model, ran = make_twin(model), contract_of_twin(contract)
        with tempfile.TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.parent) as folder:
            path = Path(folder) / beside.name
            write_model(model, path, {CONTRACT_KEY: ran.to_json()})
            try:
                session = Session(path, ran)
            except ExportError:  # onnxruntime does not load it
                return False
            source = self.source.fresh()
            found = compare(session, source, self.specs, contract, budget=self.budget)
        limit = contract.max_seq_len
        # The node that refuses longer calls is ours.
        within = [case for case in found.cases if limit is None or case.seq <= limit]
        return bool(within) and all(case.passed for case in within)

    def first_difference(
        self, written: ir.Model, contract: Contract, report: ParityReport
    ) -> str | None:
        """The first node of `written` that computes something else than it did as captured.

        Args:
            written: The rewritten graph; values that it took over keep their names.
            contract: Of that graph.
            report: Its comparison with the module.

        Returns:
            The node in words; None where no value under the same name differs at a shape that
            failed, or the graphs cannot be run with more outputs.
        """
        failed = next((case for case in report.cases if not case.passed and not case.refused), None)
        if failed is None or contract.precision == "bf16":
            return None
        sizes = CallSizes(batch=failed.batch or 1, seq=failed.seq)
        arrays = [to_numpy(x) for x in make_inputs(self.specs, sizes, seed=1)]
        theirs, ours = _values(self.model), _values(written)
        names = [name for name in ours if name in theirs]
        expected = _run(self.model, self.contract, arrays, names)
        got = _run(written, contract, arrays, names)
        if expected is None or got is None:
            return None
        tolerance = min(tolerance_for(self.contract, self.source), _MOST_OF_ONE_NODE)
        for name, a, b in zip(names, got, expected, strict=True):
            if a.shape == b.shape and not relative_error(a, b) <= tolerance:
                node = ours[name].producer()
                assert node is not None
                return f"{node.op_type} {node.name or name!r}"
        return None


def _values(model: ir.Model) -> dict[str, ir.Value]:
    """Name -> floating-point value that a node of the graph itself computes, in order."""
    floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
    return {
        value.name: value
        for node in model.graph
        for value in node.outputs
        if value.name and value.dtype in floats
    }


def _run(
    model: ir.Model, contract: Contract, inputs: Sequence[Array], names: Sequence[str]
) -> list[Array] | None:
    """The named values for `inputs` and an empty past; None where onnxruntime cannot give them."""
    copy = model.clone()
    found = _values(copy)
    for name in names:
        value = found[name]
        if not value.is_graph_output():
            value.shape = None  # what a rewrite left of it may be out of date
            copy.graph.outputs.append(value)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        write_model(copy, path, {CONTRACT_KEY: contract.to_json()})
        try:
            session = Session(path, contract)
        except ExportError:
            return None
    session.output_names = list(names)
    try:
        return session(inputs)
    except Exception:  # onnxruntime raises a dozen classes of its own; the node stays unnamed
        return None


def changes_as_it_grows(source: Source, specs: Sequence[InputSpec], contract: Contract) -> str:
    """How the module's outputs at the first positions change when more follow, or "".

    No cache can equal such a module, whose keys and values of the past are not what they were.
    """
    limit = contract.max_seq_len or 41
    axes = [spec.axis_of("seq") for spec in contract.outputs]
    tolerance = tolerance_for(contract, source)
    for longer in dict.fromkeys((min(7, limit), min(41, limit))):
        long = make_inputs(specs, CallSizes(batch=1, seq=longer), seed=longer)
        for shorter in {1, longer // 2, longer - 1} - {0}:
            short = [
                x if axis is None else x.narrow(axis, 0, shorter)
                for x, axis in zip(long, _seq_axes(specs), strict=True)
            ]
            whole, part = source.run(long), source.run(short)
            for a, b, axis in zip(whole, part, axes, strict=False):
                if axis is None:
                    continue
                same = to_numpy(a)[tuple(slice(0, size) for size in b.shape)]
                error = relative_error(same, to_numpy(b))
                if error > tolerance:
                    return (
                        f"of {longer} positions the first {shorter} differ by {error:.1e} from "
                        f"what the module gives for those {shorter} alone"
                    )
    return ""


def _seq_axes(specs: Sequence[InputSpec]) -> list[int | None]:
    return [next((a for a, name in spec.axes.items() if name == "seq"), None) for spec in specs]


def naming_the_node(error: CausalityError, plain: ir.Model, contract: Contract) -> CausalityError:
    """`error` with the node of the captured graph, its operator and line, where the proof finds it.

    `plain` is the graph as captured, in which nodes still have the names and lines of the source.
    """
    if not any(case.past_error for case in error.report.cases if not case.passed):
        return error  # nothing moved at all, which no node does
    found = attest(plain, max_seq_len=contract.max_seq_len)
    violation = found.offence if found.verdict == "not_causal" else None
    if violation is not None:
        # A trace ends in PyTorch's own layers, and begins in the wrapper that is captured.
        node = next((n for n in plain.graph if n.name == violation.node), None)
        trace = "" if node is None else node.metadata_props.get("pkg.torch.onnx.stack_trace", "")
        place = violation.module.removeprefix("module").removeprefix(".")
        violation = replace(violation, module=place, line=quoted_line(trace) or violation.line)
    if violation is None:
        text = f"the static proof of the captured graph names no node (it says {found.verdict})"
    else:
        text = f"the first node that mixes positions is {violation}: {violation.reason}"
    return CausalityError(f"{error}. In the graph, {text}", error.report, violation)
