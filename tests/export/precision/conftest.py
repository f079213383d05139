from __future__ import annotations

from collections.abc import Iterator

import pytest

from causal_onnx.export.capture.kept import reusing_captures


@pytest.fixture(autouse=True, scope="module")
def captured_once() -> Iterator[None]:
    """A module that several tests of a file export is captured by the first: its codes are tested
    here, which are made of the captured graph in each."""
    with reusing_captures():
        yield
