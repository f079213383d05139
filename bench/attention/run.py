"""Measure the section: memory first, which tells what fits, then time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from bench import resident
from bench.agreement import check_agreement
from bench.attention.cases import Case, ModuleSizes, clock_of, memory_cases
from bench.attention.crew import Crew
from bench.attention.files import make_files
from bench.attention.section import LeftOut, MemoryRow, Section, SubjectRow, TimeRow, time_rows
from bench.attention.subjects import OURS_NAME, REFERENCE, SubjectInfo
from bench.client import Worker, WorkerError
from bench.machine import describe_machine
from bench.memory import fits, measure_footprint, predict_extra
from bench.progress import Progress
from bench.rounds import RoundPolicy, Turn, calls_per_turn, run_rounds

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
    subjects: Sequence[SubjectInfo]
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
    began = time.monotonic()
    machine = describe_machine(DISTRIBUTIONS)
    runner = _Runner(plan)
    runner.progress.note("exporting the files")
    make_files(plan.folder, plan.sizes)
    if plan.has_memory:
        runner.measure_memory()
    for threads in plan.threads:
        with Crew(plan.subjects, threads, runner.start) as crew:
            for case in plan.cases:
                runner.measure_time(crew, case)
    runner.progress.close()
    return Section(
        date=datetime.now(UTC).isoformat(timespec="minutes"),
        seconds=round(time.monotonic() - began, 1),
        machine=machine,
        sizes=asdict(plan.sizes),
        reference=REFERENCE,
        ours=OURS_NAME,
        baselines=plan.baselines,
        subjects=[SubjectRow(name=s.name, title=s.title, about=s.about) for s in plan.subjects],
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

    def start(self, subject: SubjectInfo, threads: int) -> Worker:
        """Start the worker of a subject."""
        setup = {
            "folder": str(self.plan.folder.resolve()),
            "sizes": asdict(self.plan.sizes),
            **dict(subject.options),
        }
        return Worker(
            subject.factory,
            threads=threads,
            setup=setup,
            log=self.plan.folder / f"{subject.name}.log",
            name=subject.name,
        )

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

    def measure_time(self, crew: Crew, case: Case) -> None:
        """Warm up, compare the outputs, then interleave."""
        threads = crew.threads
        self.progress.begin(f"time, {case}, {threads} thread{'s' if threads > 1 else ''}")

        def leave_out(subject: SubjectInfo, reason: str, *, has_failed: bool) -> None:
            self._leave_out(subject, "time", case, threads, reason, has_failed=has_failed)

        crew.dismiss_large()
        calls: dict[str, int] = {}
        errors: dict[str, float] = {}
        expected = None
        running: list[SubjectInfo] = []
        for subject in self._that_fit(case, leave_out):
            self.progress.detail(f"warming up {subject.name}")
            path = self.plan.folder / f"{subject.name}.npy"
            try:
                warm = crew.ask(subject, "prepare", case=asdict(case))
                crew.ask(subject, "save", path=str(path.resolve()))
            except WorkerError as error:
                if subject.name == REFERENCE:
                    raise
                leave_out(subject, str(error), has_failed=True)
                continue
            output = np.load(path)
            path.unlink()
            expected = output if expected is None else expected
            errors[subject.name] = check_agreement(
                subject.name, output, expected, tolerance=TOLERANCE, where=str(case)
            )
            calls[subject.name] = calls_per_turn(warm["seconds"], self.plan.policy)
            running.append(subject)
        turns = self._rounds(crew, running, calls, leave_out)
        self.times += time_rows(
            turns,
            batch=case.batch,
            seq=case.seq,
            threads=threads,
            clock=clock_of(threads),
            baselines=self.plan.baselines,
            errors=errors,
        )
        self.progress.end(self._time_cost(case, threads))

    def _rounds(
        self,
        crew: Crew,
        running: list[SubjectInfo],
        calls: dict[str, int],
        leave_out: _LeaveOut,
    ) -> dict[str, list[Turn]]:
        """Interleave; where a subject dies of it, once more without that one."""
        while True:
            by_name = {subject.name: subject for subject in running}

            def take_turn(name: str, by_name: dict[str, SubjectInfo] = by_name) -> Turn:
                try:
                    answer = crew.ask(by_name[name], "turn", calls=calls[name])
                except WorkerError as error:
                    raise _LostError(by_name[name]) from error
                return Turn.of(answer["wall_s"], answer["cpu_s"])

            try:
                return run_rounds(
                    list(by_name),
                    take_turn,
                    reference=REFERENCE,
                    clock=clock_of(crew.threads),
                    policy=self.plan.policy,
                    tell=lambda number: self.progress.detail(f"round {number}"),
                )
            except _LostError as lost:
                if lost.subject.name == REFERENCE:
                    raise
                leave_out(lost.subject, str(lost.__cause__), has_failed=True)
                running = [subject for subject in running if subject is not lost.subject]

    def _measure_footprint(self, subject: SubjectInfo, case: Case) -> None:
        need = self._need_bytes(subject, case)
        available = resident.available_bytes()
        if not fits(need, available):
            reason = _too_large(need, available)
            self._leave_out(subject, "memory", case, 1, reason, has_failed=False)
            return
        settle = Case(batch=1, seq=1)
        try:
            footprint = measure_footprint(
                lambda: self.start(subject, 1), case=asdict(case), settle=asdict(settle)
            )
        except WorkerError as error:
            self._leave_out(subject, "memory", case, 1, str(error), has_failed=True)
            return
        self.memory.append(MemoryRow.of(subject.name, case.batch, case.seq, footprint))

    def _that_fit(self, case: Case, leave_out: _LeaveOut) -> list[SubjectInfo]:
        """The subjects whose memory together fits the machine; the reference comes first."""
        if not self.memory:
            return self._most_wanted_first()
        available = resident.available_bytes()
        total = 0
        chosen = []
        for subject in self._most_wanted_first():
            need = self._need_bytes(subject, case)
            if subject.name == REFERENCE or fits(total + need, available):
                total += need
                chosen.append(subject)
            else:
                reason = f"beside the others, {_too_large(need, available - total)}"
                leave_out(subject, reason, has_failed=False)
        return chosen

    def _most_wanted_first(self) -> list[SubjectInfo]:
        """The reference, ours, then the others."""
        order = (REFERENCE, OURS_NAME)
        return sorted(
            self.plan.subjects,
            key=lambda one: order.index(one.name) if one.name in order else len(order),
        )

    def _need_bytes(self, subject: SubjectInfo, case: Case) -> int:
        rows = [
            row for row in self.memory if (row.subject, row.batch) == (subject.name, case.batch)
        ]
        extra = predict_extra({row.seq: row.extra_bytes for row in rows}, case.seq)
        return extra + max((row.loaded_bytes for row in rows), default=0)

    def _leave_out(
        self,
        subject: SubjectInfo,
        what: Literal["time", "memory"],
        case: Case,
        threads: int,
        reason: str,
        *,
        has_failed: bool,
    ) -> None:
        self.progress.note(f"{subject.name} has no {what} at {case}: {reason}")
        self.left_out.append(
            LeftOut(
                subject=subject.name,
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


class _LeaveOut(Protocol):
    """Notes that a subject has no time at the case that is measured."""

    def __call__(self, subject: SubjectInfo, reason: str, *, has_failed: bool) -> None: ...


class _LostError(Exception):
    def __init__(self, subject: SubjectInfo) -> None:
        super().__init__(subject.name)
        self.subject = subject


def _too_large(need: int, available: int) -> str:
    return (
        f"it would need {need / 1e9:.1f} GB of {max(available, 0) / 1e9:.1f} GB that were available"
    )
