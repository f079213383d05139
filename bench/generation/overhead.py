"""What Python adds to a decode step, beside the same session run with everything bound."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from bench.client import Worker
from bench.figures import Figure, figures
from bench.generation.ours import STEPS
from bench.rounds import RoundPolicy, Turn, calls_per_turn, clock_of, rotated
from bench.sizes import ModelSizes

__all__ = ["BARE", "OVERHEAD", "ROW", "STREAM", "measure_overhead"]

ROW = "one step"
STREAM, BARE, OVERHEAD = "stream", "bare session run", "overhead"
THREADS = 1
"""The small model has nothing for a second thread to do."""


def measure_overhead(
    path: Path, sizes: ModelSizes, folder: Path, *, rounds: int, policy: RoundPolicy
) -> list[Figure]:
    """Take turns in one process, so that both run the same session.

    Raises:
        WorkerError: The process failed.
    """
    clock = clock_of(THREADS)
    times: dict[str, list[float]] = {STREAM: [], BARE: []}
    with Worker(
        "bench.generation.ours:step",
        threads=THREADS,
        setup={"path": str(path.resolve()), "sizes": asdict(sizes)},
        log=folder / "step.log",
        name="step",
    ) as worker:
        for number in range(rounds):
            for name in rotated(list(times), number):
                warm = worker.ask("prepare", case={"bare": name == BARE})
                calls = calls_per_turn(warm["seconds"], policy)
                answer = worker.ask("turn", calls=calls)
                turn = Turn.of(answer["wall_s"], answer["cpu_s"])
                times[name].append(getattr(turn, clock) / STEPS)
    added = [one - other for one, other in zip(times[STREAM], times[BARE], strict=True)]
    return [
        *figures(ROW, [times], threads=THREADS, clock=clock, amount=1e6, unit="us"),
        *figures(ROW, [{OVERHEAD: added}], threads=THREADS, clock=clock, amount=1e6, unit="us"),
    ]
