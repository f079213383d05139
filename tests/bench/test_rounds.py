from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest

from bench.rounds import (
    RoundPolicy,
    Turn,
    calls_per_turn,
    clock_of,
    is_settled,
    rotated,
    run_rounds,
)

NAMES = ["a", "b", "c"]


def turns_of(times: Callable[[str, int], float], seen: list[str]) -> Callable[[str], Turn]:
    """A `take_turn` that gives `times(name, round)` and notes who had a turn."""

    def take_turn(name: str) -> Turn:
        number = seen.count(name)
        seen.append(name)
        return Turn(wall=times(name, number), cpu=1.0)

    return take_turn


def test_everyone_is_at_every_place_equally_often() -> None:
    orders = [rotated(NAMES, number) for number in range(6)]
    for place in range(3):
        assert Counter(order[place] for order in orders) == {"a": 2, "b": 2, "c": 2}


def test_a_round_gives_everyone_one_turn_in_the_rotated_order() -> None:
    seen: list[str] = []
    policy = RoundPolicy(at_least=3, at_most=3)
    run_rounds(NAMES, turns_of(lambda n, i: 1.0, seen), reference="a", clock="wall", policy=policy)
    assert seen == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_steady_ratios_end_the_rounds_at_the_minimum() -> None:
    policy = RoundPolicy(at_least=5, at_most=40)
    # The machine doubles its time in every round; the ratios do not move.
    turns = run_rounds(
        NAMES,
        turns_of(lambda n, i: 2.0**i * (1 + NAMES.index(n)), []),
        reference="a",
        clock="wall",
        policy=policy,
    )
    assert [len(own) for own in turns.values()] == [5, 5, 5]


def test_one_unsteady_subject_keeps_all_going() -> None:
    policy = RoundPolicy(at_least=5, at_most=12)
    turns = run_rounds(
        NAMES,
        turns_of(lambda n, i: 1.0 + (n == "c") * i, []),
        reference="a",
        clock="wall",
        policy=policy,
    )
    assert [len(own) for own in turns.values()] == [12, 12, 12]


def test_the_clock_that_counts_is_the_one_asked_for() -> None:
    policy = RoundPolicy(at_least=5, at_most=12)
    take_turn = turns_of(lambda n, i: 1.0 + (n == "c") * i, [])  # cpu is always 1.0
    turns = run_rounds(NAMES, take_turn, reference="a", clock="cpu", policy=policy)
    assert len(turns["c"]) == 5


def test_out_of_time_a_few_rounds_are_enough() -> None:
    ticks = count(step=10.0)
    policy = RoundPolicy(at_least=7, at_most=40, seconds=5.0, at_least_slow=3)
    turns = run_rounds(
        NAMES,
        turns_of(lambda n, i: 1.0 + i, []),
        reference="a",
        clock="wall",
        policy=policy,
        now=lambda: next(ticks),
    )
    assert len(turns["a"]) == 3


def test_progress_is_told_after_every_round() -> None:
    told: list[int] = []
    policy = RoundPolicy(at_least=4, at_most=4)
    run_rounds(
        NAMES,
        turns_of(lambda n, i: 1.0, []),
        reference="a",
        clock="wall",
        policy=policy,
        tell=told.append,
    )
    assert told == [1, 2, 3, 4]


def test_a_missing_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="the reference 'd' is not among a, b, c"):
        run_rounds(
            NAMES,
            turns_of(lambda n, i: 1.0, []),
            reference="d",
            clock="wall",
            policy=RoundPolicy(),
        )


def test_a_policy_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="at_least_slow <= at_least <= at_most, got 3, 9, 8"):
        RoundPolicy(at_least=9, at_most=8)


@pytest.mark.parametrize(
    ("call_s", "calls"), [(1e-6, 100), (0.001, 30), (0.02, 2), (5.0, 1), (0.0, 100)]
)
def test_a_turn_takes_about_its_time(call_s: float, calls: int) -> None:
    assert calls_per_turn(call_s, RoundPolicy(turn_s=0.03)) == calls


def test_settled_means_every_ratio_not_every_time() -> None:
    times = [1.0, 3.0, 1.0, 3.0]
    steady = {
        "a": [Turn(wall=t, cpu=1) for t in times],
        "b": [Turn(wall=2 * t, cpu=1) for t in times],
    }
    assert is_settled(steady, "a", "wall", 0.01)
    steady["b"][1] = Turn(wall=60.0, cpu=1)
    assert not is_settled(steady, "a", "wall", 0.01)


def test_a_turn_is_its_median_call() -> None:
    assert Turn.of([3.0, 1.0, 2.0], [30.0, 10.0, 20.0]) == Turn(wall=2.0, cpu=20.0)


def test_one_thread_is_measured_in_processor_time() -> None:
    assert [clock_of(threads) for threads in (1, 2, 4)] == ["cpu", "wall", "wall"]
