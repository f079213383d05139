from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="module")
def captured_once() -> None:
    """Not here, where capturing is what is tested."""
