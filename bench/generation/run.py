"""Measure the section: works in sets of fresh processes, batches, starts, and Python's part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from bench.agreement import DisagreementError, check_agreement, check_choice, check_tokens, drift
from bench.client import WorkerError
from bench.crew import Starts
from bench.figures import Figure
from bench.generation.cases import BATCH, BATCH_ROW, PRECISIONS, TINY, WORKS, Batch, Work
from bench.generation.files import Files, make_files, make_gguf
from bench.generation.graphs import describe_graph
from bench.generation.ours import ours_name
from bench.generation.overhead import measure_overhead
from bench.generation.section import Section
from bench.generation.starts import measure_starts
from bench.generation.subjects import APART, EAGER, Subject, agreeing, batch_subjects, subjects_for
from bench.interleave import Bench, Outputs
from bench.peers import PEERS, REQUIREMENTS
from bench.progress import Progress
from bench.results import begin_section
from bench.rounds import Clock, RoundPolicy, clock_of
from bench.sizes import ModelSizes, ModuleSizes

__all__ = ["Plan", "run"]

DISTRIBUTIONS = ("onnxruntime", "torch", "transformers", "onnx", "numpy", "causal-onnx")

TOLERANCES = {"fp32": 5e-5}
"""Of the scale of the logits; 30 layers in float32, summed in another order."""
LOW_TOLERANCE = 0.1
"""At lower precisions: int4 rounds weights by either tool's rule, and what is multiplied too."""
FOUR_BITS_TOLERANCE = 0.2
"""Of the choice of a GGUF file of four bits beside ours: each rounds by its own rule, and with
random weights half of the logits' spread is rounding in either."""
FOUR_BITS = "q4"


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
    builder: Sequence[str] = ("tuned",)
    """Of the builder's graphs, see `make_files`."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Peers that are not here -> the reason."""

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
    short = sum(not work.is_long for work in plan.works)
    steps = len(plan.threads) * (short * plan.sets + len(plan.works) - short + 2) + 1
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
        builder=plan.builder,
    )
    runner = Runner(plan, files, progress)
    runner.find_peers()
    found: list[Figure] = []
    for threads in plan.threads:
        found += runner.part(f"works, {threads}", partial(runner.works, threads))
        if plan.device != "cpu":
            continue
        found += runner.part(f"batches, {threads}", partial(runner.batches, threads))
        found += runner.part(f"starts, {threads}", partial(runner.starts, threads))
    if plan.device == "cpu":
        found += runner.part("Python's part of a step", runner.overhead)
    progress.close()
    if not found:
        raise RuntimeError("; ".join(f"{what}: {why}" for what, why in runner.left_out.items()))
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
        drifts=runner.drifts,
        left_out=runner.left_out,
    )


