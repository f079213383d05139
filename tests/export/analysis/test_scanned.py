"""The scan of untrusted files lets the graphs of the analysis' rules pass."""

from __future__ import annotations

import pytest

from causal_onnx.runtime import ArtifactError, Limits, read_artifact
from causal_onnx.runtime.scan import scan

from .rule_cases import CASES, Case

REFUSED = {"scan", "scan_backwards", "loop_of_fixed_trips"}
"""Control flow that no export has."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_graphs_of_the_rules_pass_the_scan(case: Case) -> None:
    artifact = read_artifact(case.model().SerializeToString())
    if case.name in REFUSED:
        with pytest.raises(ArtifactError, match=r"is none of the operators|carries values"):
            scan(artifact, Limits())
    else:
        assert scan(artifact, Limits()) == {}
