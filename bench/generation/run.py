"""Measure the section: works in sets of fresh processes, batches, starts, and Python's part."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.agreement import check_agreement
from bench.attention.cases import ModuleSizes
from bench.client import Worker
from bench.decode.cases import ModelSizes, clock_of
from bench.generation.cases import BATCH, TINY, WORKS, Batch, Work
from bench.generation.compare import Outputs, check_tokens, interleave
from bench.generation.files import Files, make_files
from bench.generation.graphs import describe_graph
from bench.generation.ours import ours_name
from bench.generation.overhead import measure_overhead
from bench.generation.section import Figure, Section, SubjectRow, Times, figures
from bench.generation.starts import measure_starts
from bench.generation.subjects import Subject, agreeing, subjects_for
from bench.machine import describe_machine
from bench.peers import PEERS, REQUIREMENTS
from bench.progress import Progress
from bench.rounds import Clock, RoundPolicy

__all__ = ["APART", "TOGETHER", "Plan", "run"]

DISTRIBUTIONS = ("onnxruntime", "torch", "transformers", "onnx", "numpy", "causal-onnx")

TOLERANCES = {"fp32": 5e-5}
"""Of the scale of the logits; 30 layers in float32, summed in another order."""
LOW_TOLERANCE = 0.1
"""At lower precisions: int4 rounds weights by either tool's rule, and what is multiplied too."""

TOGETHER, APART = "together", "apart"
BATCH_REFERENCE = APART


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and where files lie."""

    sizes: ModelSizes
    folder: Path
    tiny: ModelSizes = TINY
    module: ModuleSizes = field(default_factory=ModuleSizes)
    works: Sequence[Work] = WORKS
    batch: Batch = BATCH
    threads: Sequence[int] = (1, 2)
    precisions: Sequence[str] = ("fp32", "int4")
    subjects: Sequence[Subject] = field(default_factory=lambda: subjects_for(("fp32", "int4")))
    sets: int = 3
    """Sets of fresh processes that each measure all works."""
    policy: RoundPolicy = field(default_factory=RoundPolicy)
    start_rounds: int = 7
    overhead_rounds: int = 15
    device: str = "cpu"
    """Its name for readers; anything but "cpu" is a GPU, which has the works only."""
    provider: str = "cpu"
    """The builder's name for it."""
    requirements: Path = REQUIREMENTS
    packages: Path = PEERS

    def clock_of(self, threads: int) -> Clock:
        """Wall time on a GPU, which the processor waits for."""
        return clock_of(threads) if self.device == "cpu" else "wall"


def run(plan: Plan) -> Section:
    """Measure all of it.

    Raises:
        DisagreementError: The subjects compute different things.
        WorkerError: A subject failed.
        RuntimeError: A file could not be made.
    """
    began = time.monotonic()
    machine = describe_machine(DISTRIBUTIONS)
    steps = len(plan.threads) * (len(plan.works) * plan.sets + len(plan.precisions) + 1) + 1
    progress = Progress(1.0, steps)
    files = make_files(
        plan.folder,
        plan.sizes,
        plan.tiny,
        plan.module,
        precisions=plan.precisions,
        note=progress.note,
        provider=plan.provider,
        requirements=plan.requirements,
        packages=plan.packages,
    )
    runner = Runner(plan, files, progress)
    found: list[Figure] = []
    for threads in plan.threads:
        found += runner.works(threads)
        if plan.device != "cpu":
            continue
        found += runner.batches(threads)
        progress.begin(f"starts, threads: {threads}")
        found += measure_starts(
            files.artifact, files.weights, plan.folder, threads=threads, rounds=plan.start_rounds
        )
    if plan.device == "cpu":
        progress.begin("Python's part of a step")
        found += measure_overhead(
            files.tiny, plan.tiny, plan.folder, rounds=plan.overhead_rounds, policy=plan.policy
        )
    progress.close()
    return Section(
        date=datetime.now(UTC).isoformat(timespec="minutes"),
        seconds=round(time.monotonic() - began, 1),
        machine=machine,
        device=plan.device,
        sizes=asdict(plan.sizes),
        tiny=asdict(plan.tiny),
        module=asdict(plan.module),
        batch=asdict(plan.batch),
        subjects=[SubjectRow(name=s.name, title=s.title, about=s.about) for s in plan.subjects],
        graphs=_graphs(plan, files),
        errors=runner.errors,
        figures=found,
    )


