"""The comparison of cached steps, with made-up workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from bench.agreement import DisagreementError
from bench.decode import __main__ as command
from bench.decode.cases import Step, default_steps
from bench.decode.run import Plan, run
from bench.decode.section import Section, to_markdown
from bench.figures import figures
from bench.rounds import RoundPolicy
from bench.sizes import FULL, SMALL

POLICY = RoundPolicy(at_least=3, at_most=3, at_least_slow=3)


class MadeUpWorker:
    """Answers like a worker: so many seconds a call, and these logits."""

    seconds: ClassVar = {"built": 2e-3, "ours": 1e-3}
    logits: ClassVar = {"built": 1.0, "ours": 1.0}

    def __init__(self, factory: str, *, name: str, **_: Any) -> None:
        self.name = name

    def close(self) -> None:
        pass

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        if operation == "save":
            np.save(arguments["path"], np.full((1, 3), self.logits[self.name], np.float32))
            return {}
        seconds = [self.seconds[self.name]] * 3
        return {"seconds": seconds[0], "wall_s": seconds, "cpu_s": seconds}


def plan(folder: Path) -> Plan:
    return Plan(
        sizes=SMALL,
        steps=[Step(past_seq=5, seq=1)],
        threads=(1,),
        folder=folder,
        policy=POLICY,
        processes=2,
        keeps_files=True,
    )


def test_the_ratio_is_ours_over_the_builders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.subject.Worker", MadeUpWorker)
    section = run(plan(tmp_path))
    built, ours = section.figures
    assert built.better["ours"] == pytest.approx((0.5, 0.5, 0.5))
    assert (built.value[1], ours.value[1], ours.sets) == (2e-3, 1e-3, 2)
    assert section.errors == {"1 after 5": 0.0}
    assert Section.from_dict(json.loads(json.dumps(section.to_dict()))) == section


def test_graphs_that_disagree_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.subject.Worker", MadeUpWorker)
    monkeypatch.setattr(MadeUpWorker, "logits", {"built": 1.0, "ours": 1.001})
    with pytest.raises(DisagreementError, match="ours at 1 after 5 differs"):
        run(plan(tmp_path))


def section(ratio: float) -> Section:
    step = Step(past_seq=5, seq=1)
    sets = [{"built": [2e-3], "ours": [2e-3 * ratio]}] * 3
    machine = {"versions": {}, "revision": None, "cpu": "a cpu", "cores": 2, "load_before": 0.1}
    sizes = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    return Section(
        date="2026-11-24",
        seconds=60.0,
        machine=machine,
        sizes=sizes,
        steps=[step],
        figures=figures(str(step), sets, threads=1, clock="cpu", amount=1.0, unit="s"),
        errors={},
    )


@pytest.mark.parametrize(
    ("ratio", "cell", "verdict"),
    [(0.9, "| 0.90 (0.90-0.90) |", "0 of 1"), (1.2, "| **1.20** (1.20-1.20) |", "1 of 1")],
)
def test_losses_are_printed_in_bold_and_counted(ratio: float, cell: str, verdict: str) -> None:
    text = to_markdown(section(ratio))
    assert cell in text
    assert f"slower at {verdict} places" in text


def test_steps_fit_the_cache() -> None:
    assert all(step.past_seq + step.seq <= 600 for step in default_steps(600))
    assert len(default_steps(FULL.max_seq_len)) == 8
    with pytest.raises(ValueError, match="got -1 and 1"):
        Step(past_seq=-1, seq=1)


def test_a_failure_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Plan) -> Section:
        raise RuntimeError("the builder failed")

    monkeypatch.setattr(command, "run", fail)
    assert command.main(["--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: the builder failed\n"
