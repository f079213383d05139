"""Graphs with a derived cache are proved for every length, and their mutants are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from causal_onnx.export import export
from causal_onnx.export.analysis.graph import load_model
from causal_onnx.export.analysis.signature import read_signature
from causal_onnx.export.attention.canonical import canonicalise
from causal_onnx.export.attestation import attest
from causal_onnx.export.cache.derive import derive_cache
from causal_onnx.export.graph.cleanup import tidy
from causal_onnx.export.graph.edit import constant
from causal_onnx.export.lower import lower
from causal_onnx.models import DecoderLM, tiny_gpt2_config
from tests.export.captured import captured
from tests.zoo import entry


def cached(name: str) -> ir.Model:
    model = captured(name)
    limit = entry(name).limit
    derived = derive_cache(model, *canonicalise(model, limit), max_seq_len=limit)
    lower(model, derived.cores, "portable")
    tidy(model)
    return model


@pytest.mark.parametrize("name", ["attn_sdpa_gqa", "win_arange_difference"])
def test_it_is_causal_at_every_length(name: str) -> None:
    found = attest(cached(name))
    assert found.verdict == "causal", found.reason
    assert found.every_length, found.open_step
    assert found.dynamic.cases


@pytest.mark.parametrize("name", ["attn_sdpa_gqa", "win_arange_difference"])
def test_a_mask_of_one_slot_too_many_is_found(name: str) -> None:
    model = cached(name)
    (compare,) = [node for node in model.graph if node.op_type == "LessOrEqual"]
    rows = compare.inputs[1]
    later = ir.node("Add", [rows, constant(model.graph, np.array(1, np.int64))])
    model.graph.insert_before(compare, later)
    compare.replace_input_with(1, later.outputs[0])
    found = attest(model)
    assert found.verdict == "not_causal"
    assert found.offence is not None
    assert found.offence.op_type == "Attention"


def test_new_keys_in_the_place_of_past_ones_are_found() -> None:
    model = cached("attn_sdpa_gqa")
    for node in [n for n in model.graph if n.op_type == "ScatterND"]:
        places = node.inputs[1]
        early = ir.node("Mul", [places, constant(model.graph, np.array(0, np.int64))])
        model.graph.insert_before(node, early)
        node.replace_input_with(1, early.outputs[0])
    assert attest(model).verdict == "not_causal"


def test_the_mask_by_which_rows_find_their_place_is_no_data(tmp_path: Path) -> None:
    decoder = DecoderLM(tiny_gpt2_config(), seed=0).eval()
    report = export(decoder, tmp_path / "m.onnx", cache=True, max_seq_len=12)
    analysis = load_model(tmp_path / "m.onnx")
    assert read_signature(analysis).row_mask == report.contract.mask == "attention_mask"
    texts = [assumption.text for assumption in report.certificate.assumptions]
    assert "attention_mask has the values of sequences without padding" in texts
