from __future__ import annotations

from collections.abc import Iterator

import pytest

from causal_onnx.export.capture.kept import Kept, reusing_captures
from tests.export.content import content_of

KEPT = Kept(key_of=content_of)
MOST_KEPT = 100


@pytest.fixture(autouse=True, scope="module")
def captured_once() -> Iterator[None]:
    """A module that several tests of a process export is captured by the first of them. What they
    test is made of the captured graph in each; what tests capturing keeps none."""
    with reusing_captures(KEPT):
        yield
    KEPT.forget_all_but(MOST_KEPT)
