"""The scan of untrusted files lets the graphs of the analysis' rules pass."""

from __future__ import annotations

import pytest

from causal_onnx.runtime import ArtifactError, Limits, read_artifact
from causal_onnx.runtime.scan import scan
from causal_onnx.runtime.scan.rules.table import ALLOWED

from .rule_cases import CASES, Case

CONTROL = {"loop_of_fixed_trips"}
"""Control flow that no export has."""


def is_listed(case: Case) -> bool:
    """Whether the list has all operators; the analysis knows some of other tools."""
    nodes = [(node.domain, node.op_type) for node in case.model().graph.node]
    read_by_the_checker = {("", "If"), ("", "Loop"), ("", "Scan"), ("", "SequenceMap")}
    return all(node in ALLOWED or node in read_by_the_checker for node in nodes)


@pytest.mark.parametrize(
    "case", [case for case in CASES if is_listed(case)], ids=lambda case: case.name
)
def test_the_graphs_of_the_rules_pass_the_scan(case: Case) -> None:
    artifact = read_artifact(case.model().SerializeToString())
    if case.name in CONTROL:
        with pytest.raises(ArtifactError, match="carries values"):
            scan(artifact, Limits())
    else:
        scan(artifact, Limits()).close()


@pytest.mark.parametrize(
    "case", [case for case in CASES if not is_listed(case)], ids=lambda case: case.name
)
def test_operators_that_no_export_has_are_refused_by_name(case: Case) -> None:
    artifact = read_artifact(case.model().SerializeToString())
    with pytest.raises(ArtifactError, match="is not one of the operators"):
        scan(artifact, Limits())
