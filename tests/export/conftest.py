from __future__ import annotations

import hashlib
import pickle
from collections.abc import Hashable, Iterator

import pytest
from torch import nn

from causal_onnx.export.capture.kept import Kept, reusing_captures

MOST_WEIGHTS = 1 << 20
"""Larger modules are not pickled to be compared."""


def content_of(module: nn.Module) -> Hashable:
    """The same for two modules of one class with the same weights and settings."""
    if sum(weight.numel() for weight in module.parameters()) <= MOST_WEIGHTS:
        try:
            return hashlib.sha256(pickle.dumps(module)).digest()
        except (AttributeError, TypeError, pickle.PicklingError):
            pass  # of a class inside a function, say
    return id(module)


KEPT = Kept(identity=content_of)


@pytest.fixture(autouse=True, scope="module")
def captured_once() -> Iterator[None]:
    """A module that several tests of a process export is captured by the first of them. What they
    test is made of the captured graph in each; what tests capturing keeps none."""
    with reusing_captures(KEPT):
        yield
    KEPT.forget_all_but(100)
