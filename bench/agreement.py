"""Subjects must compute the same thing before their times mean anything."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.runtime.artifact.golden import relative_error

__all__ = ["DisagreementError", "check_agreement", "check_choice", "check_tokens", "drift"]


class DisagreementError(Exception):
    """A subject computes something else than the reference."""


def check_agreement(
    name: str, got: npt.NDArray[Any], expected: npt.NDArray[Any], *, tolerance: float, where: str
) -> float:
    """Give the largest difference relative to the scale of the reference's output.

    Raises:
        DisagreementError: It exceeds `tolerance`, or shape, dtype or NaNs differ.
    """
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise DisagreementError(
            f"{name} at {where} gives {got.dtype} {got.shape}, the reference gives "
            f"{expected.dtype} {expected.shape}; its times would mean nothing"
        )
    error = relative_error(got, expected)
    if not error <= tolerance:
        raise DisagreementError(
            f"{name} at {where} differs from the reference by {error:.1e} of the output's scale, "
            f"allowed are {tolerance:.0e}; its times would mean nothing"
        )
    return error


def check_choice(
    name: str, got: npt.NDArray[Any], expected: npt.NDArray[Any], *, tolerance: float, where: str
) -> float:
    """Give by how much the choice of a peer falls short of the reference's best logit.

    Args:
        name: Of the peer.
        got: (1, vocab) logits up to a constant, or (1,) the token that it chose.
        expected: (1, vocab) logits.
        tolerance: Of the largest logit's size.
        where: For the message.

    Raises:
        DisagreementError: It exceeds `tolerance`.
    """
    if not np.isfinite(got).all():
        raise DisagreementError(f"{name} at {where} gives NaN; its times would mean nothing")
    chosen = int(got.argmax()) if got.shape == expected.shape else int(got[0])
    error = float((expected.max() - expected[0, chosen]) / np.abs(expected).max())
    if not error <= tolerance:
        raise DisagreementError(
            f"{name} at {where} chose token {chosen}, which falls short of the reference's best by "
            f"{error:.1e} of the output's scale, allowed are {tolerance:.0e}; its times would mean "
            "nothing"
        )
    return error


def drift(got: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    """The root of the mean square of a difference by that of `expected`, both without their mean.

    Softmax does not see the mean: log-probabilities can be compared with logits.
    """
    centred = [x.astype(np.float64) - x.mean(dtype=np.float64) for x in (got, expected)]
    return float(np.linalg.norm(centred[0] - centred[1]) / np.linalg.norm(centred[1]))


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
