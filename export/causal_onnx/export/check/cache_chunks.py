"""Proof of a derived cache: any way of cutting a sequence into chunks gives the same numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from causal_onnx.export.check.cache_rows import other_inputs, ragged_cases
from causal_onnx.export.check.later_tokens import LaterTokens, say_left_out
from causal_onnx.export.check.parity import Session
from causal_onnx.export.outcome import SessionError
from causal_onnx.export.report import CacheCase, CacheReport
from causal_onnx.export.source.arrays import Array, to_numpy
from causal_onnx.export.source.budget import Budget
from causal_onnx.export.source.inputs import CallSizes, InputSpec, make_inputs
from causal_onnx.export.source.module import Source
from causal_onnx.runtime.bundle.replay import joined_rows
from causal_onnx.runtime.contract import Contract, TensorSpec

__all__ = ["prove_cache"]

LENGTHS = (1, 2, 7, 23, 41)

FEW_STEPS = 8
"""Beyond the usual lengths only so many positions are fed one by one."""


def prove_cache(
    session: Session,
    source: Source,
    specs: Sequence[InputSpec],
    contract: Contract,
    *,
    tolerance: float,
    progress: Callable[[int, int], None] | None = None,
    budget: Budget | None = None,
) -> CacheReport:
    """Compare ways of feeding a sequence through the cache with one full pass of PyTorch.

    Prefill and single steps, random chunks, and a replay after rewinding, at several lengths and
    batches, beyond each window that bounds a cache; then batches whose rows differ in length, each
    row against PyTorch's full pass of that row alone.

    Args:
        session: The graph.
        source: What it must equal.
        specs: The source's inputs.
        contract: With a cache.
        tolerance: Largest error allowed, relative to the output's scale.
        progress: Called with (lengths done, all of them).
        budget: Which lengths may be run, and whether the longest of the file is one; None: one of
            its own.
    """
    tell = progress or (lambda done, all_of_them: None)
    generator = random.Random(0)
    cases = []
    results = [spec for spec in contract.outputs if spec.name not in contract.present_names]
    comparison = LaterTokens(source, specs, contract, tolerance)
    has_batch = any("batch" in spec.axes.values() for spec in specs)
    plan = _plan(budget or Budget(source, specs), contract, rows=(1, 3) if has_batch else (1,))
    lengths = list(plan.batches)
    for index, seq in enumerate(lengths):
        for batch in plan.batches[seq]:
            inputs = make_inputs(specs, CallSizes(batch=batch, seq=seq), seed=seq)
            expected = [to_numpy(x) for x in source.run(inputs)]
            arrays = [to_numpy(x) for x in inputs]
            later = other_inputs(specs, contract, arrays, seed=seq + 1)
            for name, chunks in _chunkings(seq, generator):
                try:
                    got = _fed(session, specs, contract, arrays, chunks=chunks, later=later)
                except (SessionError, _SlotsError) as error:
                    text = " ".join(str(error).split())[:120]
                    cases.append(_failed(batch, seq, f"{name} ({text})"))
                    continue
                worst, left = comparison.error(got, expected, results, inputs)
                passed = worst <= tolerance
                text = f"{name}{say_left_out(left)}"
                case = CacheCase(batch=batch, seq=seq, feeding=text, error=worst, passed=passed)
                cases.append(case)
        tell(index + 1, len(lengths) + 1)
    if contract.mask is not None:
        cases += ragged_cases(session, specs, contract, plan.ragged, comparison)
    if contract.last_only is not None:
        seq = max(n for n in plan.ragged if n <= max(LENGTHS))
        cases.append(_last_only(session, specs, contract, seq, comparison))
    if comparison.is_too_much:
        cases.append(_failed(1, max(lengths), "all of it" + say_left_out(comparison.left_out)))
    tell(1, 1)
    once = [spec.name for spec in contract.inputs if spec.name in contract.once_names]
    values = sum(bool(pair.computed_from) for pair in contract.cache)
    return CacheReport(
        cases=tuple(cases),
        tolerance=tolerance,
        skipped=plan.skipped,
        computed_once=f"{', '.join(once)}: computed once, {values} values" if once else "",
    )


def _last_only(
    session: Session,
    specs: Sequence[InputSpec],
    contract: Contract,
    seq: int,
    comparison: LaterTokens,
) -> CacheCase:
    """Rows of several lengths, the longest of `seq`, each asked for its last token only."""
    batch = 3
    name = "last position only"
    inputs = make_inputs(specs, CallSizes(batch=batch, seq=seq), seed=seq)
    arrays = [to_numpy(x) for x in inputs]
    lengths = np.array([seq, (seq + 1) // 2, 1])
    mask = (np.arange(seq)[None] < lengths[:, None]).astype(np.int64)
    results = [s.name for s in contract.outputs if s.name not in contract.present_names]
    place = results.index(contract.last_only or "")
    try:
        outputs, _ = session.step(arrays, session.empty_past(arrays), mask, last_only=True)
    except SessionError as error:
        return _failed(batch, seq, f"{name} ({' '.join(str(error).split())[:120]})")
    whole = to_numpy(comparison.source.run(inputs)[place])
    got, last = whole.copy(), (np.arange(batch), lengths - 1)
    if outputs[place].shape != got[last][:, None].shape:
        return _failed(batch, seq, name)
    got[last] = outputs[place][:, 0]
    worst, left = comparison.error([got], [whole], [contract.outputs[place]], inputs)
    passed = worst <= comparison.tolerance
    name += say_left_out(left)
    return CacheCase(batch=batch, seq=seq, feeding=name, error=worst, passed=passed)


def _failed(batch: int, seq: int, feeding: str) -> CacheCase:
    return CacheCase(batch=batch, seq=seq, feeding=feeding, error=math.inf, passed=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What is fed."""

    batches: dict[int, tuple[int, ...]]
    """Length, from the shortest on -> the numbers of rows that are fed at it."""
    ragged: list[int]
    """Lengths of rows that differ in length."""
    skipped: tuple[str, ...]


