from __future__ import annotations

from collections.abc import Iterator

import pytest

from causal_onnx.export.capture.kept import reusing_captures


@pytest.fixture(autouse=True, scope="module")
def captured_once() -> Iterator[None]:
    """A module that several tests of a file export is captured by the first of them. What they
    test is made of the captured graph in each; what tests capturing makes its module anew."""
    with reusing_captures():
        yield
