"""A KV cache derived from graphs that know of none, and what it is refused for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import ExportError, ExportReport, export, forms
from causal_onnx.export.attention.canonical import canonicalise
from causal_onnx.export.cache.derive import derive_cache
from causal_onnx.export.errors import RewriteError
from causal_onnx.export.graph.edit import constant
from causal_onnx.export.lower import lower
from causal_onnx.models import (
    DecoderLM,
    tiny_gpt2_config,
    tiny_llama_config,
)
from causal_onnx.runtime import load
from tests.export.captured import captured, run_model, zoo_inputs
from tests.export.modules import Head, example
from tests.export.quick import quick_export
from tests.zoo import entry

CACHED = [
    "mask_triu_bool_buffer",
    "attn_one_head_3d",
    "attn_sdpa_gqa",
    "attn_seq_first_manual",
    "pos_rotary_cached_tables",
    "win_arange_difference",
    "win_chunked",
    "lm_nanogpt_manual",
    "mask_sink_logits",
    "mask_softmax_one",
    "attn_differential",
    "attn_mla_absorbed",
    "pos_alibi_buffer",
]


def fed(model: object, name: str, past: list[np.ndarray], cuts: list[int]) -> np.ndarray:
    """The first output, from chunks between the `cuts`, joined along the sequence."""
    inputs = zoo_inputs(name, 2, cuts[-1])
    axis = 0 if "seq_first" in name else 1
    pieces = []
    for start, stop in pairwise(cuts):
        chunk = [x.take(range(start, stop), axis) for x in inputs]
        mask = np.ones((2, stop), np.int64)
        first, *past = run_model(model, [*chunk, mask, *past])  # type: ignore[arg-type]
        pieces.append(first)
    return np.concatenate(pieces, axis)


@pytest.mark.parametrize("name", CACHED)
def test_chunks_equal_one_pass(name: str) -> None:
    model = captured(name)
    limit = entry(name).limit
    cores, others = canonicalise(model, limit)
    derived = derive_cache(model, cores, others, max_seq_len=limit)
    lower(model, derived.cores, "portable")
    empty = [np.zeros((2, s.axes[1], 0, s.axes[3]), np.float32) for s in derived.past]  # type: ignore[arg-type]
    expected = run_model(captured(name), zoo_inputs(name, 2, 11))[0]
    for cuts in ([0, 11], [0, 1, 2, 11], [0, 7, 8, 9, 10, 11]):
        np.testing.assert_allclose(fed(model, name, empty, cuts), expected, rtol=0, atol=5e-6)


@cache
def tiny(name: str) -> DecoderLM:
    """The same for all tests, so that it is captured once."""
    config = tiny_gpt2_config() if name == "gpt2" else tiny_llama_config()
    return DecoderLM(config, seed=0).eval()


def checked(module: nn.Module, folder: Path, **options: Any) -> ExportReport:
    """Export with a cache and all proofs, at the shapes that cost least."""
    return export(module.eval(), folder / "m.onnx", cache=True, effort="quick", **options)


class FromTheEnd(nn.Module):
    """Adds positions counted from the end, so that every output changes as the sequence grows."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.table = nn.Linear(16, 48), nn.Embedding(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        left = torch.arange(x.shape[1]).flip(0)
        q, k, v = self.qkv(x + self.table(left)).unsqueeze(1).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)


def test_what_cannot_be_cached_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="changes with the total length"):
        checked(FromTheEnd(), tmp_path, example=torch.randn(2, 5, 16))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_decoder_streams_from_the_file(name: str, tmp_path: Path) -> None:
    decoder = tiny(name)
    report = checked(decoder, tmp_path, max_seq_len=12)
    assert report.cache is not None
    assert report.cache.passed
    model = load(tmp_path / "m.onnx")
    ids = decoder.example_input(2, 12)
    with torch.no_grad():
        expected = decoder(ids).numpy()
    past: dict[str, np.ndarray] = {}
    for t in range(12):
        outputs = model.run(ids[:, t : t + 1].numpy(), **past)
        np.testing.assert_allclose(outputs["logits"][:, 0], expected[:, t], rtol=0, atol=1e-5)
        past = {pair.past: outputs[pair.present] for pair in model.contract.cache}
    with pytest.raises(ValueError, match=r"13 \(past_seq 12 \+ seq 1\)"):
        model.run(ids[:, :1].numpy(), **past)


Mutation = Callable[[ir.Graph, ir.Node], None]


