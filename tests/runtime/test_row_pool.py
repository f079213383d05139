"""Rows of shared buffers; what a real model makes of them is tested with the server."""

from __future__ import annotations

import pytest

from causal_onnx.runtime import load
from causal_onnx.runtime.stream.row_pool import RowPool
from tests.runtime.artifacts import fixture


@pytest.mark.parametrize("name", ["language", "cached", "small"])
def test_a_cache_that_is_not_shared_is_refused(name: str) -> None:
    model = load(fixture(name), threads=1)
    assert not RowPool.fits(model.runner)
    with pytest.raises(ValueError, match="give each sequence a stream of its own"):
        RowPool(model.runner, rows=2, capacity=8)
