"""Attention is found by what it computes, in whatever style it is written."""

from __future__ import annotations

import numpy as np
import pytest

from causal_onnx.export.attention.canonical import canonicalise
from causal_onnx.export.attention.canonical_core import is_canonical
from causal_onnx.export.lower import lower
from tests.export.captured import captured, run_model, zoo_inputs
from tests.zoo import entry

# name, footprint, window, query heads, key/value heads
STYLES = [
    ("mask_tril_float_buffer", "causal", None, 3, 3),
    ("mask_triu_int64_buffer", "causal", None, 2, 2),
    ("mask_finfo_min_added", "causal", None, 1, 1),
    ("mask_scale_after_mask", "causal", None, 2, 2),
    ("mask_softcap", "causal", None, 1, 1),
    ("attn_one_head_2d", "causal", None, 1, 1),
    ("attn_sdpa_is_causal", "causal", None, 4, 4),
    ("attn_gqa_expand", "causal", None, 4, 2),
    ("attn_gqa_repeat_interleave", "causal", None, 4, 2),
    ("attn_gqa_broadcast_matmul", "causal", None, 4, 2),
    ("win_tril_minus_tril", "window", 5, 2, 2),
    ("win_arange_difference", "window", 6, 2, 2),
    ("win_of_one", "window", 1, 2, 2),
    ("win_chunked", "chunk", None, 2, 2),
    ("mask_sink_logits", "causal", None, 4, 4),
    ("attn_einsum_bhqk", "causal", None, 3, 3),
    ("attn_gqa_grouped_einsum", "causal", None, 4, 2),
    ("attn_mla_absorbed", "causal", None, 3, 1),
    ("attn_seq_first_manual", "causal", None, 4, 4),
]


@pytest.mark.parametrize(
    ("name", "kind", "window", "heads", "groups"), STYLES, ids=[style[0] for style in STYLES]
)
def test_core_is_recognised(
    name: str, kind: str, window: int | None, heads: int, groups: int
) -> None:
    model = captured(name)
    (core,), _ = canonicalise(model, entry(name).limit)
    assert (core.footprint.kind, core.footprint.window) == (kind, window)
    assert (core.num_heads, core.num_kv_heads) == (heads, groups)
    assert core.footprint.never_later
    assert [node.op_type for node in model.graph].count("Softmax") == 0


@pytest.mark.parametrize("name", [style[0] for style in STYLES])
def test_rewritten_graph_computes_the_same(name: str) -> None:
    plain, rewritten = captured(name), captured(name)
    cores, _ = canonicalise(rewritten, entry(name).limit)
    assert [node for node in rewritten.graph if is_canonical(node)] == [core.node for core in cores]
    lower(rewritten, cores, "portable")
    for seq in (1, 6, 13):
        inputs = zoo_inputs(name, 2, seq)
        (expected, *_), (got, *_) = run_model(plain, inputs), run_model(rewritten, inputs)
        np.testing.assert_allclose(got, expected, rtol=0, atol=3e-6)


def test_softmax_over_features_is_no_attention() -> None:
    model = captured("lm_moe_dense")
    cores, others = canonicalise(model)
    assert cores
    assert others == {}
    assert "Softmax" in [node.op_type for node in model.graph]


def test_weights_that_are_returned_keep_the_core_as_it_is() -> None:
    cores, others = canonicalise(captured("attn_returns_weights"))
    assert not cores
    assert "used elsewhere" in next(iter(others.values()))


def test_a_mask_from_data_stays_a_mask() -> None:
    (core,), _ = canonicalise(captured("pad_right_bool"))
    assert not core.bias_is_known


def test_footprints_of_layers_that_differ_are_found_before_any_is_rewritten() -> None:
    """The window of the second layer asks for a length that the first did not need."""
    cores, others = canonicalise(captured("hf_qwen2_eager"), entry("hf_qwen2_eager").limit)
    found = [(core.footprint.kind, core.footprint.window) for core in cores]
    assert found == [("causal", None), ("window", 5)]
    assert not others
