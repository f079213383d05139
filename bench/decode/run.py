"""Measure the steps: agreement first, then rounds of turns."""

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
from bench.decode.subjects import OURS_NAME, REFERENCE, SUBJECTS
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
    progress = Progress(1.0, len(plan.steps) * len(plan.threads))
    if not plan.keeps_files:
        progress.note(f"making the files of the {plan.sizes.name} model")
        make_files(plan.folder, plan.sizes)
    rows: list[StepRow] = []
    for threads in plan.threads:
        with ExitStack() as stack:
            workers = {}
            for subject in SUBJECTS:
                setup = {"path": str(plan.folder / subject.file), "sizes": asdict(plan.sizes)}
                workers[subject.name] = stack.enter_context(
                    Worker(
                        "bench.decode.subjects:cached",
                        threads=threads,
                        setup=setup,
                        log=plan.folder / f"{subject.name}.log",
                        name=subject.name,
                    )
                )
            for step in plan.steps:
                progress.begin(f"{step}, {threads} threads")
                rows.append(_measure(plan, workers, step, threads))
    progress.close()
    return Section(
        date=datetime.now(UTC).isoformat(timespec="minutes"),
        seconds=round(time.monotonic() - began, 1),
        machine=machine,
        sizes=asdict(plan.sizes),
        rows=rows,
    )


def _measure(plan: Plan, workers: dict[str, Worker], step: Step, threads: int) -> StepRow:
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
    ratio = summarise(paired_ratios(times[OURS_NAME], times[REFERENCE]))
    return StepRow(
        past_seq=step.past_seq,
        seq=step.seq,
        threads=threads,
        clock=clock,
        rounds=ratio.count,
        reference_s=summarise(times[REFERENCE]).median,
        ours_s=summarise(times[OURS_NAME]).median,
        ratio=(ratio.q1, ratio.median, ratio.q3),
        error=error,
    )
