"""Broken graphs and broken modules are rejected, with the right node named."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from causal_onnx.export.attestation import attest
from tests.export.analysis.exporting import export_dynamo, input_names
from tests.zoo import GRAPH_MUTANTS, GRAPHS
from tests.zoo.mutants import MUTANTS, Mutant

BROKEN = [
    pytest.param(graph, mutant, broken, id=f"{graph.name}-{mutant.name}")
    for graph in GRAPHS
    for mutant in GRAPH_MUTANTS
    if (broken := mutant.mutate(graph.model())) is not None
]

CORE = frozenset({"Softmax", "Attention", "MultiHeadAttention", "GroupQueryAttention", "MatMul"})
"""For a broken mask, the attention that reads it may be named instead."""


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda graph: graph.name)
def test_every_good_graph_is_accepted_for_every_length(graph) -> None:
    found = attest(graph.model())
    assert found.verdict == "causal", str(found)
    assert found.every_length, found.open_step


@pytest.mark.parametrize(("graph", "mutant", "broken"), BROKEN)
def test_every_broken_graph_is_found_out_from_the_graph_alone(
    graph,
    mutant,
    broken: onnx.ModelProto,
):
    found = attest(broken, dynamic=False)
    if mutant.kind == "leak":
        assert found.verdict == "not_causal", str(found)
        assert found.offence is not None
        assert found.offence.op_type == mutant.breaks or found.offence.op_type in CORE
        return
    whole = attest(graph.model(), dynamic=False)
    assert {core.footprint for core in found.cores} != {core.footprint for core in whole.cores}


def exported(mutant: Mutant, path: Path) -> tuple[Path, dict[str, dict[int, str]]]:
    past = any(name in ("past_seq", "total_seq") for own in mutant.axes for name in own.values())
    inputs = mutant.inputs(3, 7, 5) if past else mutant.inputs(3, 7)
    names = input_names(mutant.roles)
    export_dynamo(mutant.factory(), inputs, mutant.axes, path, names=names, opset=20)
    return path, {n: dict(own) for n, own in zip(names, mutant.axes, strict=True)}


QUICK = {
    "mask_dropped",
    "mask_after_softmax",
    "mean_over_time",
    "conv_symmetric",
    "time_reversed",
    "mask_window_one_too_wide",
    "length_divides",
}

NOT_EXPORTED = {"length_positions_stretched"}
"""The exporter refuses torch.linspace with a length that is free."""

GIVEN = {m.name for m in MUTANTS if "given" in m.roles}
"""A mask that the caller gives, or a memory: a plain graph does not say that it is one."""

NO_TRACE = {"length_switches_path"}
"""The exporter bakes the branch of its example; its guards say so, the graph does not."""


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(m, id=m.name, marks=[] if m.name in QUICK else [pytest.mark.slow])
        for m in MUTANTS
        if m.name not in NOT_EXPORTED | NO_TRACE | GIVEN
    ],
)
def test_every_broken_module_is_found_out(mutant: Mutant, tmp_path: Path) -> None:
    path, axes = exported(mutant, tmp_path / "m.onnx")
    alone, found = attest(path, axes=axes, dynamic=False), attest(path, axes=axes)
    if mutant.kind == "leak":
        assert alone.verdict == "not_causal", str(alone)
        assert found.dynamic.leaks or found.dynamic.skipped
        assert alone.offence is not None
        assert alone.offence.op_type
    elif mutant.kind == "length":
        assert found.length_dependent
    else:
        words = {c.footprint.replace("causal window ", "window:") for c in found.cores}
        assert words - {"causal"} or mutant.declared != "causal"
        assert mutant.declared not in words - {"causal"}
