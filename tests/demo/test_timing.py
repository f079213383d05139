from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from examples.demo import timing
from examples.demo.timing import Timing, interleave, torch_threads


class FakeClock:
    """A clock that only the calls it is timing move."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter

    def takes(self, seconds: float, log: list[float]) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds
            log.append(seconds)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    fake = FakeClock()
    monkeypatch.setattr(timing, "time", fake)
    return fake


def test_each_call_gets_its_own_time(clock: FakeClock) -> None:
    log: list[float] = []
    first, second = interleave(clock.takes(0.002, log), clock.takes(0.006, log))
    assert (first, second) == pytest.approx((2.0, 6.0))


def test_the_calls_take_turns(clock: FakeClock) -> None:
    log: list[float] = []
    interleave(clock.takes(0.5, log), clock.takes(0.25, log), rounds=3)
    warm_up, rounds = log[:4], log[4:]
    assert warm_up == [0.5, 0.5, 0.25, 0.25]
    assert rounds == [0.5, 0.5, 0.25, 0.25] * 3  # one untimed, one timed


def test_slow_calls_get_fewer_rounds(clock: FakeClock) -> None:
    log: list[float] = []
    interleave(clock.takes(3.0, log), clock.takes(3.0, log), rounds=99)
    assert len(log) == 4 + 4 * timing.FEWEST_ROUNDS


def test_the_ratio_is_the_files_time_over_pytorchs() -> None:
    assert Timing(batch=1, seq=8, onnx_ms=1.0, torch_ms=4.0).ratio == 0.25


def test_pytorchs_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
