"""Training keeps to the number of threads that is quickest on the machine as it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from examples.demo.step_threads import StepThreads


def trained(
    counts: tuple[int, ...], cost: Callable[[int, float], float], *, seconds: float
) -> tuple[Counter[int], list[tuple[float, int]]]:
    """Steps by number of threads, and in order; a step with n threads at t takes cost(n, t)."""
    chooser, now = StepThreads(counts), 0.0
    steps = []
    while now < seconds:
        count = chooser.next(now)
        steps.append((now, count))
        now += cost(count, now)
        chooser.record(count, now - steps[-1][0], now)
    return Counter(count for _, count in steps), steps


def test_the_quicker_number_does_nearly_all_steps() -> None:
    steps, _ = trained((1, 4), lambda n, _: 0.1 / n, seconds=60)
    assert steps[4] > 50 * steps[1] > 0


def test_a_hopeless_number_costs_a_few_steps() -> None:
    steps, _ = trained((1, 2), lambda n, _: 0.1 if n == 1 else 6.0, seconds=60)
    assert steps[2] <= 3
    assert steps[1] > 400


def test_what_became_slow_is_left_at_once_and_taken_up_again() -> None:
    def cost(count: int, now: float) -> float:
        return 3.0 if count == 2 and 20 <= now < 40 else 0.1 / count

    _, steps = trained((1, 2), cost, seconds=80)
    assert Counter(n for t, n in steps if 5 < t < 20).most_common(1)[0][0] == 2
    assert sum(n == 2 for t, n in steps if 20 <= t < 40) <= 3
    assert Counter(n for t, n in steps if t > 65).most_common(1)[0][0] == 2


def test_one_number_is_no_choice() -> None:
    steps, _ = trained((3,), lambda n, _: 1.0, seconds=10)
    assert set(steps) == {3}


def test_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one number of threads"):
        StepThreads(())
