"""A KV cache derived from graphs that know of none, and what it is refused for."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import ExportError, ParityError, export, pipeline
from causal_onnx.export.cache import derive_cache
from causal_onnx.export.canonical import canonicalise
from causal_onnx.export.lower import lower
from causal_onnx.models import DecoderLM, tiny_gpt2_config, tiny_llama_config
from causal_onnx.runtime import load
from tests.export.captured import captured, run_model, zoo_inputs
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
]


def fed(model: object, name: str, past: list[np.ndarray], cuts: list[int]) -> np.ndarray:
    """The first output, from chunks between the `cuts`, joined along the sequence."""
    inputs = zoo_inputs(name, 2, cuts[-1])
    axis = 0 if "seq_first" in name else 1
    pieces = []
    for start, stop in pairwise(cuts):
        chunk = [x.take(range(start, stop), axis) for x in inputs]
        first, *past = run_model(model, [*chunk, *past])  # type: ignore[arg-type]
        pieces.append(first)
    return np.concatenate(pieces, axis)


@pytest.mark.parametrize("name", CACHED)
def test_chunks_equal_one_pass(name: str) -> None:
    model = captured(name)
    limit = entry(name).limit
    cores, others = canonicalise(model, limit)
    derived = derive_cache(model, cores, others, max_seq_len=limit)
    lower(model, "portable")
    empty = [np.zeros((2, s.axes[1], 0, s.axes[3]), np.float32) for s in derived.past]  # type: ignore[arg-type]
    expected = run_model(captured(name), zoo_inputs(name, 2, 11))[0]
    for cuts in ([0, 11], [0, 1, 2, 11], [0, 7, 8, 9, 10, 11]):
        np.testing.assert_allclose(fed(model, name, empty, cuts), expected, rtol=0, atol=5e-6)


class Averages(nn.Module):
    """Causal attention after a causal running mean, which mixes positions by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(1, x.shape[1] + 1).unsqueeze(-1)
        q, k, v = self.qkv(x.cumsum(1) / count).unsqueeze(1).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)


class FromTheEnd(nn.Module):
    """Adds positions counted from the end, so that every output changes as the sequence grows."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.table = nn.Linear(16, 48), nn.Embedding(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        left = torch.arange(x.shape[1]).flip(0)
        q, k, v = self.qkv(x + self.table(left)).unsqueeze(1).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)


@pytest.mark.parametrize(
    ("module", "message"),
    [(Averages(), "CumSum .* mixes positions"), (FromTheEnd(), "changes with the total length")],
    ids=["running mean", "positions from the end"],
)
def test_what_cannot_be_cached_is_refused_by_name(
    module: nn.Module, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        export(module, tmp_path / "m.onnx", example=torch.randn(2, 5, 16), cache=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config", [tiny_gpt2_config(), tiny_llama_config()], ids=["gpt2", "llama"])
def test_decoder_streams_from_the_file(config: object, tmp_path: Path) -> None:
    decoder = DecoderLM(config, seed=0).eval()  # type: ignore[arg-type]
    report = export(decoder, tmp_path / "m.onnx", cache=True, max_seq_len=12)
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


def test_a_wrong_cache_is_found_before_a_file_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(*args: object, **kwargs: object) -> object:
        derived = derive_cache(*args, **kwargs)  # type: ignore[arg-type]
        model = args[0]
        for node in model.graph:  # type: ignore[attr-defined]
            if node.domain == "causal_onnx":
                node.attributes["is_causal"] = ir.AttrInt64("is_causal", 0)
        return derived

    monkeypatch.setattr(pipeline, "derive_cache", forgetful)
    decoder = DecoderLM(tiny_gpt2_config(), seed=0).eval()
    with pytest.raises(ParityError):
        export(decoder, tmp_path / "m.onnx", cache=True, max_seq_len=12)
    assert list(tmp_path.iterdir()) == []
