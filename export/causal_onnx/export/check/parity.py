"""Parity: the artifact against its PyTorch source, at shapes that the capture never saw."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from causal_onnx.export.analysis.session import plain_session
from causal_onnx.export.capture.isolation import trim_memory, without_gaps
from causal_onnx.export.check.expected import Expected
from causal_onnx.export.check.wide import run_in_float64
from causal_onnx.export.errors import ExportError
from causal_onnx.export.lower import switching_lengths
from causal_onnx.export.outcome import Refusal, SessionError, ask, ask_onnxruntime
from causal_onnx.export.passes.length_limit import limit_name
from causal_onnx.export.precision.choose import CODED_BITS, INTEGER_PRODUCTS, FullPrecision
from causal_onnx.export.report import ParityCase, ParityReport
from causal_onnx.export.source.arrays import Array, to_numpy
from causal_onnx.export.source.budget import Budget
from causal_onnx.export.source.inputs import CallSizes, InputSpec, Padding, free_axes, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.export.source.outputs import dtype_name
from causal_onnx.runtime import Model
from causal_onnx.runtime.artifact.golden import COMPARED_AT_ONCE, relative_error
from causal_onnx.runtime.contract import LAST_ONLY, Contract
from causal_onnx.runtime.session.integer_products import exact_product_settings

__all__ = [
    "Session",
    "beyond_the_limit",
    "compare",
    "compare_unbatched",
    "grid",
    "tolerance_for",
]

TOLERANCES = {"float64": 1e-7, "float32": 1e-5, "float16": 5e-3, "bfloat16": 4e-2}
"""Largest error relative to the output's scale: some tens of the dtype's own rounding, except for
float64, where Python scalars are rounded to float32 by the exporter."""

CODED_TOLERANCE = 1e-1
"""Where onnxruntime multiplies by codes of few bits, it rounds activations to 8 bits too, by blocks
or by rows: a step is half a percent of a product's scale or twice that, and products follow each
other (28 layers of 3072 random weights in int4: 7e-2). Without that the graph is compared as
tightly as one in fp32 (pipeline.py)."""

ROUNDINGS, CODED_ROUNDINGS = 2, 10
"""How many times as far from float64 as PyTorch a graph may be. onnxruntime's products with coded
weights add up in fewer lanes than others: of 3 billion weights they are 7 times as far."""

LARGE_OUTPUTS = 1 << 24
"""Bytes, beside which what the call itself needed is not to stay."""

BATCHES = (1, 2, 5)
LARGEST_DISTANCE = 30
"""How many tolerances the artifact may be from PyTorch where PyTorch itself is as far from float64:
more is no rounding any more."""


class Session:
    """The artifact in a bare onnxruntime session, without the contract's checks."""

    roundings = ROUNDINGS

    def __init__(
        self,
        path: Path,
        contract: Contract,
        *,
        exact: bool = False,
        threads: int | None = None,
        weights: Mapping[str, Array] | None = None,
    ):
        """Open `path`.

        Args:
            path: The file.
            contract: Of the file.
            exact: Keep onnxruntime from rounding activations before coded weights.
            threads: Of onnxruntime. None: as many as it takes by itself.
            weights: Those of its weights that lie in memory as they are in the file.
        """
        self._weights = weights  # which the session reads there
        if exact:
            self.roundings = CODED_ROUNDINGS
        settings = {"session.qdq_matmulnbits_accuracy_level": "0"} if exact else {}
        if contract.precision == INTEGER_PRODUCTS:
            settings |= exact_product_settings()
        try:
            self._session = ask_onnxruntime(
                plain_session,
                str(path),
                threads=threads or 0,
                settings=settings,
                weights=weights,
            )
        except SessionError as error:
            raise ExportError(f"onnxruntime cannot load the graph: {error}") from error
        past, present = contract.past_names, contract.present_names
        added = contract.added_names
        self._inputs = [spec for spec in contract.inputs if spec.name not in added]
        self._mask = next((spec for spec in contract.inputs if spec.name == contract.mask), None)
        self._past = [spec for spec in contract.inputs if spec.name in past]
        self.output_names = [spec.name for spec in contract.outputs if spec.name not in present]
        self._present = [pair.present for pair in contract.cache]

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs; a graph with a cache starts from an empty one.

        What makes the new cache runs too, but the cache does not lie in memory beside them.
        """
        return self._run(self.output_names, self._feed(inputs, self.empty_past(inputs)))

    def step(
        self,
        inputs: Sequence[Array],
        past: Sequence[Array],
        mask: Array | None = None,
        *,
        last_only: bool = False,
    ) -> tuple[list[Array], list[Array]]:
        """The outputs, and the cache after these inputs.

        Args:
            inputs: Of the new positions.
            past: The cache so far.
            mask: Which of all positions are tokens, for a graph that asks. None: all are, and
                none came before.
            last_only: Ask for the last new token of each row only.

        Raises:
            SessionError: onnxruntime refuses the call.
        """
        feed = self._feed(inputs, past, mask)
        if last_only:
            feed[LAST_ONLY] = np.array(True)
        outputs = self._run([*self.output_names, *self._present], feed)
        count = len(self.output_names)
        return outputs[:count], outputs[count:]

    def _run(self, names: Sequence[str], feed: Mapping[str, Array]) -> list[Array]:
        return list(ask_onnxruntime(self._session.run, list(names), dict(feed)))

    def _feed(
        self, inputs: Sequence[Array], past: Sequence[Array], mask: Array | None = None
    ) -> dict[str, Array]:
        feed = {spec.name: x for spec, x in zip(self._inputs, inputs, strict=True)}
        feed |= {spec.name: x for spec, x in zip(self._past, past, strict=True)}
        if self._mask is not None:
            seq = self._sizes(inputs)["seq"]
            feed[self._mask.name] = self.ones(inputs, seq) if mask is None else mask
        return feed

    def ones(self, inputs: Sequence[Array], total_seq: int) -> Array:
        """A mask of `total_seq` tokens in each row of `inputs`."""
        return np.ones((self._sizes(inputs).get("batch", 1), total_seq), np.int64)

    def empty_past(self, inputs: Sequence[Array]) -> list[Array]:
        """A cache of no positions, for the batch of `inputs`."""
        sizes = {**self._sizes(inputs), "past_seq": 0, "past_slots": 0}
        return [np.zeros(spec.shape(sizes), spec.dtype) for spec in self._past]

    def _sizes(self, inputs: Sequence[Array]) -> dict[str, int]:
        """The sizes of the symbolic axes of `inputs`."""
        return {
            axis: size
            for spec, x in zip(self._inputs, inputs, strict=True)
            for axis, size in zip(spec.axes, x.shape, strict=True)
            if isinstance(axis, str)
        }


def tolerance_for(contract: Contract, source: Source) -> float:
    """The tolerance of the least precise floating-point input, output or weight."""
    if contract.precision in CODED_BITS:
        return CODED_TOLERANCE
    dtypes = [spec.dtype for spec in (*contract.inputs, *contract.outputs)]
    dtypes += {dtype_name(p.dtype) for p in source.parameters()}
    dtypes.append({"fp16": "float16", "bf16": "bfloat16"}.get(contract.precision, "float32"))
    return max((TOLERANCES[dtype] for dtype in dtypes if dtype in TOLERANCES), default=1e-5)


def grid(
    specs: Sequence[InputSpec], contract: Contract, allows: Callable[[CallSizes], bool]
) -> tuple[list[tuple[CallSizes, Padding]], list[str]]:
    """The shapes to compare at, and those left out with the reason.

    Lengths 1, 2, 3, a prime, the example's and its neighbours, the maximum; batches 1, 2, 5; pasts
    0, 1, 5 and both kinds of padding where the module has such inputs.

    Args:
        specs: The inputs.
        contract: Which lengths are promised.
        allows: Whether a shape may be run; half the length is taken where it may not.
    """
    example = next(
        spec.example.shape[axis]
        for spec in specs
        for axis, label in spec.axes.items()
        if label == "seq"
    )
    wanted = {1, 2, 3, 13, example - 1, example, example + 1}
    switches = switching_lengths(contract)
    top = contract.max_seq_len or max((257, *switches))
    lengths = sorted(n for n in {*wanted, *switches, top} if contract.min_seq_len <= n <= top)
    has_batch = any("batch" in spec.axes.values() for spec in specs)
    batches = BATCHES if has_batch else (1,)
    pasts = (0, 1, 5) if any("past_seq" in s.axes.values() for s in specs) else (0,)
    shapes: list[tuple[CallSizes, Padding]] = []
    skipped = []
    for seq in lengths:
        for batch in batches:
            smaller = seq
            while smaller > contract.min_seq_len and not allows(
                CallSizes(batch=batch, seq=smaller)
            ):
                smaller //= 2
            if smaller < seq:
                skipped.append(
                    f"seq {seq}, batch {batch}: more than this check computes; run at {smaller} "
                    "instead"
                )
            shapes += [
                (CallSizes(batch=batch, seq=smaller, past=past), "none")
                for past in pasts
                if contract.max_seq_len is None or past + smaller <= contract.max_seq_len
            ]
    if has_batch and any(spec.kind == "mask" for spec in specs):
        some = [n for n in lengths if n > 1][:3]
        for padding in ("left", "right"):
            shapes += [(CallSizes(batch=3, seq=n), padding) for n in some]
    return list(dict.fromkeys(shapes)), skipped


def compare(
    session: Session,
    source: Source,
    specs: Sequence[InputSpec],
    contract: Contract,
    progress: Callable[[int, int], None] | None = None,
    *,
    also: Sequence[CallSizes] = (),
    budget: Budget | None = None,
    expected: Expected | None = None,
) -> ParityReport:
    """Run both over the grid, and `also`. Never raises for a mismatch: the report holds it.

    Args:
        session: The graph.
        source: What it must equal.
        specs: The source's inputs.
        contract: Of the graph.
        progress: Called with (shapes done, all of them).
        also: More sizes.
        budget: Which shapes may be run; None: one of its own.
        expected: What the source gives, where another comparison asked it already.
    """
    budget = budget or Budget(source, specs)
    expected = expected or Expected(source)
    shapes, skipped = grid(specs, contract, budget.allows)
    shapes = list(dict.fromkeys([*shapes, *((sizes, "none") for sizes in also)]))
    tolerance = tolerance_for(contract, source)
    cases = []
    for index, (sizes, padding) in enumerate(shapes):
        cases.append(
            _case(session, expected, specs, sizes=sizes, padding=padding, tolerance=tolerance)
        )
        if progress is not None:
            progress(index + 1, len(shapes))
    if contract.max_seq_len is not None:
        cases.append(beyond_the_limit(session, specs, contract))
    return ParityReport(
        cases=tuple(cases),
        tolerance=tolerance,
        skipped=tuple(skipped),
        roundings=session.roundings,
    )


def _case(
    session: Session,
    reference: Expected,
    specs: Sequence[InputSpec],
    *,
    sizes: CallSizes,
    padding: Padding,
    tolerance: float,
) -> ParityCase:
    inputs = make_inputs(specs, sizes, seed=sizes.seq * 31 + sizes.batch, padding=padding)
    batch = sizes.batch if any("batch" in s.axes.values() for s in specs) else None
    note = f"{padding} padding" if padding != "none" else ""
    if sizes.past:
        note = f"past {sizes.past}"
    for axis in free_axes(specs):
        note = "; ".join(part for part in (note, f"{axis} {sizes.of(axis)}") if part)

    def case(error: float, passed: bool, text: str = "") -> ParityCase:
        joined = "; ".join(part for part in (note, text) if part)
        return ParityCase(batch=batch, seq=sizes.seq, error=error, passed=passed, note=joined)

    source = reference.source
    expected = reference.at(sizes, padding, inputs)
    if isinstance(expected, Refusal):
        return case(math.inf, False, f"the source refuses this shape: {expected}")
    if not any(map(_has_finite, expected)):
        text = "PyTorch returns no finite number here, so nothing can be compared; "
        return case(math.inf, False, text + "pass an example whose values fit the module")
    is_large = sum(value.nbytes for value in expected) >= LARGE_OUTPUTS
    try:
        with _sparing() if is_large else contextlib.nullcontext():
            got = session([to_numpy(value) for value in inputs])
    except SessionError as error:
        return case(math.inf, False, f"onnxruntime: {error}")
    for name, value, wanted in zip(session.output_names, got, expected, strict=True):
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            return case(
                math.inf,
                False,
                f"{name} is {value.dtype} {value.shape}, PyTorch returns {wanted.dtype} "
                f"{wanted.shape}",
            )
    got, defined = _leave_out_undefined(got, expected) if padding != "none" else (got, 0)
    text = (
        f"PyTorch returns NaN at {defined} padded places, and the file returns numbers"
        if defined
        else ""
    )
    worst = max(relative_error(g, e) for g, e in zip(got, expected, strict=True))
    if worst <= tolerance:
        return case(worst, True, text)
    exact = _in_float64(source, inputs) if worst <= LARGEST_DISTANCE * tolerance else None
    if exact is not None:
        rounded = _as_rounded_by_pytorch(source, inputs) or expected
        ours = max(relative_error(g, e) for g, e in zip(got, exact, strict=True))
        theirs = max(relative_error(g, e) for g, e in zip(rounded, exact, strict=True))
        most = max(tolerance, session.roundings * theirs)
        if ours <= min(most, LARGEST_DISTANCE * tolerance):
            return replace(case(ours, True, text), from_float64=theirs)
    return case(worst, False, _where(got, expected, session.output_names))


@contextlib.contextmanager
def _sparing() -> Iterator[None]:
    """For a long call, after one of PyTorch: neither leaves memory behind that it needed."""
    trim_memory()
    with without_gaps():
        yield
    trim_memory()


def compare_unbatched(
    model: Model, source: Source, specs: Sequence[InputSpec], report: ParityReport
) -> ParityReport:
    """`report` with calls without a batch axis, through the runtime, which adds and removes it."""
    present = model.contract.present_names
    results = [spec.name for spec in model.contract.outputs if spec.name not in present]
    cases = []
    for seq in sorted({case.seq for case in report.cases if not case.refused}):
        batched = make_inputs(specs, CallSizes(batch=1, seq=seq), seed=seq)
        inputs = [
            x.squeeze(next(a for a, label in spec.axes.items() if label == "batch"))
            for spec, x in zip(specs, batched, strict=True)
        ]
        expected = [to_numpy(value) for value in source.run(inputs)]
        got = model.run(*[to_numpy(x) for x in inputs])
        error = max(
            relative_error(got[name], value) for name, value in zip(results, expected, strict=True)
        )
        passed = error <= report.widest_tolerance
        cases.append(ParityCase(batch=None, seq=seq, error=error, passed=passed))
    return replace(report, cases=(*report.cases, *cases))


def _has_finite(value: Array) -> bool:
    """Whether a number is finite: of one in a file, no more is read than it takes to know."""
    flat = value.reshape(-1)
    starts = range(0, flat.size, COMPARED_AT_ONCE)
    return any(np.isfinite(flat[start : start + COMPARED_AT_ONCE]).any() for start in starts)


def _leave_out_undefined(
    got: Sequence[Array], expected: Sequence[Array]
) -> tuple[list[Array], int]:
    """`got` without the numbers it has where PyTorch has NaN, and how many those were.

    A row of padding that may attend to nothing is 0 / 0 in a softmax over -inf, and 0 by ONNX's
    definition of `Attention`; what PyTorch leaves undefined there is no error of the file.
    """
    left, count = [], 0
    for ours, theirs in zip(got, expected, strict=True):
        if theirs.dtype.kind != "f":
            left.append(ours)
            continue
        undefined = np.isnan(theirs) & ~np.isnan(ours)
        count += int(undefined.sum())
        left.append(np.where(undefined, np.nan, ours).astype(ours.dtype))
    return left, count


def _in_float64(source: Source, inputs: Sequence[torch.Tensor]) -> list[Array] | None:
    """The source in float64, or None where the module cannot be converted."""
    outcome = run_in_float64(source, inputs)
    return None if outcome is None else [to_numpy(value) for value in outcome]


def _as_rounded_by_pytorch(source: Source, inputs: Sequence[torch.Tensor]) -> list[Array] | None:
    """What PyTorch gives in the precision of the file, where the source is in a higher one.

    None: it is not, or PyTorch cannot compute the module so on the CPU.
    """
    if not isinstance(source, FullPrecision):
        return None
    outcome = ask(source.narrowed().run, inputs)
    return None if isinstance(outcome, Refusal) else [to_numpy(value) for value in outcome]


def _where(got: Sequence[Array], expected: Sequence[Array], names: Sequence[str]) -> str:
    for name, a, b in zip(names, got, expected, strict=True):
        if not np.array_equal(np.isnan(a), np.isnan(b)):
            return f"{name}: NaN in different places"
        gap = np.nan_to_num(np.abs(a.astype(np.float64) - b.astype(np.float64)))
        if gap.size and gap.max() > 0:
            place = tuple(int(n) for n in np.unravel_index(gap.argmax(), gap.shape))
            return f"{name}{list(place)} is {a[place]!s}, PyTorch returns {b[place]!s}"
    return "differs"


def beyond_the_limit(
    session: Session, specs: Sequence[InputSpec], contract: Contract
) -> ParityCase:
    """One position more than the limit: the graph's own node must refuse it, by name.

    A graph of one length has no such node: its input has that size, and onnxruntime says so.
    """
    limit = contract.max_seq_len
    assert limit is not None
    refusals = [limit_name(limit)]
    if contract.min_seq_len == limit:
        refusals += [f"Got invalid dimensions for input: {s.name}" for s in specs]
    inputs = make_inputs(specs, CallSizes(batch=1, seq=limit + 1))
    batch = 1 if any("batch" in s.axes.values() for s in specs) else None
    try:
        session([to_numpy(value) for value in inputs])
    except SessionError as error:
        if any(refusal in str(error.__cause__) for refusal in refusals):
            return ParityCase(batch=batch, seq=limit + 1, error=0.0, passed=True, refused=True)
        note = f"not refused by the limit of {limit}, but failed elsewhere: {error}"
    else:
        note = f"accepted, though max_seq_len is {limit}"
    return ParityCase(batch=batch, seq=limit + 1, error=math.inf, passed=False, note=note)