class Runner:
    """The state of one run."""

    def __init__(self, plan: Plan, files: Files, progress: Progress) -> None:
        self.plan, self.files, self.progress = plan, files, progress
        self.subjects = list(plan.subjects)
        self.errors: dict[str, float] = {}
        self.drifts: dict[str, float] = {}
        self.left_out = dict(plan.missing)

    def find_peers(self) -> None:
        """Make the files that peers need; those whose file cannot be made are left out."""
        for kind in sorted({x for one in self.subjects if (x := one.options.get("kind"))}):
            try:
                make_gguf(self.files.peers, kind, self.progress.note)
            except RuntimeError as error:
                for one in [one for one in self.subjects if one.options.get("kind") == kind]:
                    self._lose(one.name, error)

    def part(self, name: str, measure: Callable[[], list[Figure]]) -> list[Figure]:
        """Its figures; where it failed, none, and the reason is kept: the others go on."""
        try:
            return measure()
        except (DisagreementError, WorkerError, RuntimeError) as error:
            self.left_out[name] = str(error)
            self.progress.note(f"{name}: {error}")
            return []

    def works(self, threads: int) -> list[Figure]:
        """Every work in every set of processes; long prompts in one, without programs."""
        works = self.plan.works
        return [
            *self._measure_works([one for one in works if not one.is_long], threads),
            *self._measure_works([one for one in works if one.is_long], threads),
        ]

    def _measure_works(self, works: Sequence[Work], threads: int) -> list[Figure]:
        if not works:
            return []
        is_long = works[0].is_long
        subjects = [one for one in self.subjects if not (is_long and "kind" in one.options)]
        return self._bench(threads, reference=subjects[0].name).measure(
            self._starts(subjects, threads),
            works,
            sets=1 if is_long else self.plan.sets,
            check=self._check,
            begin=lambda work, number: self.progress.begin(
                f"{work}, threads: {threads}, processes: {number}"
            ),
            amount=lambda work: work.tokens,
            lose=self._lose,
        )

    def batches(self, threads: int) -> list[Figure]:
        """Several prompts continued together, and one after another by ours."""
        subjects = batch_subjects(self.subjects)

        def check(_: Batch, outputs: Outputs) -> None:
            if {"ours-fp32", f"{APART}-fp32"} <= set(outputs):
                alone = outputs[f"{APART}-fp32"]
                check_tokens("ours-fp32", outputs["ours-fp32"], alone, where="the batch")

        return self._bench(threads, reference=subjects[0].name).measure(
            self._starts(subjects, threads),
            [self.plan.batch],
            sets=1,
            check=check,
            begin=lambda batch, _: self.progress.begin(f"{batch}, threads: {threads}"),
            amount=lambda batch: batch.tokens,
            row=lambda _: BATCH_ROW,
            lose=self._lose,
        )

    def starts(self, threads: int) -> list[Figure]:
        """Of the module, in processes of their own."""
        self.progress.begin(f"starts, threads: {threads}")
        files, plan = self.files, self.plan
        return measure_starts(
            files.artifact, files.weights, plan.folder, threads=threads, rounds=plan.start_rounds
        )

    def overhead(self) -> list[Figure]:
        """Python's part of a step."""
        self.progress.begin("Python's part of a step")
        plan = self.plan
        return measure_overhead(
            self.files.tiny, plan.tiny, plan.folder, rounds=plan.overhead_rounds, policy=plan.policy
        )

    def _lose(self, name: str, error: Exception) -> None:
        """Go on without a peer; ours and PyTorch must not be missing."""
        mine = next((one for one in self.subjects if one.name == name), None)
        if mine is None or not mine.is_peer:
            raise error
        self.left_out[name] = str(error)
        self.progress.note(f"{name} is left out: {error}")
        self.subjects.remove(mine)

    def _bench(self, threads: int, *, reference: str) -> Bench:
        plan = self.plan
        return Bench(
            folder=plan.folder,
            policy=plan.policy,
            threads=threads,
            clock=plan.clock_of(threads),
            reference=reference,
        )

    def _starts(self, subjects: Sequence[Subject], threads: int) -> Starts:
        setup = {
            "folder": str(self.files.peers.resolve()),
            "ours": str(self.files.ours.resolve()),
            "sizes": asdict(self.plan.sizes),
        }
        return {one.name: partial(one.start, threads, self.plan.folder, setup) for one in subjects}

    def _check(self, work: Work, outputs: Outputs) -> dict[str, str]:
        """Logits by their scale; tokens to the last one, but only where nothing is rounded.

        Returns:
            Peers that compute something else, each with the reason.

        Raises:
            DisagreementError: One of ours does.
        """
        present = [one for one in self.subjects if one.name in outputs]
        by_name = {one.name: one for one in present}
        wrong: dict[str, str] = {}
        for reference, names in agreeing(present).items():
            for name in names:
                try:
                    self._compare(work, by_name[name], by_name[reference], outputs)
                except DisagreementError as error:
                    if not by_name[name].is_peer:
                        raise
                    wrong[name] = str(error)
        wide = next((one.name for one in present if one.runtime == EAGER), None)
        if wide is not None and work.kind == "prefill":
            for name, logits in outputs.items():
                if name != wide and logits.shape == outputs[wide].shape:
                    found = drift(logits, outputs[wide])
                    self.drifts[name] = max(found, self.drifts.get(name, 0.0))
        return wrong

    def _compare(self, work: Work, one: Subject, reference: Subject, outputs: Outputs) -> None:
        is_alike = one.precision == reference.precision
        tolerance = TOLERANCES.get(one.precision, LOW_TOLERANCE) if is_alike else LOW_TOLERANCE
        got, expected, where = outputs[one.name], outputs[reference.name], str(work)
        if work.kind == "decode":
            if is_alike and one.precision == "fp32":
                check_tokens(one.name, got, expected, where=where)
            return
        if "kind" in one.options:  # log-probabilities, or the token that was chosen
            if one.options["kind"].startswith(FOUR_BITS):
                tolerance = FOUR_BITS_TOLERANCE
            error = check_choice(one.name, got, expected, tolerance=tolerance, where=where)
        else:
            error = check_agreement(one.name, got, expected, tolerance=tolerance, where=where)
        self.errors[one.name] = max(error, self.errors.get(one.name, 0.0))


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