class Runner:
    """The state of one run."""

    def __init__(self, plan: Plan, files: Files, progress: Progress) -> None:
        self.plan, self.files, self.progress = plan, files, progress
        self.errors: dict[str, float] = {}

    def works(self, threads: int) -> list[Figure]:
        """Every work in every set of processes."""
        plan = self.plan
        seen: dict[Work, list[Times]] = {work: [] for work in plan.works}
        for number in range(plan.sets):
            with ExitStack() as stack:
                workers = {
                    subject.name: stack.enter_context(self._start(subject, threads))
                    for subject in plan.subjects
                }
                for work in plan.works:
                    self.progress.begin(f"{work}, threads: {threads}, processes: {number + 1}")
                    seen[work].append(self._work(workers, work, threads))
        return [
            figure
            for work, sets in seen.items()
            for figure in figures(
                str(work),
                sets,
                threads=threads,
                clock=plan.clock_of(threads),
                amount=work.tokens,
            )
        ]

    def batches(self, threads: int) -> list[Figure]:
        """Several prompts continued together, or one after another, by ours."""
        found = []
        for precision in self.plan.precisions:
            self.progress.begin(f"batch of {self.plan.batch.rows}, {precision}, threads: {threads}")
            found += self._batch(precision, threads)
        return found

    def _work(self, workers: dict[str, Worker], work: Work, threads: int) -> Times:
        return interleave(
            workers,
            dict.fromkeys(workers, asdict(work)),
            check=lambda outputs: self._check(outputs, work),
            folder=self.plan.folder,
            policy=self.plan.policy,
            clock=self.plan.clock_of(threads),
            reference=self.plan.subjects[0].name,
        )

    def _check(self, outputs: Outputs, work: Work) -> None:
        """Logits by their scale; tokens to the last one, but only where nothing is rounded."""
        precisions = {subject.name: subject.precision for subject in self.plan.subjects}
        for reference, names in agreeing(self.plan.subjects).items():
            tolerance = TOLERANCES.get(precisions[reference], LOW_TOLERANCE)
            for name in names:
                got, expected = outputs[name], outputs[reference]
                if work.kind == "prefill":
                    error = check_agreement(
                        name, got, expected, tolerance=tolerance, where=str(work)
                    )
                    self.errors[name] = max(error, self.errors.get(name, 0.0))
                elif precisions[reference] == "fp32":
                    check_tokens(name, got, expected, where=str(work))

    def _batch(self, precision: str, threads: int) -> list[Figure]:
        plan = self.plan
        case = asdict(plan.batch)

        def check(outputs: Outputs) -> None:
            if precision == "fp32":
                check_tokens(TOGETHER, outputs[TOGETHER], outputs[APART], where="the batch")

        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(
                    self._worker(
                        "bench.generation.ours:batch", threads, name, {"precision": precision}
                    )
                )
                for name in (TOGETHER, APART)
            }
            times = interleave(
                workers,
                {name: {**case, "together": name == TOGETHER} for name in workers},
                check=check,
                folder=plan.folder,
                policy=plan.policy,
                clock=plan.clock_of(threads),
                reference=BATCH_REFERENCE,
            )
        return figures(
            f"batch {precision}",
            [times],
            threads=threads,
            clock=plan.clock_of(threads),
            amount=plan.batch.tokens,
        )

    def _start(self, subject: Subject, threads: int) -> Worker:
        return self._worker(
            subject.factory, threads, subject.name, subject.options, subject.environment
        )

    def _worker(
        self,
        factory: str,
        threads: int,
        name: str,
        options: dict[str, Any],
        environment: dict[str, str] | None = None,
    ) -> Worker:
        setup = {
            "folder": str(self.files.peers.resolve()),
            "ours": str(self.files.ours.resolve()),
            "sizes": asdict(self.plan.sizes),
            **options,
        }
        log = self.plan.folder / f"{name}.log"
        return Worker(
            factory,
            threads=threads,
            setup=setup,
            log=log,
            name=name,
            environment=environment,
        )


def _graphs(plan: Plan, files: Files) -> dict[str, str]:
    """What the int4 files hold."""
    found = {}
    for subject in plan.subjects:
        if subject.precision == "int4":
            built = subject.options.get("built")
            path = (
                files.ours / ours_name("int4")
                if built is None
                else files.peers / built / "model.onnx"
            )
            found[subject.name] = describe_graph(path)
    return found
