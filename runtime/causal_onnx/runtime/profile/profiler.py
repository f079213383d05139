"""Run a model under onnxruntime's profiler, and say what each node of the file cost."""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from causal_onnx.runtime.contract import Contract
from causal_onnx.runtime.errors import RunError
from causal_onnx.runtime.profile.clock import CallTimes, time_calls
from causal_onnx.runtime.profile.costs import NodeCost, Profile, weight_bytes
from causal_onnx.runtime.profile.events import Event, ProfiledCall, Tensor, read_runs
from causal_onnx.runtime.profile.graph import GraphNode, Scope, read_graph
from causal_onnx.runtime.profile.products import product_flops
from causal_onnx.runtime.profile.workload import Workload
from causal_onnx.runtime.request.example import check_sizes, free_sizes
from causal_onnx.runtime.request.whole_numbers import whole_number

if TYPE_CHECKING:
    from causal_onnx.runtime.session.runner import Runner

__all__ = ["Case", "profile", "profile_all"]

MOST_CALLS = 20
"""Under the profiler; medians over more change little, and every node of each is an entry."""

Case = tuple[int, int, int]
"""(batch, seq, past)."""


def profile(
    model: Runner, *, seq: int = 1, past: int = 0, batch: int = 1, calls: int | None = None
) -> Profile:
    """`Model.profile`."""
    if calls is not None:
        whole_number("calls", calls, wanted="a positive integer or None")
    check_sizes(model.contract, batch=batch, seq=seq, past=past)
    times = time_calls(Workload(model, batch=batch, seq=seq, past=past), calls=calls)
    return profile_all(model, [((batch, seq, past), times)])[0]


def profile_all(
    model: Runner,
    cases: Sequence[tuple[Case, CallTimes]],
    *,
    most_calls: int = MOST_CALLS,
    tell: Callable[[str, float], None] = lambda step, fraction: None,
) -> list[Profile]:
    """Profile several calls in one session; their times without the profiler are given.

    Args:
        model: What to profile.
        cases: What to call, with the times of calls without the profiler.
        most_calls: How often to call each at most.
        tell: Called with (step, fraction done).

    Raises:
        ValueError: The contract does not allow a call.
        RunError: onnxruntime failed, or wrote less than was run.
        ArtifactError: The file is gone, has changed, or its graph cannot be read.
    """
    graph = read_graph(model.artifact)
    try:
        runs = _runs(model, cases, most_calls, tell)
    except _LostCallsError:
        if len(cases) == 1 and most_calls == 1:
            raise
        # One call of one case in each session fits where all calls of all cases do not.
        alone = (profile_all(model, [case], most_calls=1, tell=tell) for case in cases)
        return [found for founds in alone for found in founds]
    return [
        Profile(
            model=model.artifact.name,
            device=str(model.device),
            threads=model.threads,
            batch=batch,
            seq=seq,
            past=past,
            calls=times.calls,
            wall_ms=times.wall_ms,
            cpu_ms=times.cpu_ms,
            profiled_ms=statistics.median(run.total_us for run in chosen) / 1e3,
            nodes=_costs(chosen, graph, past),
            cache_bytes=cache_bytes(model.contract, batch=batch, seq=seq, past=past),
        )
        for ((batch, seq, past), times), chosen in zip(cases, runs, strict=True)
    ]


class _LostCallsError(RunError):
    """The profile is full: onnxruntime keeps a million entries, and drops what comes then."""


def _runs(
    model: Runner,
    cases: Sequence[tuple[Case, CallTimes]],
    most_calls: int,
    tell: Callable[[str, float], None],
) -> list[list[ProfiledCall]]:
    """The calls of each case, without those that prepared them."""
    with tempfile.TemporaryDirectory(prefix="causal-onnx-") as folder:
        twin = model.profiled(str(Path(folder) / "profile"))
        counts = []
        for index, ((batch, seq, past), times) in enumerate(cases):
            tell("profile", index / len(cases))
            work = Workload(twin, batch=batch, seq=seq, past=past)
            calls = max(1, min(most_calls, times.calls))
            work.call()  # plans memory
            for _ in range(calls):
                work.take_back()
                work.call()
            counts.append((work.setup_calls + 1, calls))
            del work
        runs = read_runs(twin.end_profiling())
    expected = sum(before + calls for before, calls in counts)
    if len(runs) != expected:
        raise _LostCallsError(
            f"onnxruntime's profile holds {len(runs)} of {expected} calls: more nodes were run "
            "than it keeps entries for; profile a shorter sequence"
        )
    chosen, at = [], 0
    for before, calls in counts:
        chosen.append(runs[at + before : at + before + calls])
        at += before + calls
    return chosen


