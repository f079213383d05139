"""Measure the steps: agreement first, then rounds of turns, in several pairs of processes.

Where the system puts the weights of a process in memory makes a single token up to a quarter faster
or slower, for as long as the process lives; so one pair of processes proves little.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bench.agreement import check_agreement
from bench.client import Worker
from bench.decode.cases import ModelSizes, Step, clock_of
from bench.decode.files import make_files
from bench.decode.section import Section, StepRow
from bench.decode.subjects import OURS_NAME, REFERENCE, SUBJECTS, SubjectInfo
from bench.machine import describe_machine
from bench.progress import Progress
from bench.rounds import RoundPolicy, Turn, calls_per_turn, run_rounds
from bench.summary import paired_ratios, summarise

__all__ = ["Plan", "run"]

TOLERANCE = 1e-5
"""Of the scale of the logits, in float32."""

DISTRIBUTIONS = ("onnxruntime", "torch", "transformers", "onnx", "causal-onnx")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and where files lie."""

    sizes: ModelSizes
    steps: Sequence[Step]
    threads: Sequence[int]
    folder: Path
    policy: RoundPolicy = field(default_factory=RoundPolicy)
    processes: int = 5
    """Pairs of fresh processes that each measure everything."""
    keeps_files: bool = False
    """The files of an earlier run are there and are taken."""


def run(plan: Plan) -> Section:
    """Measure all of it.

    Raises:
        DisagreementError: The two graphs compute different things.
        WorkerError: A subject failed.
        RuntimeError: A file could not be made.
    """
    began = time.monotonic()
    machine = describe_machine(DISTRIBUTIONS)
    progress = Progress(1.0, len(plan.steps) * len(plan.threads) * plan.processes)
    if not plan.keeps_files:
        progress.note(f"making the files of the {plan.sizes.name} model")
        make_files(plan.folder, plan.sizes)
    rows: list[StepRow] = []
    for threads in plan.threads:
        seen: dict[Step, list[_Seen]] = {step: [] for step in plan.steps}
        for number in range(plan.processes):
            with ExitStack() as stack:
                workers = {
                    subject.name: stack.enter_context(_start(plan, subject, threads))
                    for subject in SUBJECTS
                }
                for step in plan.steps:
                    progress.begin(f"{step}, threads: {threads}, processes: {number + 1}")
                    seen[step].append(_measure(plan, workers, step, threads))
        rows += [_row(step, threads, found) for step, found in seen.items()]
    progress.close()
    return Section(
        date=datetime.now(UTC).isoformat(timespec="minutes"),
        seconds=round(time.monotonic() - began, 1),
        machine=machine,
        sizes=asdict(plan.sizes),
        rows=rows,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What one pair of processes found at one step; medians over its rounds."""

    reference_s: float
    ours_s: float
    ratio: float
    error: float


def _start(plan: Plan, subject: SubjectInfo, threads: int) -> Worker:
    return Worker(
        "bench.decode.subjects:cached",
        threads=threads,
        setup={"path": str(plan.folder / subject.file), "sizes": asdict(plan.sizes)},
        log=plan.folder / f"{subject.name}.log",
        name=subject.name,
    )


def _measure(plan: Plan, workers: dict[str, Worker], step: Step, threads: int) -> _Seen:
    calls, outputs = {}, {}
    for name, worker in workers.items():
        path = plan.folder / f"{name}.npy"
        warm = worker.ask("prepare", case=asdict(step))
        worker.ask("save", path=str(path.resolve()))
        calls[name] = calls_per_turn(warm["seconds"], plan.policy)
        outputs[name] = np.load(path)
        path.unlink()
    error = check_agreement(
        OURS_NAME, outputs[OURS_NAME], outputs[REFERENCE], tolerance=TOLERANCE, where=str(step)
    )

    def take_turn(name: str) -> Turn:
        answer = workers[name].ask("turn", calls=calls[name])
        return Turn.of(answer["wall_s"], answer["cpu_s"])

    clock = clock_of(threads)
    turns = run_rounds(
        list(workers), take_turn, reference=REFERENCE, clock=clock, policy=plan.policy
    )
    times = {name: [getattr(turn, clock) for turn in own] for name, own in turns.items()}
    return _Seen(
        reference_s=summarise(times[REFERENCE]).median,
        ours_s=summarise(times[OURS_NAME]).median,
        ratio=summarise(paired_ratios(times[OURS_NAME], times[REFERENCE])).median,
        error=error,
    )


def _row(step: Step, threads: int, found: Sequence[_Seen]) -> StepRow:
    ratios = [one.ratio for one in found]
    return StepRow(
        past_seq=step.past_seq,
        seq=step.seq,
        threads=threads,
        clock=clock_of(threads),
        processes=len(found),
        reference_s=summarise([one.reference_s for one in found]).median,
        ours_s=summarise([one.ours_s for one in found]).median,
        ratio=(min(ratios), summarise(ratios).median, max(ratios)),
        error=max(one.error for one in found),
    )
