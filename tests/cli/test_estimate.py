"""How long the rest of an export takes, replayed from exports whose steps were timed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from causal_onnx.cli.estimate import Estimate, expected_seconds, size_of_checkpoint

MEASURED = {
    4.5: [0.03, 0.45, 4.45, 0.86, 0.48, 0.05, 0.58, 0.08, 0.27],
    35.3: [0.05, 1.21, 17.25, 4.5, 4.33, 2.23, 0.92, 0.53, 0.75],
    183.8: [0.04, 5.02, 35.1, 9.03, 9.83, 1.33, 1.39, 2.88, 1.76],
}
"""Megabytes of weights -> seconds of each step but drift, exporting Llamas of 1, 9 and 46 million
parameters to a folder."""
STEPS = list(expected_seconds(1, cache=True, drift=False, folder=True))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def replayed(megabytes: float, took: Sequence[float], *, parts: int = 4) -> list[tuple[float, ...]]:
    """By moment: seconds that are left, those that the estimate says, and the share done."""
    clock = Clock()
    size = int(megabytes * 1e6)
    estimate = Estimate(expected_seconds(size, cache=True, drift=False, folder=True), clock)
    found = []
    for step, seconds in zip(STEPS, took, strict=True):
        estimate.tell(step, 0.0)
        for _ in range(parts):
            left = sum(took) - clock.now
            found.append((left, estimate.seconds_left, estimate.share_done))
            clock.now += seconds / parts
    return found


@pytest.mark.parametrize("pace", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("megabytes", MEASURED)
def test_what_is_left_is_right_within_a_half_once_capturing_ends(
    megabytes: float, pace: float
) -> None:
    took = [pace * seconds for seconds in MEASURED[megabytes]]
    for left, said, _ in replayed(megabytes, took)[12:]:
        assert abs(said - left) <= 0.5 * left + 0.1 * sum(took) + 1.0


@pytest.mark.parametrize("megabytes", MEASURED)
def test_the_first_guess_comes_from_the_size(megabytes: float) -> None:
    left, said, share = replayed(megabytes, MEASURED[megabytes])[0]
    assert left / 2 <= said <= 2 * left
    assert share == 0.0


@pytest.mark.parametrize("megabytes", MEASURED)
def test_the_share_grows_and_is_never_all_before_the_end(megabytes: float) -> None:
    shares = [share for _, _, share in replayed(megabytes, MEASURED[megabytes])]
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] < 1.0


def test_a_step_that_says_nothing_goes_on_by_time_and_takes_longer_than_planned() -> None:
    clock = Clock()
    estimate = Estimate({"capture": 10.0, "compare": 10.0}, clock)
    estimate.tell("capture", 0.0)
    clock.now = 5.0
    assert estimate.share_done == pytest.approx(0.25)
    assert estimate.seconds_left == pytest.approx(15.0)
    clock.now = 100.0  # whatever comes is as slow
    assert estimate.seconds_left > 50.0
    assert estimate.share_done < 0.5


def test_a_step_that_is_made_again_is_counted_again() -> None:
    clock = Clock()
    estimate = Estimate({"capture": 10.0, "compare": 10.0}, clock)
    estimate.tell("compare", 0.5)
    clock.now = 10.0
    before = estimate.seconds_left
    estimate.tell("capture", 0.0)
    assert estimate.seconds_left > before


def test_a_step_that_is_not_in_the_table_changes_nothing() -> None:
    clock = Clock()
    estimate = Estimate({"capture": 10.0}, clock)
    estimate.tell("import", 0.0)
    clock.now = 50.0
    estimate.tell("capture", 0.0)
    assert estimate.seconds_left == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.1, "1 s left"), (30.0, "30 s left"), (400.0, "about 7 min left")]
)
def test_what_is_left_in_words(seconds: float, words: str) -> None:
    estimate = Estimate({"capture": seconds}, Clock())
    assert str(estimate) == words


def test_what_does_not_happen_is_not_expected() -> None:
    plain = expected_seconds(10**9, cache=False, drift=False, folder=False)
    assert {"cache", "drift", "folder"} & plain.keys() == set()
    assert "drift" in expected_seconds(1, cache=True, drift=True, folder=True)


def test_the_size_of_a_checkpoint_is_that_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    (tmp_path / "b.safetensors").write_bytes(b"123")
    (tmp_path / "tokenizer.json").write_bytes(b"1")
    assert size_of_checkpoint(tmp_path) == 8
    assert size_of_checkpoint(tmp_path / "a.safetensors") == 5
    assert size_of_checkpoint(tmp_path / "absent") == 0
