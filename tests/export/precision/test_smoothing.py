"""Channels of activations that are much larger than others cost no precision in w8a8."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from causal_onnx.export import DriftError, export, verify
from causal_onnx.export.precision import rounding
from causal_onnx.export.precision.choose import coding_for
from causal_onnx.export.precision.grid import Grid, round_to_grid
from causal_onnx.export.precision.rounding import round_module
from causal_onnx.export.precision.smoothing import (
    Sample,
    choose_exponents,
    exponents_of,
    exponents_of_text,
    text_of,
)
from causal_onnx.models import DecoderLM, tiny_llama_config
from causal_onnx.runtime import load
from tests.export.precision.test_integer_products import rounded_like

CHANNELS = [3, 17, 30]


@cache
def model(factor: float = 64.0, *, seed: int = 0, is_tied: bool = False) -> DecoderLM:
    """A decoder some of whose channels are `factor` times as large after norms, and weigh less.

    The same for all tests, so that it is captured once.
    """
    config = dataclasses.replace(tiny_llama_config(), tied_head=is_tied)
    module = DecoderLM(config, seed=seed).eval()
    with torch.no_grad():
        for block in module.blocks:
            attention, mlp = block.attention, block.mlp
            for norm, readers in (
                (block.attention_norm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (block.mlp_norm, (mlp.gate_proj, mlp.up_proj)),
            ):
                norm.weight[CHANNELS] *= factor
                for layer in readers:
                    layer.weight[:, CHANNELS] /= factor
            attention.v_proj.weight[5] *= factor  # two heads read it
            attention.out_proj.weight[:, [5, 13]] /= factor
    return module


def exported(path: Path, module: nn.Module | None = None, **options: Any) -> Any:
    options = {"max_drift": 9.0, "effort": "quick", **options}
    return export(module or model(), path, precision="w8a8", **options)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of `model`; no test changes its file."""
    return exported(tmp_path_factory.mktemp("smoothed") / "m.onnx")


def smoothing(report: Any) -> dict[str, np.ndarray]:
    texts = report.quantisation.options.get("smoothing", {})
    return {name: exponents_of_text(text) for name, text in texts.items()}


def folded(module: DecoderLM, chosen: dict[str, np.ndarray]) -> DecoderLM:
    """The module with the same powers of two moved from its norms into what reads them."""
    module = copy.deepcopy(module)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, exponents in chosen.items():
            factors = torch.from_numpy(np.exp2(exponents.astype(np.float32)))
            parameters[name] *= factors
            block = name.partition(".attention.")[0].partition(".mlp.")[0]
            if block == name:
                module.final_norm.weight /= factors
            elif name.endswith(("q_proj.weight", "gate_proj.weight")):
                norm = "attention_norm" if "attention" in name else "mlp_norm"
                parameters[f"{block}.{norm}.weight"] /= factors
            elif name.endswith("out_proj.weight"):
                # Query heads 0 and 1 read the first head of keys and values, 2 and 3 the second.
                heads = factors.reshape(2, 2, 8)
                assert torch.equal(heads[:, 0], heads[:, 1])
                parameters[f"{block}.attention.v_proj.weight"] /= heads[:, 0].reshape(-1, 1)
            elif name.endswith("down_proj.weight"):
                parameters[f"{block}.mlp.up_proj.weight"] /= factors[:, None]
    return module


class RoundedRows(nn.Module):
    """Each row in 8 bits, by its largest magnitude."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        largest = x.abs().amax(-1, keepdim=True)
        return (x / largest / torch.tensor(1 / 127)).round() / 127 * largest


def rounded(module: DecoderLM) -> DecoderLM:
    """A copy that PyTorch computes as the file is meant to, table and head included."""
    module = rounded_like(module)
    table = module.token_embedding.weight
    table.data = torch.from_numpy(round_to_grid(table.detach().numpy(), bits=8, block=32))
    # The decoder multiplies by the weight of its head and does not call it.
    module.final_norm = nn.Sequential(module.final_norm, RoundedRows())
    return module


def test_large_channels_cost_little(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert report.parity.max_error < 0.05
    monkeypatch.setattr(rounding, "find_places", lambda graph, limit: [])
    with pytest.raises(DriftError, match="with activations rounded too, results are off by"):
        exported(tmp_path / "m.onnx")


def test_the_file_equals_pytorch_with_the_same_folding_and_rounding(report: Any) -> None:
    module, chosen = model(), smoothing(report)
    layers = ("q_proj", "k_proj", "v_proj", "out_proj")
    assert {f"blocks.1.attention.{name}.weight" for name in layers} <= set(chosen)
    ids = torch.randint(256, (3, 9), generator=torch.Generator().manual_seed(0))
    expected = rounded(folded(module, chosen))(ids).detach().numpy()
    far = module(ids).detach().numpy()
    got = load(report.path)(ids.numpy())
    # A last bit may turn a code into its neighbour, here and there.
    assert np.abs(got - expected).mean() < 0.02 * np.abs(far - expected).mean()


def test_folding_alone_changes_no_bit_of_the_module() -> None:
    module = model()
    chosen = {
        f"blocks.0.attention.{name}_proj.weight": np.arange(32).astype(np.int8) % 9 - 4
        for name in "qkv"
    }
    ids = torch.arange(20)[None]
    assert torch.equal(folded(module, chosen)(ids), module(ids))


def test_what_is_proved_stays_proved(tmp_path: Path) -> None:
    module = model()
    report = exported(tmp_path / "m.onnx", module, cache=True)
    assert report.certificate.every_length
    assert report.certificate.verdict == "causal"
    assert report.quantisation.parity.max_error < 1e-5
    assert report.cache.passed
    assert verify(module, tmp_path / "m.onnx").passed
    assert not verify(model(seed=1), tmp_path / "m.onnx").passed


def llama() -> tuple[nn.Module, nn.Module]:
    """A model whose values are repeated for each query head; and what reads the result."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config).eval()
    attention = module.model.layers[0].self_attn
    with torch.no_grad():
        attention.v_proj.weight[13] *= 64  # of the second head of values
        attention.o_proj.weight[:, [21, 29]] /= 64
    return module, attention.o_proj


