"""Measure the section: memory first, which tells what fits, then time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from bench import resident
from bench.agreement import check_agreement
from bench.attention.cases import Case, memory_cases
from bench.attention.section import LeftOut, MemoryRow, Section, TimeRow, time_rows
from bench.attention.subjects import OURS_NAME, PLAIN_OPSETS, REFERENCE
from bench.client import Worker, WorkerError
from bench.crew import Crew
from bench.interleave import Bench, Outputs
from bench.make import job
from bench.memory import fits, measure_footprint, predict_extra
from bench.progress import Progress
from bench.results import begin_section
from bench.rounds import RoundPolicy, clock_of
from bench.sizes import ModuleSizes
from bench.subject import Subject

__all__ = ["TOLERANCE", "Plan", "run"]

TOLERANCE = 1e-5
"""Of the output's scale, in float32; the subjects differ by less than 1e-6."""

DISTRIBUTIONS = ("torch", "onnxruntime", "numpy", "onnx", "onnxscript", "causal-onnx")

FLOPS_PER_S = 3e10
START_S = 2.5
"""For the time that is left, only the relation of the two counts."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and where files may lie meanwhile."""

    cases: Sequence[Case]
    threads: Sequence[int]
    subjects: Sequence[Subject]
    folder: Path
    sizes: ModuleSizes = field(default_factory=ModuleSizes)
    policy: RoundPolicy = field(default_factory=RoundPolicy)
    has_memory: bool = True

    def __post_init__(self) -> None:
        if REFERENCE not in [subject.name for subject in self.subjects]:
            raise ValueError(f"the subjects must include the reference, {REFERENCE!r}")

    @property
    def baselines(self) -> list[str]:
        """The reference first, then every subject that is not ours or compiled."""
        plain = [s.name for s in self.subjects if s.name.startswith("plain")]
        return [REFERENCE, *plain]


def run(plan: Plan) -> Section:
    """Measure all of it.

    Raises:
        DisagreementError: A subject computes something else than the reference.
        WorkerError: The reference itself failed.
        RuntimeError: The files could not be exported.
    """
    ended = begin_section(DISTRIBUTIONS)
    runner = _Runner(plan)
    runner.progress.note("exporting the files")
    job(
        "attention",
        folder=str(plan.folder.resolve()),
        sizes=asdict(plan.sizes),
        opsets=list(PLAIN_OPSETS),
    )
    if plan.has_memory:
        runner.measure_memory()
    for threads in plan.threads:
        starts = {one.name: partial(runner.start, one, threads) for one in plan.subjects}
        with Crew(starts) as crew:
            for case in plan.cases:
                runner.measure_time(crew, case, threads)
    runner.progress.close()
    return Section(
        **ended(),
        sizes=asdict(plan.sizes),
        reference=REFERENCE,
        ours=OURS_NAME,
        baselines=plan.baselines,
        subjects=[subject.row for subject in plan.subjects],
        times=runner.times,
        memory=runner.memory,
        left_out=runner.left_out,
    )


