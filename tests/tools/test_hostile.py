"""The generator of hostile graphs makes every operator, finds crashes, and none behind the scan."""

from __future__ import annotations

from itertools import count

import onnx
import pytest
from onnx import numpy_helper
from tools.fuzz.hostile import OPERATORS, hostile_model
from tools.fuzz.hostile_run import run_hostile

from causal_onnx.runtime import ArtifactError, Limits, read_artifact
from causal_onnx.runtime.scan import scan

LEAST = -(2**63)


def passes(content: bytes) -> bool:
    try:
        scan(read_artifact(content), Limits())
    except ArtifactError:
        return False
    return True


def seeds_of(index: int) -> range:
    return range(index, index + 60 * len(OPERATORS), len(OPERATORS))


def deadly_seed() -> int:
    """A graph that divides the least number by -1."""
    for seed in count(OPERATORS.index(("", "Div")), len(OPERATORS)):
        graph = onnx.load_from_string(hostile_model(seed)).graph
        held = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
        for node in graph.node:
            if node.op_type == "Div" and set(node.input) <= set(held):
                first, second = (held[name] for name in node.input)
                if first.tolist() == [LEAST] and second.tolist() == [-1]:
                    return seed
    raise AssertionError


@pytest.mark.parametrize("part", range(4))
def test_some_graph_about_each_operator_passes_the_scan(part: int) -> None:
    """Else the scan refuses all of them, and that none does harm says nothing."""
    for index in range(part, len(OPERATORS), 4):
        assert any(passes(hostile_model(seed)) for seed in seeds_of(index)), OPERATORS[index]


def test_a_graph_is_about_its_operator() -> None:
    domain, op_type = OPERATORS[40]
    graph = onnx.load_from_string(hostile_model(40)).graph
    assert (domain, op_type) in {(node.domain, node.op_type) for node in graph.node}


def test_what_passes_the_scan_does_no_harm(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_hostile(60, limit_s=60, trusted=False) == 0
    assert "60" in capfd.readouterr().out


def test_without_the_scan_a_crash_is_found(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_hostile(1, first=deadly_seed(), limit_s=60, trusted=True) == 1
    assert "crash: seed" in capfd.readouterr().err
    assert run_hostile(1, first=deadly_seed(), limit_s=60, trusted=False) == 0
