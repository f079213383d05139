"""What z3 says of the implications of a proof."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import z3
from tools.judge.problem import Problem, loosened, problems
from tools.judge.terms import UntranslatableError

from causal_onnx.export.analysis.graph import describe
from causal_onnx.export.proof.symbolic.implication import Implication, ImplicationLog

__all__ = ["Answer", "Judgement", "judge", "merged"]

Answer = Literal["proved", "refuted", "undecided", "untranslatable"]

WORK = 2_000_000
"""z3's own count of its steps after which it gives up: the same on every machine."""

SHOWN = 5
"""Refutations that are kept with their text."""

_answers: dict[str, tuple[Answer, str]] = {}
"""By the problem's text: most implications are met again and again."""


@dataclass
class Judgement:
    """What became of the implications of one or several proofs."""

    implications: int = 0
    """As often as they were accepted."""
    adopted: int = 0
    """Tensors that were read off the runs, of which nothing is implied."""
    distinct: dict[str, Answer] = field(default_factory=dict)
    """By a hash of the problem that was put to z3."""
    of_runs: set[str] = field(default_factory=set)
    """Those of `distinct` that were judged at the sizes of the runs alone."""
    remarks: dict[str, str] = field(default_factory=dict)
    """Hash -> the counter-example, or why there is no answer, with the node."""

    def count(self, answer: Answer) -> int:
        return sum(found == answer for found in self.distinct.values())

    def add(self, other: Judgement) -> None:
        self.implications += other.implications
        self.adopted += other.adopted
        self.distinct |= other.distinct
        self.of_runs |= other.of_runs
        self.remarks = other.remarks | self.remarks

    def to_dict(self) -> dict[str, Any]:
        return {
            "implications": self.implications,
            "adopted": self.adopted,
            "distinct": self.distinct,
            "of_runs": sorted(self.of_runs),
            "remarks": self.remarks,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Judgement:
        return cls(**{**data, "of_runs": set(data["of_runs"])})

    def __str__(self) -> str:
        return (
            f"{self.implications} implications, {len(self.distinct)} distinct: "
            f"{self.count('proved')} proved, {self.count('refuted')} refuted, "
            f"{self.count('undecided')} undecided by z3, "
            f"{self.count('untranslatable')} without a translation "
            f"({len(self.of_runs)} of them judged at the sizes that were run; "
            f"{self.adopted} tensors read off the runs)"
        )


def merged(judgements: Iterable[Judgement]) -> Judgement:
    """All together; what several proofs share counts once among the distinct ones."""
    found = Judgement()
    for judgement in judgements:
        found.add(judgement)
    return found


def judge(log: ImplicationLog) -> Judgement:
    """Let z3 look for a counter-example to each implication in the log."""
    judgement = Judgement(implications=sum(log.counts.values()), adopted=log.adopted)
    for implication, node in log.first.items():
        place = "judging an output" if node is None else describe(node)
        for key, answer, remark, of_runs in _judged(implication):
            judgement.distinct[key] = answer
            if of_runs:
                judgement.of_runs.add(key)
            if remark:
                judgement.remarks.setdefault(key, f"{place}: {remark}")
    return judgement


def _judged(implication: Implication) -> Iterable[tuple[str, Answer, str, bool]]:
    try:
        found = problems(implication)
    except UntranslatableError as error:
        key = _key(str(error))
        return [(key, "untranslatable", f"no translation of {error}", False)]
    return [_solved(problem, implication) for problem in found]


def _key(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _solved(problem: Problem, implication: Implication) -> tuple[str, Answer, str, bool]:
    if problem.text not in _answers:
        _answers[problem.text] = _solve(problem, implication)
    answer, model = _answers[problem.text]
    remark = "" if answer == "proved" else f"{_claim(implication)}: {model}"
    return _key(problem.text), answer, remark, problem.sizes is not None


def _claim(implication: Implication) -> str:
    given = "; ".join(f"{poly!r} >= 0" for poly in implication.given)
    claim = f"{implication.left!r} {implication.relation} {implication.right!r}"
    return (f"given {given}: " if given else "") + claim


def _solve(problem: Problem, implication: Implication) -> tuple[Answer, str]:
    if problem.polynomial:
        # Over the reals products can be decided; without a solution there, there is none.
        reals = re.sub(r"(?<![\w.])(\d+)(?![\w.])", r"\1.0", problem.text.replace("Int", "Real"))
        if _check(reals, "qfnra-nlsat")[0] == z3.unsat:
            return "proved", ""
    result, model = _check(problem.text, "smt")
    if result == z3.unknown and _check(loosened(implication, problem).text, "smt")[0] == z3.unsat:
        return "proved", ""
    if result == z3.unsat:
        return "proved", ""
    if result == z3.unknown:
        return "undecided", f"no answer in {WORK} steps"
    values = ", ".join(
        f"{problem.names[d.name()]} = {model[d]}"
        for d in model.decls()
        if d.name() in problem.names
    )
    if problem.approximate:
        return (
            "undecided",
            f"not refuted at {values}: {', '.join(problem.approximate)} approximated",
        )
    return "refuted", f"wrong at {values}" if values else "wrong everywhere"


def _check(text: str, tactic: str) -> tuple[Any, Any]:
    context = z3.Context()
    solver = z3.Tactic(tactic, ctx=context).solver()
    solver.set("rlimit", WORK)
    solver.from_string(text)
    result = solver.check()
    return result, solver.model() if result == z3.sat else None