def sees_no_past(graph: ir.Graph, node: ir.Node) -> None:
    node.attributes["window"] = ir.AttrInt64("window", 1)


def shifted_by_one(graph: ir.Graph, node: ir.Node) -> None:
    """A row's new keys go one slot too early, as soon as there is one."""
    before = ir.node("Max", [node.inputs[6], constant(graph, np.array(1, np.int64))])
    one = ir.node("Sub", [before.outputs[0], constant(graph, np.array(1, np.int64))])
    graph.insert_before(node, [before, one])
    node.replace_input_with(6, one.outputs[0])


def all_rows_like_the_first(graph: ir.Graph, node: ir.Node) -> None:
    first = ir.node("Gather", [node.inputs[6], constant(graph, np.array([0]))])
    shape = ir.node("Shape", [node.inputs[6]])
    spread = ir.node("Expand", [first.outputs[0], shape.outputs[0]])
    graph.insert_before(node, [first, shape, spread])
    node.replace_input_with(6, spread.outputs[0])


def mutated(monkeypatch: pytest.MonkeyPatch, mutate: Mutation) -> None:
    def derive(model: ir.Model, *args: object, **kwargs: object) -> object:
        derived = derive_cache(model, *args, **kwargs)  # type: ignore[arg-type]
        for node in [n for n in model.graph if n.domain == "causal_onnx" and len(n.inputs) > 6]:
            mutate(model.graph, node)
        return derived

    monkeypatch.setattr(forms, "derive_cache", derive)


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (sees_no_past, "disagrees"),
        (shifted_by_one, r"cache: .* at batch 1, length 2 is off"),
        (all_rows_like_the_first, r"cache: ragged .* at batch 3"),
    ],
)
def test_a_wrong_cache_is_found_before_a_file_appears(
    mutate: Mutation, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutated(monkeypatch, mutate)
    with pytest.raises(RewriteError, match=message):
        checked(tiny("gpt2"), tmp_path, max_seq_len=12)
    assert list(tmp_path.iterdir()) == []


def test_rows_of_different_lengths_share_every_call(tmp_path: Path) -> None:
    decoder = tiny("llama")
    model = quick_export(decoder, tmp_path / "m.onnx", cache=True, max_seq_len=12)
    ids = decoder.example_input(3, 6).numpy()
    lengths, past = np.array([5, 2, 0]), {}
    mask = (np.arange(5) < lengths[:, None]).astype(np.int64)
    for columns in (ids[:, :5], ids[:, 5:]):
        outputs = model.run(columns, attention_mask=mask, **past)
        past = {pair.past: outputs[pair.present] for pair in model.contract.cache}
        mask = np.concatenate([mask, np.ones((3, 1), np.int64)], 1)
    for row, length in enumerate(lengths):
        alone = np.concatenate([ids[row, :length], ids[row, 5:]])[None]
        expected = decoder(torch.from_numpy(alone)).detach().numpy()[0, -1]
        np.testing.assert_allclose(outputs["logits"][row, 0], expected, rtol=0, atol=1e-5)


class Relative(nn.Module):
    """Adds q @ table[positions] to the values: positions enter a product, not entry by entry."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.table = nn.Linear(16, 48), nn.Embedding(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        places = self.table(torch.arange(x.shape[1]))
        v = v + (q.squeeze(1).unsqueeze(2) @ places.unsqueeze(2)).unsqueeze(1).squeeze(3)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)


def test_where_positions_enter_a_product_rows_must_be_equally_long(tmp_path: Path) -> None:
    report = checked(Relative(), tmp_path, example=torch.randn(2, 5, 16))
    assert report.contract.mask is None
    assert report.cache is not None
    assert report.cache.passed
    (fallback,) = report.fallbacks
    assert fallback.form == "cache for rows of different lengths"
    (warning,) = [text for text in report.warnings if "equally long" in text]
    assert "MatMul" in warning


class Routed(nn.Module):
    """Keeps the largest feature of each position: `zeros_like` over merged batch and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Head()

    def forward(self, x: Tensor) -> Tensor:
        flat = self.attention(x).flatten(0, 1)
        chosen = torch.zeros_like(flat).scatter(1, flat.argmax(1, keepdim=True), 1.0)
        return (flat * chosen).unflatten(0, x.shape[:2])


def test_a_value_of_one_number_needs_no_positions(tmp_path: Path) -> None:
    report = checked(Routed(), tmp_path, example=example())
    assert report.cache is not None
    assert report.cache.passed
    assert report.contract.mask is not None
