"""A model whose rows share buffers, and a server on a free port of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

MISSING = [name for name in ("starlette", "uvicorn", "httpx") if find_spec(name) is None]

STORIES = Path(__file__).parent.parent / "data" / "real" / "baby105"


class WithoutServer(pytest.Module):
    """Tests of which none can run here: not even what they import is there."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip(f"serving needs {', '.join(MISSING)}", allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    return WithoutServer.from_parent(parent, path=module_path) if MISSING else None


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a trained checkpoint becomes: 105 characters, 256 positions."""
    pytest.importorskip("torch", reason="a checkpoint is exported with PyTorch")
    from causal_onnx.export import export_checkpoint

    folder = tmp_path_factory.mktemp("served") / "stories"
    export_checkpoint(STORIES, folder, effort="quick")
    return folder


@pytest.fixture(scope="session")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same trained model, which returns its attention weights too."""
    pytest.importorskip("transformers", reason="the checkpoint is exported anew")
    from examples.serving.maps import export_maps

    return export_maps(tmp_path_factory.mktemp("maps") / "maps")


@pytest.fixture(scope="session")
def chatty(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a chat template, and no manifest that this would contradict."""
    from tests.serve.models import with_template

    return with_template(stories, tmp_path_factory.mktemp("served") / "chatty")


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights that can write every byte, and so JSON too."""
    for name in ("tokenizers", "jinja2", "llguidance"):
        pytest.importorskip(name, reason="text needs the extra `text`")
    from tests.serve.models import write_talker

    return write_talker(tmp_path_factory.mktemp("served") / "talker")


@pytest.fixture(scope="session")
def address(stories: Path, chatty: Path, talker: Path) -> Iterator[str]:
    """Where a server with these models, and with fixtures, listens."""
    from causal_onnx.serve import ServeOptions, open_models
    from tests.serve.serving import served

    fixtures = Path(__file__).parent.parent / "runtime" / "fixtures"
    places = [str(stories), str(chatty), str(talker), str(fixtures / "language.onnx")]
    others = [str(fixtures / f"{name}.onnx") for name in ("small", "decoder")]
    models = open_models([*places, *others], threads=1)
    with served(models, ServeOptions(ping_s=60)) as found:
        yield found
