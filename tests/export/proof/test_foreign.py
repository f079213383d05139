"""Graphs of other exporters, as `make_foreign.py` wrote them: judged with their pasts and masks."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from causal_onnx.export.attestation import attest
from tests.zoo import GRAPH_MUTANTS, GraphMutant

FIXTURES = Path(__file__).parents[1] / "analysis" / "fixtures"

SEEN = {
    "genai_llama_fp32": ["causal"],
    "genai_llama_int4": ["causal"],
    "genai_gemma2_fp32": ["causal window 4, softcap 50", "causal, softcap 50"],
    "optimum_mistral": ["causal window 4"],
}


def load(name: str) -> onnx.ModelProto:
    return onnx.load(FIXTURES / f"{name}.onnx")


@pytest.mark.parametrize("name", SEEN)
def test_good_graphs_are_proved_for_every_length_and_past(name: str) -> None:
    found = attest(load(name))
    assert (found.verdict, found.every_length) == ("causal", True), str(found)
    assert [core.footprint for core in found.cores] == SEEN[name]
    assert {out.position_axes for out in found.outputs} == {(1,), (2,)}
    assert "4+3" in found.lengths


def test_a_graph_that_takes_one_row_after_a_past_is_run_with_one() -> None:
    found = attest(load("genai_llama_fp32"))
    assert (2, 0) in {(case.batch, case.past_seq) for case in found.dynamic.cases}
    assert (1, 1) in {(case.batch, case.past_seq) for case in found.dynamic.cases}
    assert found.dynamic.refused == ()


HARMLESS = {("optimum_mistral", "comparison_flipped")}
"""Its first comparison is the window's: turned round it hides keys, and shows no later one."""

BROKEN = [
    pytest.param(name, mutant, id=f"{name}-{mutant.name}")
    for name in ("genai_gemma2_fp32", "optimum_mistral")
    for mutant in GRAPH_MUTANTS
    if mutant.mutate(load(name)) is not None
]


@pytest.mark.parametrize(("name", "mutant"), BROKEN)
def test_every_broken_copy_is_found_out_from_the_graph_alone(
    name: str, mutant: GraphMutant
) -> None:
    broken = mutant.mutate(load(name))
    assert broken is not None
    found = attest(broken, dynamic=False)
    if mutant.kind == "leak" and (name, mutant.name) not in HARMLESS:
        assert found.verdict == "not_causal", str(found)
        assert found.offence is not None
        assert found.offence.op_type in (mutant.breaks, "Softmax"), str(found)
    else:
        assert [core.footprint for core in found.cores] != SEEN[name]
