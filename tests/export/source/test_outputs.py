"""Names and axes of outputs, from two calls."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export.errors import ExportError
from causal_onnx.export.source.inputs import CallSizes
from causal_onnx.export.source.meaning import find_meanings
from causal_onnx.export.source.module import open_source
from causal_onnx.export.source.outputs import describe_outputs, dtype_name
from causal_onnx.runtime.contract import TensorSpec
from tests.export.modules import DIM, VOCAB, example, token_ids


class Does(nn.Module):
    """A table, and what `run` does with it and the input."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.table, self.run = nn.Embedding(VOCAB, DIM), run

    def forward(self, x: Tensor, past: Tensor | None = None) -> Any:
        given = self.table(x) if x.dtype == torch.int64 else x
        return self.run(given) if past is None else self.run(given, past)


def outputs(run: Callable[..., Any], *inputs: Tensor) -> dict[str, TensorSpec]:
    source, specs = open_source(Does(run).eval(), inputs or (example(),), None)
    specs = find_meanings(source.fresh(), specs)
    past = 3 if len(inputs) > 1 else 0
    first, second = CallSizes(batch=2, seq=6, past=past), CallSizes(batch=3, seq=7, past=3 * past)
    return {spec.name: spec for spec in describe_outputs(source, specs, first, second)}


def test_axes_are_what_follows_the_sizes() -> None:
    found = outputs(lambda x: x[:, None])["output"]
    assert found.axes == ("batch", 1, "seq", DIM)
    assert found.dtype == "float32"


def test_scores_over_the_vocabulary_of_the_ids_are_logits() -> None:
    found = outputs(lambda x: x.sum(-1, keepdim=True).expand(-1, -1, VOCAB), token_ids())
    assert list(found) == ["logits"]


def test_another_width_is_no_logits() -> None:
    assert list(outputs(lambda x: x, token_ids())) == ["output"]


def test_fields_keep_their_names() -> None:
    @dataclasses.dataclass
    class Result:
        hidden: Tensor
        weights: Tensor

    assert list(outputs(lambda x: dataclasses.asdict(Result(x, x.sum(-1))))) == [
        "hidden",
        "weights",
    ]


def test_an_output_does_not_take_the_name_of_an_input() -> None:
    assert list(outputs(lambda x: {"x": x})) == ["x_out"]


def test_past_and_new_positions_together_are_total_seq() -> None:
    past = torch.zeros(2, 1, 3, DIM)
    found = outputs(lambda x, past: torch.cat((past[:, 0], x), 1), example(), past)
    assert found["output"].axes == ("batch", "total_seq", DIM)


def test_an_axis_that_merges_batch_and_length_is_refused() -> None:
    message = "axis 0 of output 'output' has size 12 at batch 2, seq 6 and 21 at batch 3, seq 7"
    with pytest.raises(ExportError, match=message):
        outputs(lambda x: x.flatten(0, 1))


def test_outputs_whose_number_follows_the_length_are_refused() -> None:
    with pytest.raises(ExportError, match="the number or rank of the outputs changes"):
        outputs(lambda x: list(x.unbind(1)))


def test_dtypes_are_named_as_in_the_contract() -> None:
    assert dtype_name(torch.bfloat16) == "bfloat16"
