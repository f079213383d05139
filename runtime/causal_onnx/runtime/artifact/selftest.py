"""What replaying the golden vectors of a file found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from causal_onnx.runtime.artifact.golden import json_number

__all__ = ["SelfTestCase", "SelfTestReport"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestCase:
    """One golden vector, replayed."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of the inputs."""
    error: float
    """Largest error relative to each output's scale; infinite where shapes or NaNs differ."""
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestReport:
    """Whether this runtime repeats what PyTorch computed."""

    cases: tuple[SelfTestCase, ...]
    tolerance: float
    device: str

    @property
    def passed(self) -> bool:
        return bool(self.cases) and all(case.passed for case in self.cases)

    @property
    def max_error(self) -> float:
        return max((case.error for case in self.cases), default=math.inf)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: an infinite error is None."""
        cases = [{**asdict(case), "error": json_number(case.error)} for case in self.cases]
        return {
            **asdict(self),
            "cases": cases,
            "passed": self.passed,
            "max_error": json_number(self.max_error),
        }
