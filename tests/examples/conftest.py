from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from causal_onnx.export import export_checkpoint
from causal_onnx.models import tiny_llama_config
from examples.bundles import BLOCK, MAPS, PREFIX, SERVED, make_bundles


@pytest.fixture(scope="session")
def bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles with random weights, each in a folder of its name."""
    folder = tmp_path_factory.mktemp("bundles")
    config = replace(tiny_llama_config(), num_layers=1)
    make_bundles(folder, train_steps=0, only=(*SERVED, MAPS, PREFIX + BLOCK), config=config)
    return folder


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a trained checkpoint becomes."""
    folder = tmp_path_factory.mktemp("stories") / "model"
    export_checkpoint(
        Path(__file__).parent.parent / "data" / "real" / "baby105", folder, effort="quick"
    )
    return folder
