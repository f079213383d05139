"""The whole driver, with subjects of numpy in real worker processes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bench import resident
from bench.agreement import DisagreementError
from bench.attention import run as run_module
from bench.attention.cases import Case
from bench.attention.run import Plan, run
from bench.attention.section import Section
from bench.client import WorkerError
from bench.rounds import RoundPolicy
from bench.sizes import ModuleSizes
from bench.subject import Subject

POLICY = RoundPolicy(at_least=3, at_most=3, turn_s=0.001)


def subject(name: str, factory: str) -> Subject:
    return Subject(name=name, title=name, about="", factory=f"tests.bench.subjects:{factory}")


REFERENCE = subject("eager", "right")


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """One case and the reference alone, with nothing exported."""
    monkeypatch.setattr(run_module, "job", lambda name, **arguments: None)
    return Plan(
        cases=[Case(batch=2, seq=3)],
        threads=[1],
        subjects=[REFERENCE],
        folder=tmp_path,
        sizes=ModuleSizes(embed_dim=4, num_heads=1),
        policy=POLICY,
        has_memory=False,
    )


def shapes_timed(section: Section, name: str) -> list[tuple[int, int]]:
    return [(row.batch, row.seq) for row in section.times if row.subject == name]


def test_every_subject_gets_a_row_per_case_and_threads(plan: Plan) -> None:
    section = run(
        replace(
            plan,
            subjects=[subject("ours", "right"), REFERENCE],
            cases=[Case(batch=1, seq=1), Case(batch=2, seq=3)],
            threads=[1, 2],
        )
    )
    assert len(section.times) == 8
    row = section.time("ours", 2, 3, 2)
    assert row is not None
    assert (row.clock, row.rounds, row.error) == ("wall", 3, 0.0)
    assert row.ratios["eager"][1] > 0
    assert Section.from_dict(section.to_dict()) == section


def test_a_subject_that_computes_something_else_is_an_error(plan: Plan) -> None:
    wrong = subject("peer", "acausal")
    with pytest.raises(DisagreementError, match="peer at batch 2, length 3 differs"):
        run(replace(plan, subjects=[REFERENCE, wrong]))


def test_a_subject_that_does_not_load_is_left_out_with_its_reason(plan: Plan) -> None:
    section = run(replace(plan, subjects=[REFERENCE, subject("compile", "broken")]))
    assert shapes_timed(section, "eager") == [(2, 3)]
    (item,) = section.left_out
    assert item.has_failed
    assert item.reason == "compile: RuntimeError: no compiler found"


def test_a_subject_that_refuses_a_case_takes_part_in_the_others(plan: Plan) -> None:
    cases = [Case(batch=1, seq=seq) for seq in (4, 5, 6)]
    picky = subject("picky", "refuses_five")
    section = run(replace(plan, cases=cases, subjects=[REFERENCE, picky]))
    assert shapes_timed(section, "picky") == [(1, 4), (1, 6)]
    assert [(item.seq, item.what) for item in section.left_out] == [(5, "time")]


def test_a_subject_that_dies_in_its_turn_does_not_stop_the_others(plan: Plan) -> None:
    dying, other = subject("dying", "dies_when_timed"), subject("other", "right")
    section = run(replace(plan, subjects=[REFERENCE, dying, other]))
    assert shapes_timed(section, "other") == [(2, 3)]
    assert shapes_timed(section, "dying") == []
    assert section.left_out[0].reason == "dying: the process ended with code 3"


def test_a_reference_that_dies_in_its_turn_ends_the_run(plan: Plan) -> None:
    dying = subject("eager", "dies_when_timed")
    with pytest.raises(WorkerError, match="eager: the process ended with code 3"):
        run(replace(plan, subjects=[dying, subject("ours", "right")]))


def test_without_a_reference_there_is_nothing_to_measure(plan: Plan) -> None:
    with pytest.raises(WorkerError, match="eager: RuntimeError: no compiler found"):
        run(replace(plan, subjects=[subject("eager", "broken")]))
    with pytest.raises(ValueError, match="must include the reference, 'eager'"):
        replace(plan, subjects=[subject("ours", "right")])


@pytest.mark.skipif(not resident.is_supported(), reason="needs /proc/self/clear_refs")
def test_memory_is_measured_per_subject(plan: Plan) -> None:
    section = run(replace(plan, cases=[Case(batch=1, seq=1)], has_memory=True))
    row = section.footprint("eager", 1, 1)
    assert row is not None
    assert row.peak_bytes >= row.loaded_bytes > 1_000_000


def test_what_does_not_fit_the_machine_is_left_out(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def footprint(start: object, *, case: dict[str, int], settle: object) -> dict[str, int]:
        extra = case["seq"] ** 2 * 4 * 10**6
        return {"loaded_bytes": 0, "peak_bytes": 0, "extra_bytes": extra}

    monkeypatch.setattr(run_module, "measure_footprint", footprint)
    monkeypatch.setattr(resident, "is_supported", lambda: True)
    monkeypatch.setattr(resident, "available_bytes", lambda: 10**7)
    other = subject("other", "right")
    cases = [Case(batch=1, seq=seq) for seq in (1, 16)]
    section = run(replace(plan, cases=cases, subjects=[other, REFERENCE], has_memory=True))
    assert {(row.subject, row.seq) for row in section.memory} == {("eager", 1), ("other", 1)}
    assert shapes_timed(section, "eager") == [(1, 1), (1, 16)]  # what it needs, the run must have
    assert shapes_timed(section, "other") == [(1, 1)]
    assert not any(item.has_failed for item in section.left_out)
    reasons = [item.reason for item in section.left_out if item.what == "time"]
    assert reasons == ["beside the others, it would need 1.0 GB of 0.0 GB that were available"]
