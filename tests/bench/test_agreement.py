from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from bench.agreement import DisagreementError, check_agreement

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