def gpt2() -> tuple[nn.Module, nn.Module]:
    """A model whose values are the last third of one product."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=96, n_positions=24, n_embd=32, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    module = transformers.GPT2LMHeadModel(config).eval()
    attention = module.transformer.h[0].attn
    with torch.no_grad():
        attention.c_attn.bias.uniform_(-0.1, 0.1)
        attention.c_attn.weight[:, 64 + 21] *= 64
        attention.c_attn.bias[64 + 21] *= 64
        attention.c_proj.weight[21] /= 64
    return module, attention.c_proj


@pytest.mark.parametrize("make", [llama, gpt2])
def test_values_of_attention_are_smoothed_through_it(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, after = make()
    report = exported(tmp_path / "m.onnx", module)
    chosen = smoothing(report)
    (name,) = (n for n, p in module.named_parameters() if p is after.weight)
    large = {21, 29} if make is llama else {21}
    assert set(np.argsort(chosen[name])[-len(large) :].tolist()) == large
    assert report.quantisation.parity.max_error < 1e-5


def test_equal_modules_give_equal_files(report: Any, tmp_path: Path) -> None:
    assert smoothing(exported(tmp_path / "m.onnx", copy.deepcopy(model())))
    assert (tmp_path / "m.onnx").read_bytes() == report.path.read_bytes()


def test_a_tied_head_is_left_alone(tmp_path: Path) -> None:
    module = copy.deepcopy(model(is_tied=True))
    with torch.no_grad():
        module.final_norm.weight[CHANNELS] *= 64
    report = exported(tmp_path / "m.onnx", module)
    assert "token_embedding.weight" in report.quantisation.axes
    assert "token_embedding.weight" not in smoothing(report)
    assert any(name.startswith("blocks.0.attention") for name in smoothing(report))


def test_the_report_names_the_weight_to_keep(tmp_path: Path) -> None:
    module = copy.deepcopy(model(factor=1.0, is_tied=True))
    with torch.no_grad():
        module.final_norm.weight[CHANNELS] *= 64
    before = exported(tmp_path / "a.onnx", module, effort="normal").drift
    (first, error), *others = before.products
    assert first == "token_embedding.weight"
    assert error > others[0][1]
    assert f"products that lose most: {first} {error:.1e}" in before.summary()
    after = exported(tmp_path / "b.onnx", module, keep={first: "fp32"}, effort="normal").drift
    assert first not in dict(after.products)
    assert after.drift < 0.5 * before.drift
    with pytest.raises(DriftError, match=r"lose most: keep=\{'token_embedding.weight': 'fp32', "):
        export(module, tmp_path / "c.onnx", precision="w8a8", max_drift=1e-9)


def test_a_reader_that_is_kept_in_fp32_follows(tmp_path: Path) -> None:
    report = exported(tmp_path / "m.onnx", keep={"blocks.*.q_proj.weight": "fp32"})
    assert not any("q_proj" in name for name in smoothing(report))
    assert "blocks.0.attention.k_proj.weight" in smoothing(report)
    assert report.quantisation.parity.max_error < 1e-5
    assert verify(model(), tmp_path / "m.onnx").passed


def test_errors_are_carried_on_too(tmp_path: Path) -> None:
    report = exported(tmp_path / "m.onnx", rounding="gptq", effort="normal")
    assert smoothing(report)
    assert report.drift.drift < 0.01
    assert verify(model(), tmp_path / "m.onnx").passed


def rows(factor: float) -> torch.Tensor:
    x = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    x[:, CHANNELS] *= factor
    return x


def sample(x: torch.Tensor) -> Sample:
    return Sample(rows=x, largest=x.abs().amax(0))


def test_the_scale_moves_only_where_it_helps() -> None:
    weight = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32)
    grid = Grid(bits=8, per_row=True)
    assert choose_exponents(sample(rows(1.0)), [weight], grid) is None
    found = choose_exponents(sample(rows(60.0)), [weight], grid)
    assert found is not None
    assert found[CHANNELS].min() > np.delete(found, CHANNELS).max()


def test_channels_that_are_never_seen_keep_their_scale() -> None:
    largest = np.array([0.0, 1.0, 8.0, 64.0], np.float32)
    tops = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
    np.testing.assert_array_equal(exponents_of(largest, tops, 1.0), [0, -2, 2, 0])


def test_a_text_holds_exponents() -> None:
    exponents = np.arange(-12, 13).astype(np.int8)
    assert text_of(exponents) == "abcdefghijklmnopqrstuvwxy"
    np.testing.assert_array_equal(exponents_of_text(text_of(exponents)), exponents)


def test_exponents_of_another_width_are_refused() -> None:
    layer = nn.Linear(48, 32)
    coding = coding_for("w8a8", "ort", 24)
    assert coding is not None
    with pytest.raises(ValueError, match="'weight' is 48 wide, and its smoothing 32"):
        round_module(layer, {"weight": 1}, coding, smoothing={"weight": np.zeros(32, np.int8)})
