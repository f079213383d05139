"""Checks of sizes and options; each error names the value and what was expected."""

from __future__ import annotations

import math

__all__ = [
    "check_at_least",
    "check_choice",
    "check_positive",
    "check_probability",
    "check_size",
]


def check_size(name: str, value: int) -> None:
    """Refuse what is not an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_positive(name: str, value: float) -> None:
    """Refuse what is not a finite number above 0."""
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def check_at_least(name: str, value: float, least: float) -> None:
    """Refuse what is not a finite number of at least `least`."""
    if not (value >= least and math.isfinite(value)):
        raise ValueError(f"{name} must be finite and at least {least}, got {value}")


def check_probability(name: str, value: float) -> None:
    """Refuse what is not in [0, 1): at 1 a dropout would leave nothing."""
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse what is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
