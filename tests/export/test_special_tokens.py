"""What ends a text by a model's configuration stands in the file, and ends it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from causal_onnx.export.source.inputs import InputSpec
from causal_onnx.export.source.language import special_tokens
from causal_onnx.models import DecoderLM, tiny_llama_config
from causal_onnx.runtime import load
from tests.export.quick import quick_export


def said_by(**configurations: Any) -> tuple[tuple[int, ...], int | None, int | None, int]:
    """The special tokens of a module with 67 ids, and how many warnings there are."""
    module = torch.nn.Identity()
    for name, values in configurations.items():
        setattr(module, name, SimpleNamespace(**values))
    ids = torch.zeros(1, 2, dtype=torch.int64)
    axes = {0: "batch", 1: "seq"}
    spec = InputSpec(name="input_ids", example=ids, axes=axes, kind="ids", vocab_size=67)
    found = special_tokens(module, [spec])
    return found.eos, found.bos, found.pad, len(found.warnings)


@pytest.mark.parametrize(
    ("configurations", "expected"),
    [
        ({}, ((), None, None, 0)),
        ({"config": {"eos_token_id": 2, "bos_token_id": 1}}, ((2,), 1, None, 0)),
        ({"config": {"eos_token_id": [2, 5, 2], "pad_token_id": 0}}, ((2, 5), None, 0, 0)),
        ({"config": {"eos_token_id": None, "pad_token_id": -1}}, ((), None, None, 0)),
        ({"config": {"eos_token_id": 50256}}, ((), None, None, 1)),
        (
            {"generation_config": {"eos_token_id": [5]}, "config": {"eos_token_id": 2}},
            ((5,), None, None, 0),
        ),
    ],
)
def test_special_tokens_are_those_that_generating_goes_by(
    configurations: dict[str, Any], expected: object
) -> None:
    assert said_by(**configurations) == expected


def test_a_file_alone_stops_where_the_configuration_says(tmp_path: Path) -> None:
    module = DecoderLM(tiny_llama_config(), seed=0)
    plain = quick_export(module, tmp_path / "plain.onnx", cache=True)
    ids = plain.generate([5, 3, 8], max_new_tokens=6).ids
    module.generation_config = SimpleNamespace(eos_token_id=[ids[4], ids[2]])
    quick_export(module, tmp_path / "model.onnx", cache=True)
    found = load((tmp_path / "model.onnx").read_bytes()).generate([5, 3, 8], max_new_tokens=6)
    first = min(ids.index(ids[4]), ids.index(ids[2]))
    assert (found.finish, found.ids) == ("stop", ids[: first + 1])