def cache_bytes(contract: Contract, *, batch: int, seq: int, past: int) -> int:
    """Bytes of keys and values behind a call, and of what else is kept."""
    bounds = {pair.past: pair.bounded for pair in contract.cache}
    total = 0
    for spec in contract.inputs:
        if spec.name in bounds:
            bounded = bounds[spec.name]
            held = past if bounded is None else min(past, bounded)
            sizes = {"batch": batch, "past_seq": held, "past_slots": held}
            sizes |= free_sizes(contract, seq=seq, past=past)
            total += math.prod(spec.shape(sizes)) * (2 if "16" in spec.dtype else 4)
    return total


Key = tuple[str, str, str]
"""Where, name and operator of a node."""


def _costs(runs: Sequence[ProfiledCall], graph: Scope, past: int) -> tuple[NodeCost, ...]:
    times: dict[Key, list[float]] = {}
    for index, run in enumerate(runs):
        for event in run.events:
            slots = times.setdefault(_key(event), [0.0] * len(runs))
            slots[index] += event.self_us
    medians = {key: statistics.median(slots) for key, slots in times.items()}
    total = sum(medians.values())
    # What is run is the same in every call; only the times differ.
    last: dict[Key, list[Event]] = {}
    for event in runs[-1].events:
        last.setdefault(_key(event), []).append(event)
    costs = []
    for key, events in last.items():
        node, event = _resolve(events[-1], graph), events[-1]
        costs.append(
            NodeCost(
                name=event.name,
                op_type=event.op_type,
                module=_module(event, graph),
                provider=event.provider,
                calls=len(events),
                time_us=medians[key],
                # Where all is faster than the profiler's clock, each node has the same part.
                share=medians[key] / total if total else 1 / len(last),
                shapes=_shapes(event),
                flops=sum(product_flops(one, node, past=past) for one in events),
                weight_bytes=sum(weight_bytes(one, node) for one in events),
            )
        )
    return tuple(sorted(costs, key=lambda cost: -cost.time_us))


def _key(event: Event) -> Key:
    where, parent = [], event.parent
    while parent is not None:
        where.append(parent.name)
        parent = parent.parent
    return "/".join(reversed(where)), event.name, event.op_type


def _resolve(event: Event, graph: Scope) -> GraphNode | None:
    """The node of the file; None for one that onnxruntime added."""
    for scope in _scopes(event, graph):
        found = scope.find(event.name, event.op_type)
        if found is not None:
            return found
    return None


def _scopes(event: Event, graph: Scope) -> list[Scope]:
    """The graphs that may hold the node, the innermost first; the last is the whole."""
    if event.parent is None:
        return [graph]
    holder = _resolve(event.parent, graph)
    return [*(holder.branches if holder else ()), *_scopes(event.parent, graph)]


def _module(event: Event | None, graph: Scope) -> str:
    """The submodule of a node, or of the one that holds it where it has none."""
    while event is not None:
        node = _resolve(event, graph)
        if node is not None and node.module:
            return node.module
        event = event.parent
    return ""


def _shapes(event: Event) -> str:
    return " -> ".join(_listed(side) for side in (event.inputs, event.outputs))


def _listed(tensors: Sequence[Tensor]) -> str:
    """Tensors in order, equal ones that follow each other together."""
    counted = ((str(tensor), len(list(same))) for tensor, same in itertools.groupby(tensors))
    return ", ".join(text if count == 1 else f"{count} x {text}" for text, count in counted)
