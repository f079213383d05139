"""Measure the section: works in sets of fresh processes, batches, starts, and Python's part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from bench import subject
from bench.agreement import check_agreement, check_tokens
from bench.crew import Starts
from bench.figures import Figure
from bench.generation.cases import BATCH, PRECISIONS, TINY, WORKS, Batch, Work
from bench.generation.files import Files, make_files
from bench.generation.graphs import describe_graph
from bench.generation.ours import ours_name
from bench.generation.overhead import measure_overhead
from bench.generation.section import Section
from bench.generation.starts import measure_starts
from bench.generation.subjects import Subject, agreeing, subjects_for
from bench.interleave import Bench, Outputs
from bench.peers import PEERS, REQUIREMENTS
from bench.progress import Progress
from bench.results import begin_section
from bench.rounds import Clock, RoundPolicy, clock_of
from bench.sizes import ModelSizes, ModuleSizes

__all__ = ["APART", "TOGETHER", "Plan", "run"]

DISTRIBUTIONS = ("onnxruntime", "torch", "transformers", "onnx", "numpy", "causal-onnx")

TOLERANCES = {"fp32": 5e-5}
"""Of the scale of the logits; 30 layers in float32, summed in another order."""
LOW_TOLERANCE = 0.1
"""At lower precisions: int4 rounds weights by either tool's rule, and what is multiplied too."""

TOGETHER, APART = "together", "apart"


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
    precisions: Sequence[str] = PRECISIONS
    subjects: Sequence[Subject] = field(default_factory=lambda: subjects_for(PRECISIONS))
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
    ended = begin_section(DISTRIBUTIONS)
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
        **ended(),
        device=plan.device,
        sizes=asdict(plan.sizes),
        tiny=asdict(plan.tiny),
        module=asdict(plan.module),
        batch=asdict(plan.batch),
        subjects=[one.row for one in plan.subjects],
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
        subjects = self.plan.subjects
        return self._bench(threads, reference=subjects[0].name).measure(
            self._starts(subjects, threads),
            self.plan.works,
            sets=self.plan.sets,
            check=self._check,
            begin=lambda work, number: self.progress.begin(
                f"{work}, threads: {threads}, processes: {number}"
            ),
            amount=lambda work: work.tokens,
        )

    def batches(self, threads: int) -> list[Figure]:
        """Several prompts continued together, or one after another, by ours."""
        return [
            figure
            for precision in self.plan.precisions
            for figure in self._batch(precision, threads)
        ]

    def _batch(self, precision: str, threads: int) -> list[Figure]:
        subjects = [
            subject.Subject(
                name=name,
                title=name,
                about="",
                factory="bench.generation.ours:batch",
                options={"precision": precision, "together": name == TOGETHER},
            )
            for name in (TOGETHER, APART)
        ]

        def check(_: Batch, outputs: Outputs) -> None:
            if precision == "fp32":
                check_tokens(TOGETHER, outputs[TOGETHER], outputs[APART], where="the batch")

        return self._bench(threads, reference=APART).measure(
            self._starts(subjects, threads),
            [self.plan.batch],
            sets=1,
            check=check,
            begin=lambda batch, _: self.progress.begin(f"{batch}, {precision}, threads: {threads}"),
            amount=lambda batch: batch.tokens,
            row=lambda _: f"batch {precision}",
        )

    def _bench(self, threads: int, *, reference: str) -> Bench:
        plan = self.plan
        return Bench(
            folder=plan.folder,
            policy=plan.policy,
            threads=threads,
            clock=plan.clock_of(threads),
            reference=reference,
        )

    def _starts(self, subjects: Sequence[subject.Subject], threads: int) -> Starts:
        setup = {
            "folder": str(self.files.peers.resolve()),
            "ours": str(self.files.ours.resolve()),
            "sizes": asdict(self.plan.sizes),
        }
        return {one.name: partial(one.start, threads, self.plan.folder, setup) for one in subjects}

    def _check(self, work: Work, outputs: Outputs) -> None:
        """Logits by their scale; tokens to the last one, but only where nothing is rounded."""
        precisions = {one.name: one.precision for one in self.plan.subjects}
        for reference, names in agreeing(self.plan.subjects).items():
            for name in names:
                is_alike = precisions[reference] == precisions[name]
                bound = TOLERANCES.get(precisions[reference], LOW_TOLERANCE)
                tolerance = bound if is_alike else LOW_TOLERANCE
                got, expected = outputs[name], outputs[reference]
                if work.kind == "prefill":
                    error = check_agreement(
                        name, got, expected, tolerance=tolerance, where=str(work)
                    )
                    self.errors[name] = max(error, self.errors.get(name, 0.0))
                elif is_alike and precisions[name] == "fp32":
                    check_tokens(name, got, expected, where=str(work))


def _graphs(plan: Plan, files: Files) -> dict[str, str]:
    """What the int4 files hold."""
    found = {}
    for one in plan.subjects:
        if one.precision.startswith("int4"):
            built = one.options.get("built")
            path = (
                files.ours / ours_name(one.precision)
                if built is None
                else files.peers / built / "model.onnx"
            )
            found[one.name] = describe_graph(path)
    return found
