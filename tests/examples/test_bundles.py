"""How the bundles of the examples are made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from causal_onnx.models import tiny_llama_config
from examples.bundles import LANGUAGE_MODEL, make_bundles


def contract_of_a_trained_model(folder: Path, *, train_steps: int = 3) -> bytes:
    """Its contract.json, which holds the hash of each file."""
    config = replace(tiny_llama_config(), num_layers=1)
    (path,) = make_bundles(folder, train_steps=train_steps, only=(LANGUAGE_MODEL,), config=config)
    return (path / "contract.json").read_bytes()


def test_two_builds_make_the_same_model(tmp_path: Path) -> None:
    first = contract_of_a_trained_model(tmp_path / "first")
    assert contract_of_a_trained_model(tmp_path / "second") == first
    assert contract_of_a_trained_model(tmp_path / "third", train_steps=4) != first
