"""The guards of an exported program, read as the set of valid sizes."""

from __future__ import annotations

import math

import pytest
import torch

from causal_onnx.export.domain import Domain
from causal_onnx.export.errors import ExportError
from causal_onnx.export.inputs import Sizes, describe_inputs

SPECS = describe_inputs(["x"], [torch.zeros(3, 7, 16)], None)


def domain(*guards: str, **ranges: tuple[int, float]) -> Domain:
    return Domain(guards, SPECS, ranges)


@pytest.mark.parametrize(
    ("guards", "limit"),
    [
        ([], None),
        (["L['inputs'][0].size()[1] <= 24"], 24),
        (["L['inputs'][0].size()[1] == min(24, L['inputs'][0].size()[1])"], 24),
        (["L['inputs'][0].size()[1] != 1", "L['inputs'][0].size()[1] != 24"], None),
        (["2*L['inputs'][0].size()[1] < 50"], 24),
        (["L['inputs'][0].size()[2] == 16"], None),
    ],
)
def test_largest_length(guards: list[str], limit: int | None) -> None:
    assert domain(*guards).max_seq_len() == limit


def test_range_of_a_symbol_is_a_limit() -> None:
    assert domain(seq=(2, 32.0)).max_seq_len() == 32
    assert domain(seq=(2, math.inf)).max_seq_len() is None


def test_one_length_only_is_refused() -> None:
    with pytest.raises(ExportError, match="no length satisfies its guards"):
        domain("L['inputs'][0].size()[1] == 5000").max_seq_len()


def test_refusal_names_the_guard() -> None:
    guard = "L['inputs'][0].size()[0] <= 4"
    assert domain(guard).refusal(Sizes(batch=5, seq=3)) == guard
    assert domain(guard).refusal(Sizes(batch=4, seq=3)) is None


def test_guard_about_something_else_is_no_refusal() -> None:
    assert domain("L['inputs'][0].device.type == 'cpu'").max_seq_len() is None
