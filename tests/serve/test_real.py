"""A second trained model: GPT-2's layout, ids alone, a context shorter than a chunk."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from causal_onnx.runtime import load
from causal_onnx.serve import Engine

pytest.importorskip("torch", reason="a checkpoint is exported with PyTorch")
SORTER = Path(__file__).parents[1] / "data" / "real" / "gpt-nano-sort"


@pytest.mark.slow
def test_a_model_that_sorts_sorts_many_at_once(tmp_path: Path) -> None:
    from causal_onnx.export import export_checkpoint

    export_checkpoint(SORTER, tmp_path / "sorter", effort="quick")
    inputs = [list(digits) for digits in product(range(3), repeat=6)][::9]
    with Engine(load(tmp_path / "sorter", threads=1)) as engine:
        begun = [engine.prepare(digits, max_new_tokens=6) for digits in inputs]
        for start in range(0, len(begun), 50):
            engine.enqueue(begun[start : start + 50])
            found = [list(item.results()[0].ids) for item in begun[start : start + 50]]
            assert found == [sorted(digits) for digits in inputs[start : start + 50]]
