"""Interleave workers at one thing to do, once their outputs agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.agreement import DisagreementError
from bench.client import Worker
from bench.rounds import Clock, RoundPolicy, Turn, calls_per_turn, run_rounds

__all__ = ["Outputs", "check_tokens", "interleave"]

Outputs = Mapping[str, npt.NDArray[Any]]


def interleave(
    workers: Mapping[str, Worker],
    case: Mapping[str, Mapping[str, Any]],
    *,
    check: Callable[[Outputs], None],
    folder: Path,
    policy: RoundPolicy,
    clock: Clock,
    reference: str,
) -> dict[str, list[float]]:
    """Warm up, compare the outputs, then take turns.

    Args:
        workers: By name of the subject.
        case: By the same names.
        check: Raises where outputs do not agree.
        folder: For the outputs, meanwhile.
        policy: When there are rounds enough.
        clock: Of the times.
        reference: Whose ratios decide about that.

    Returns:
        Seconds of each subject, round by round.

    Raises:
        WorkerError: A subject failed.
    """
    calls, outputs = {}, {}
    for name, worker in workers.items():
        path = folder / f"{name}.npy"
        warm = worker.ask("prepare", case=dict(case[name]))
        worker.ask("save", path=str(path.resolve()))
        calls[name] = calls_per_turn(warm["seconds"], policy)
        outputs[name] = np.load(path)
        path.unlink()
    check(outputs)

    def take_turn(name: str) -> Turn:
        answer = workers[name].ask("turn", calls=calls[name])
        return Turn.of(answer["wall_s"], answer["cpu_s"])

    turns = run_rounds(list(workers), take_turn, reference=reference, clock=clock, policy=policy)
    return {name: [getattr(turn, clock) for turn in own] for name, own in turns.items()}


def check_tokens(
    name: str, got: npt.NDArray[Any], expected: npt.NDArray[Any], *, where: str
) -> None:
    """Refuse tokens that are not the reference's, to the last one.

    Raises:
        DisagreementError: They differ in number or value.
    """
    if got.shape != expected.shape:
        raise DisagreementError(
            f"{name} at {where} chose {got.shape} tokens, the reference {expected.shape}; its "
            "times would mean nothing"
        )
    places = np.argwhere(got != expected)
    if len(places):
        raise DisagreementError(
            f"{name} at {where} chose other tokens than the reference, {len(places)} of "
            f"{got.size}, the first at {tuple(int(i) for i in places[0])}; its times would mean "
            "nothing"
        )
