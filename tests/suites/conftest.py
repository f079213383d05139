"""What `make suites` runs, in an environment of its own (`requirements-suites.lock`)."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STORIES = ROOT / "build" / "suites" / "stories"
"""A trained model of 105 characters and 256 positions; `make suites` exports it."""


class NotHere(pytest.Module):
    """Tests whose suite is not installed."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip("run by make suites", allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    return (
        NotHere.from_parent(parent, path=module_path) if find_spec("schemathesis") is None else None
    )


@pytest.fixture(scope="session")
def stories() -> Path:
    if not (STORIES / "model.onnx").is_file():
        pytest.skip(f"there is no {STORIES.relative_to(ROOT)}: make suites exports it")
    return STORIES


@pytest.fixture(scope="session")
def chatty(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template."""
    from tests.serve.models import with_template

    return with_template(stories, tmp_path_factory.mktemp("served") / "chatty")


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that can write every byte, and so JSON too."""
    from tests.serve.models import write_talker

    return write_talker(tmp_path_factory.mktemp("served") / "talker")


@pytest.fixture(scope="session")
def address(stories: Path, chatty: Path, talker: Path) -> Iterator[str]:
    """Where a server with these models listens."""
    from causal_onnx.serve import ServeOptions, open_models
    from tests.serve.serving import served

    places = [str(stories), str(chatty), str(talker)]
    with served(open_models(places, threads=1), ServeOptions(ping_s=60)) as found:
        yield found
