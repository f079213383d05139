"""Which tests share a process where several run them: those that share what is slow to make."""

from __future__ import annotations

from typing import Any

import pytest

TOGETHER = (
    "tests/demo/",
    "tests/examples/",
    "tests/export/cache/test_derive.py",
    "tests/export/cache/test_linear_attention.py",
    "tests/export/cache/test_once.py",
    "tests/export/cache/test_states.py",
    "tests/export/lower/test_chunked_calls.py",
    "tests/export/lower/test_grouped.py",
    "tests/export/test_adapters.py",
    "tests/export/test_encoder_decoder.py",
    "tests/export/test_encoder_decoder_checkpoint.py",
    "tests/exported/test_first_positions.py",
    "tests/exported/test_generate.py",
    "tests/exported/test_generate_huggingface.py",
    "tests/exported/test_interrupts.py",
    "tests/exported/test_stream.py",
    "tests/serve/test_adapters.py",
    "tests/test_site.py",
    "tests/tools/test_zoo_check.py",
)
"""Folders and files of which one process runs all tests: their fixtures export for seconds, or
their tests use one capture. Marks of `--dist loadgroup` have no effect with pytest 9."""


def unit_of(test: str) -> str:
    """What goes to a process as a whole: one of `TOGETHER`, or the test (its node id) alone."""
    return next((place for place in TOGETHER if test.startswith(place)), test)


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
