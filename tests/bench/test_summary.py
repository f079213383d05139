from __future__ import annotations

import math

import pytest

from bench.summary import paired_ratios, summarise


def test_median_and_quartiles_are_interpolated() -> None:
    summary = summarise([4.0, 1.0, 3.0, 2.0, 100.0])
    assert (summary.q1, summary.median, summary.q3, summary.count) == (2.0, 3.0, 4.0, 5)
    assert summarise([1.0, 2.0]).median == 1.5


def test_one_value_is_its_own_quartiles() -> None:
    summary = summarise([2.5])
    assert (summary.q1, summary.median, summary.q3) == (2.5, 2.5, 2.5)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_what_has_no_median_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected finite numbers"):
        summarise(values)


def test_uncertainty_falls_with_the_root_of_the_rounds() -> None:
    few, many = summarise([0.9, 1.0, 1.1] * 3), summarise([0.9, 1.0, 1.1] * 12)
    assert few.uncertainty == pytest.approx(2 * many.uncertainty)


def test_uncertainty_of_normal_noise_is_the_standard_error_of_the_median() -> None:
    # 1.253 sigma / sqrt(n); the quartiles of a normal distribution are 1.349 sigma apart.
    values = [10 + 0.6745 * sign for sign in (-1, 0, 1)] * 100
    assert summarise(values).uncertainty == pytest.approx(1.253 / math.sqrt(300) / 10, rel=1e-3)


def test_nothing_is_certain_about_a_median_of_zero() -> None:
    assert summarise([0.0, 0.0]).uncertainty == math.inf


def test_paired_ratios_cancel_what_slows_down_a_whole_round() -> None:
    slowdown = [1.0, 7.0, 2.0]
    ratios = paired_ratios([3.0 * by for by in slowdown], [2.0 * by for by in slowdown])
    assert ratios == [1.5, 1.5, 1.5]


def test_ratios_of_different_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rounds against 1 of the reference"):
        paired_ratios([1.0, 2.0], [1.0])
