from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from bench.agreement import DisagreementError, check_agreement, check_choice, drift

Array = npt.NDArray[np.float32]


def output() -> Array:
    return np.random.default_rng(1).standard_normal((2, 5, 4), dtype=np.float32)


def check(got: Array, expected: Array) -> float:
    return check_agreement("peer", got, expected, tolerance=1e-5, where="batch 2, length 5")


def test_rounding_is_no_disagreement() -> None:
    error = check(output() * np.float32(1 + 1e-6), output())
    assert 0 < error < 1e-5


def test_one_wrong_element_is_a_disagreement() -> None:
    wrong = output()
    wrong[1, 4, 3] += 0.01
    with pytest.raises(DisagreementError, match=r"peer at batch 2, length 5 differs .* by \d"):
        check(wrong, output())


def test_another_shape_is_a_disagreement() -> None:
    with pytest.raises(DisagreementError, match=r"gives float32 \(2, 4, 4\), the reference gives"):
        check(output()[:, :4], output())


def test_another_dtype_is_a_disagreement() -> None:
    with pytest.raises(DisagreementError, match="gives float64"):
        check(output().astype(np.float64), output())  # type: ignore[arg-type]


def test_nan_is_a_disagreement() -> None:
    wrong = output()
    wrong[0, 0, 0] = np.nan
    with pytest.raises(DisagreementError, match="by inf of the output's scale"):
        check(wrong, output())


def test_a_choice_is_judged_by_what_it_falls_short_of() -> None:
    logits = np.array([[1.0, 4.0, 3.8, -2.0]], np.float32)
    given: Any = {"tolerance": 0.1, "where": "prefill 4"}
    assert check_choice("peer", logits - 7, logits, **given) == 0
    near = check_choice("peer", np.array([2]), logits, **given)
    assert near == pytest.approx(0.05)
    with pytest.raises(DisagreementError, match=r"peer at prefill 4 chose token 0, .* by 7.5e-01"):
        check_choice("peer", np.array([0]), logits, **given)
    with pytest.raises(DisagreementError, match="peer at prefill 4 gives NaN"):
        check_choice("peer", logits * np.nan, logits, **given)


def test_a_drift_is_the_same_for_logits_and_log_probabilities() -> None:
    logits = output().reshape(1, -1)
    assert drift(logits - 3, logits) < 1e-6
    assert drift(logits * 1.5, logits) == pytest.approx(0.5, rel=1e-5)
