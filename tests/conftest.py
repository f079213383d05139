"""Which tests share a process where several run them: those that share what is slow to make."""

from __future__ import annotations

from typing import Any

import pytest

TOGETHER = (
    "tests/demo/",
    "tests/examples/",
    "tests/serve/",
    "tests/test_site.py",
    "tests/tools/test_zoo_check.py",
)
"""Places of which one process runs all tests: their fixtures export for seconds. Marks of
`--dist loadgroup` have no effect with pytest 9."""

BY_FILE = ("tests/cli/", "tests/export/", "tests/exported/", "tests/models/", "tests/runtime/")
"""Folders of which one process runs all tests of a file: they share fixtures and captures."""


def unit_of(test: str) -> str:
    """What goes to a process as a whole: a place, a file, or the test (its node id) alone."""
    for place in TOGETHER:
        if test.startswith(place):
            return place
    return test.partition("::")[0] if test.startswith(BY_FILE) else test


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out the units with the most tests first, and single tests in their order."""
    if config.getvalue("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    return Together(config, log)
