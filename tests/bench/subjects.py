"""Subjects for tests: numpy stands for the libraries, so that a worker starts in no time."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.attention.cases import make_input
from bench.worker import Forward, Prepare

WIDTH = 4


def _cumulative(case: Mapping[str, Any]) -> npt.NDArray[np.float32]:
    return np.cumsum(make_input(case, WIDTH), axis=1)


def right(*, threads: int, **setup: Any) -> Prepare:
    return lambda case: lambda: _cumulative(case)


def chatty(*, threads: int, **setup: Any) -> Prepare:
    """Prints where the replies go, as libraries do."""

    def prepare(case: Mapping[str, Any]) -> Forward:
        print("hello from the library")
        os.write(1, b"and from its C part\n")
        return lambda: _cumulative(case)

    return prepare


def acausal(*, threads: int, **setup: Any) -> Prepare:
    """Sees one position of the future."""
    return lambda case: lambda: np.roll(_cumulative(case), -1, axis=1)


def refuses_five(*, threads: int, **setup: Any) -> Prepare:
    def prepare(case: Mapping[str, Any]) -> Forward:
        if case["seq"] == 5:
            raise ValueError("length 5 is not to my taste")
        return lambda: _cumulative(case)

    return prepare


def dies_when_timed(*, threads: int, **setup: Any) -> Prepare:
    """Warms up, and ends the process in its first timed call (garbage collection is off there)."""

    def prepare(case: Mapping[str, Any]) -> Forward:
        def forward() -> Any:
            if not gc.isenabled():
                os._exit(3)
            return _cumulative(case)

        return forward

    return prepare


def hungry(*, threads: int, **setup: Any) -> Prepare:
    """Touches `seq` MB during a call, and keeps nothing."""

    def prepare(case: Mapping[str, Any]) -> Forward:
        return lambda: float(np.ones(case["seq"] * 125_000).sum())

    return prepare


def broken(*, threads: int, **setup: Any) -> Prepare:
    raise RuntimeError("no compiler found\nsecond line")


def dead(*, threads: int, **setup: Any) -> Prepare:
    os._exit(7)


def tells_environment(*, threads: int, **setup: Any) -> Prepare:
    """Refuses with what it sees, for the test to read."""
    names = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "ORT_DISABLE_TELEMETRY")
    raise RuntimeError(str({name: os.environ.get(name) for name in names} | {"threads": threads}))