def _plan(budget: Budget, contract: Contract, rows: tuple[int, ...]) -> _Plan:
    """The usual lengths, and one well beyond each bound of the cache that is not too long to run;
    at full effort the longest of the file, too."""
    limit = contract.max_seq_len
    bounds = {pair.bounded for pair in contract.cache if pair.bounded is not None}
    wanted = [[2 * n + 5, n + FEW_STEPS + 5] for n in sorted(bounds)]
    if budget.is_full and limit is not None:
        wanted.append([limit])
    short, long, skipped = set(LENGTHS), set[int](), list[str]()
    for lengths in wanted:
        alone = [CallSizes(batch=1, seq=n if limit is None else min(n, limit)) for n in lengths]
        fits = [n for n in alone if n.seq <= max(LENGTHS) or budget.allows(n)]
        if not fits:
            skipped.append(budget.refusal(alone[-1]))
        elif fits[0].seq <= max(LENGTHS):
            short.add(fits[0].seq)
        else:
            long.add(fits[0].seq)
    batches: dict[int, tuple[int, ...]] = {}
    for seq in sorted({n if limit is None else min(n, limit) for n in short}):
        shapes = [CallSizes(batch=batch, seq=seq) for batch in rows]
        batches[seq] = tuple(sizes.batch for sizes in shapes if budget.allows_feeding(sizes))
        skipped += [budget.refusal(sizes) for sizes in shapes if not budget.allows_feeding(sizes)]
    return _Plan(
        batches={seq: some for seq, some in batches.items() if some}
        | dict.fromkeys(sorted(long), (1,)),
        ragged=[seq for seq, some in batches.items() if some == rows] + sorted(long),
        skipped=tuple(skipped),
    )


def _chunkings(seq: int, generator: random.Random) -> list[tuple[str, list[tuple[int, int]]]]:
    """Named lists of (start, stop); a start before the last stop rewinds the cache."""
    found = [("full", [(0, seq)])]
    if seq <= max(LENGTHS):
        found.append(("steps", [(i, i + 1) for i in range(seq)]))
    if seq > 1:
        half = max(seq // 2, seq - FEW_STEPS) if seq > max(LENGTHS) else seq // 2
        steps = [(i, i + 1) for i in range(half, seq)]
        found.append(("prefill + steps", [(0, half), *steps] if half else steps))
        cuts = sorted(generator.sample(range(1, seq), min(3, seq - 1)))
        bounds = [0, *cuts, seq]
        found.append(("random chunks", list(pairwise(bounds))))
        found.append(("rewind and replay", [(0, half), (half, seq), (half, seq)]))
    return found


def _fed(
    session: Session,
    specs: Sequence[InputSpec],
    contract: Contract,
    inputs: Sequence[Array],
    *,
    chunks: Sequence[tuple[int, int]],
    later: Sequence[Array],
) -> list[Array]:
    """The outputs of the last pass over each position, joined along the sequence.

    What is computed once is so from the first call: the others are given `later` in its place.

    To rewind, a cache that holds all positions is cut; of one that keeps the last few, the state
    at that place was kept.

    Raises:
        SessionError: onnxruntime refuses a call.
        _SlotsError: The cache does not hold as many positions as the contract says.
    """
    past = session.empty_past(inputs)
    again = {start for (_, stop), (start, _) in pairwise(chunks) if start < stop}
    kept = {0: past}
    axes = [next((a for a, n in spec.axes.items() if n == "seq"), None) for spec in specs]
    results = [spec for spec in contract.outputs if spec.name not in contract.present_names]
    pieces: list[list[Array]] = [[] for _ in results]
    done = 0
    for start, stop in chunks:
        if start < done:
            past = [
                p[:, :, :start] if pair.bounded is None else old
                for p, old, pair in zip(past, kept[start], contract.cache, strict=True)
            ]
            whole = [[joined_rows(p, spec)] for p, spec in zip(pieces, results, strict=True)]
            pieces = [[_part(p[0], s, 0, start)] for p, s in zip(whole, results, strict=True)]
        feed = [
            x if axis is None else np.ascontiguousarray(x.take(range(start, stop), axis))
            for x, axis in zip(later if start else inputs, axes, strict=True)
        ]
        outputs, past = session.step(
            feed, [np.ascontiguousarray(p) for p in past], session.ones(feed, stop)
        )
        _check_slots(contract, past, stop)
        for piece, output in zip(pieces, outputs, strict=True):
            piece.append(output)
        done = stop
        if done in again:
            kept[done] = past
    return [joined_rows(piece, spec) for piece, spec in zip(pieces, results, strict=True)]


class _SlotsError(Exception):
    """A cache does not hold as many positions as the contract says."""


def _check_slots(contract: Contract, cache: Sequence[Array], total: int) -> None:
    for pair, array in zip(contract.cache, cache, strict=True):
        expected = total if pair.bounded is None else min(total, pair.bounded)
        if array.shape[2] != expected:
            raise _SlotsError(
                f"after {total} positions {pair.present} holds {array.shape[2]}, not {expected}"
            )


def _part(array: Array, spec: TensorSpec, start: int, stop: int) -> Array:
    axis = spec.axis_of("seq")
    return array if axis is None else array.take(range(start, stop), axis)