class _Runner:
    """The state of one run."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.times: list[TimeRow] = []
        self.memory: list[MemoryRow] = []
        self.left_out: list[LeftOut] = []
        memory_steps = memory_cases(plan.cases) if plan.has_memory else []
        self.progress = Progress(
            sum(self._memory_cost(case) for case in memory_steps)
            + sum(self._time_cost(case, n) for case in plan.cases for n in plan.threads),
            len(memory_steps) + len(plan.cases) * len(plan.threads),
        )

    def start(self, subject: Subject, threads: int) -> Worker:
        """Start the worker of a subject."""
        setup = {"folder": str(self.plan.folder.resolve()), "sizes": asdict(self.plan.sizes)}
        return subject.start(threads, self.plan.folder, setup)

    def measure_memory(self) -> None:
        """Peak memory, a fresh process for each figure, with one thread."""
        if not resident.is_supported():
            self.progress.note("memory is not measured: it needs Linux and a writable /proc/self")
            return
        for case in memory_cases(self.plan.cases):
            self.progress.begin(f"memory, {case}")
            for subject in self.plan.subjects:
                self.progress.detail(subject.name)
                self._measure_footprint(subject, case)
            self.progress.end(self._memory_cost(case))

    def measure_time(self, crew: Crew, case: Case, threads: int) -> None:
        """Time all subjects that fit the machine together."""
        self.progress.begin(f"time, {case}, {threads} thread{'s' if threads > 1 else ''}")
        crew.dismiss_large()
        errors: dict[str, float] = {}

        def check(outputs: Outputs) -> None:
            for name, output in outputs.items():
                errors[name] = check_agreement(
                    name, output, outputs[REFERENCE], tolerance=TOLERANCE, where=str(case)
                )

        def lose(name: str, error: WorkerError) -> None:
            if name == REFERENCE:
                raise error
            self._leave_out(name, "time", case, threads, str(error), has_failed=True)

        bench = Bench(
            folder=self.plan.folder,
            policy=self.plan.policy,
            threads=threads,
            clock=clock_of(threads),
            reference=REFERENCE,
        )
        turns = bench.interleave(
            crew,
            self._that_fit(case, threads),
            asdict(case),
            check=check,
            lose=lose,
            tell=self.progress.detail,
        )
        self.times += time_rows(
            turns,
            batch=case.batch,
            seq=case.seq,
            threads=threads,
            clock=bench.clock,
            baselines=self.plan.baselines,
            errors=errors,
        )
        self.progress.end(self._time_cost(case, threads))

    def _measure_footprint(self, subject: Subject, case: Case) -> None:
        need = self._need_bytes(subject, case)
        available = resident.available_bytes()
        if not fits(need, available):
            reason = _too_large(need, available)
            self._leave_out(subject.name, "memory", case, 1, reason, has_failed=False)
            return
        settle = Case(batch=1, seq=1)
        try:
            footprint = measure_footprint(
                lambda: self.start(subject, 1), case=asdict(case), settle=asdict(settle)
            )
        except WorkerError as error:
            self._leave_out(subject.name, "memory", case, 1, str(error), has_failed=True)
            return
        self.memory.append(
            MemoryRow(subject=subject.name, batch=case.batch, seq=case.seq, **footprint)
        )

    def _that_fit(self, case: Case, threads: int) -> list[str]:
        """The subjects whose memory together fits the machine; the reference comes first."""
        available = resident.available_bytes() if self.memory else 0
        total = 0
        chosen = []
        for subject in self._most_wanted_first():
            need = self._need_bytes(subject, case)
            if not self.memory or subject.name == REFERENCE or fits(total + need, available):
                total += need
                chosen.append(subject.name)
            else:
                reason = f"beside the others, {_too_large(need, available - total)}"
                self._leave_out(subject.name, "time", case, threads, reason, has_failed=False)
        return chosen

    def _most_wanted_first(self) -> list[Subject]:
        """The reference, ours, then the others."""
        order = (REFERENCE, OURS_NAME)
        return sorted(
            self.plan.subjects,
            key=lambda one: order.index(one.name) if one.name in order else len(order),
        )

    def _need_bytes(self, subject: Subject, case: Case) -> int:
        rows = [
            row for row in self.memory if (row.subject, row.batch) == (subject.name, case.batch)
        ]
        extra = predict_extra({row.seq: row.extra_bytes for row in rows}, case.seq)
        return extra + max((row.loaded_bytes for row in rows), default=0)

    def _leave_out(
        self,
        name: str,
        what: Literal["time", "memory"],
        case: Case,
        threads: int,
        reason: str,
        *,
        has_failed: bool,
    ) -> None:
        self.progress.note(f"{name} has no {what} at {case}: {reason}")
        self.left_out.append(
            LeftOut(
                subject=name,
                what=what,
                batch=case.batch,
                seq=case.seq,
                threads=threads,
                has_failed=has_failed,
                reason=reason,
            )
        )

    def _call_s(self, case: Case) -> float:
        return case.flops(self.plan.sizes) / FLOPS_PER_S

    def _memory_cost(self, case: Case) -> float:
        return len(self.plan.subjects) * (START_S + self._call_s(case))

    def _time_cost(self, case: Case, threads: int) -> float:
        policy = self.plan.policy
        call = self._call_s(case) / threads
        rounds = len(self.plan.subjects) * call * (policy.at_least_slow + 2)
        return policy.seconds / 2 + rounds


def _too_large(need: int, available: int) -> str:
    return (
        f"it would need {need / 1e9:.1f} GB of {max(available, 0) / 1e9:.1f} GB that were available"
    )
