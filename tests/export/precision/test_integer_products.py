"""precision="w8a8": products in integers, by activations that are rounded row by row."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import CausalityError, DriftError, ExportReport, attest, export, verify
from causal_onnx.export.precision.choose import coding_for
from causal_onnx.export.precision.grid import Grid, round_to_grid
from causal_onnx.models import CausalMechanismV1, DecoderLM, tiny_llama_config
from causal_onnx.runtime import DeviceError, load
from causal_onnx.runtime.session import integer_products
from causal_onnx.runtime.session.integer_products import exact_product_settings

WIDTH = 64


@cache
def attention() -> CausalMechanismV1:
    """The same for all tests, so that it is captured once."""
    return CausalMechanismV1(WIDTH, WIDTH, 12, seed=0)


def exported(path: Path, module: nn.Module | None = None, **options: object) -> Path:
    export(module or attention(), path, precision="w8a8", **options)  # type: ignore[arg-type]
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Of `attention` in this precision."""
    return export(attention(), tmp_path_factory.mktemp("products") / "m.onnx", precision="w8a8")


@pytest.fixture(scope="module")
def file(report: ExportReport) -> Path:
    """`attention` in this precision; no test changes it."""
    return report.path


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def features(batch: int, seq: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, seq, WIDTH, generator=torch.Generator().manual_seed(seed))


class RoundedLinear(nn.Module):
    """A linear layer in 8 bits, as PyTorch rounds: weights by row, inputs by row."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        matrix = layer.weight.detach().numpy()
        rounded = round_to_grid(matrix, bits=8, block=matrix.shape[1])
        self.weight, self.bias = torch.from_numpy(rounded), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        largest = x.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        codes = (x / largest / torch.tensor(1 / 127)).round()
        y = (codes.double() @ self.weight.double().T / 127 * largest).float()
        return y if self.bias is None else y + self.bias


def rounded_like(module: nn.Module) -> nn.Module:
    """A copy of the module whose linear layers are `RoundedLinear`."""
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, RoundedLinear(child))
    return module


def test_the_file_equals_pytorch_with_the_same_rounding(file: Path) -> None:
    module, x = attention(), features(3, 9)
    model = load(file)
    expected = rounded_like(module)(x).detach().numpy()
    np.testing.assert_allclose(model(x.numpy()), expected, rtol=0, atol=1e-5)
    far = module(x).detach().numpy()
    assert np.abs(expected - far).max() > 1e-3


def test_what_is_proved_of_it(report: ExportReport) -> None:
    assert report.certificate.every_length
    assert report.quantisation is not None
    assert report.quantisation.axes == {f"{name}_proj.weight": 1 for name in "qkv"}
    assert report.quantisation.parity.max_error < 1e-6  # activations left alone
    assert report.causality.bit_identical
    assert report.drift is not None
    assert 1e-4 < report.drift.relative_error < 0.05


def test_the_rounded_input_is_shared(file: Path) -> None:
    found = operators(file)
    assert found.count("QuantizeLinear") == 1
    assert found.count("MatMulIntegerToFloat") >= 1
    assert "MatMul" not in found


@pytest.mark.parametrize(
    ("target", "opset"), [("ort", 17), ("ort", 24), ("portable", 18), ("tiled", 20)]
)
def test_all_targets_compute_the_same(target: str, opset: int, file: Path, tmp_path: Path) -> None:
    one = load(file)
    other = exported(tmp_path / "m.onnx", target=target, opset=opset)
    x = features(2, 7).numpy()
    np.testing.assert_allclose(load(other)(x), one(x), rtol=0, atol=1e-5)
    is_standard = target != "ort"
    assert ("MatMulInteger" in operators(other)) == is_standard


@pytest.fixture(scope="module")
def plain_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`attention` in fp32."""
    path = tmp_path_factory.mktemp("plain") / "m.onnx"
    export(attention(), path)
    return path


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 17, WIDTH - 1])
def test_a_number_that_is_not_finite_is_not_hidden(
    bad: float, place: int, file: Path, plain_file: Path
) -> None:
    x = features(1, 6).numpy()
    x[0, 3, place] = bad
    ours, plain = (np.isfinite(load(path)(x)).all(-1) for path in (file, plain_file))
    assert not ours[0, 3]
    np.testing.assert_array_equal(ours, plain)


def test_rows_of_zeros_stay_zero(file: Path) -> None:
    x = np.zeros((1, 4, WIDTH), np.float32)
    expected = attention()(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(load(file)(x), expected, atol=1e-6)


def test_a_row_has_the_same_bits_whatever_is_computed_beside_it(file: Path) -> None:
    model = load(file, threads=1)
    x = features(8, 10).numpy()
    whole = model(x)
    for batch in range(1, 9):
        np.testing.assert_array_equal(model(x[:batch]), whole[:batch])


def test_a_decoder_with_a_cache(tmp_path: Path) -> None:
    module = DecoderLM(tiny_llama_config(), seed=0)
    report = export(module, tmp_path / "m.onnx", precision="w8a8", cache=True)
    assert report.cache is not None
    assert report.cache.passed
    assert report.certificate.verdict == "causal"
    assert report.drift is not None
    assert report.drift.drift < 0.01
    assert verify(module, tmp_path / "m.onnx").passed
    assert not verify(DecoderLM(tiny_llama_config(), seed=1), tmp_path / "m.onnx").passed


def test_one_scale_for_the_whole_tensor_would_be_found(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    reduce = [node for node in model.graph.node if node.op_type in ("ReduceMax", "ReduceMean")]
    for node in reduce:
        del node.input[1:]  # over all axes
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "broken.onnx")
    assert attest(file).verdict == "causal"
    assert attest(tmp_path / "broken.onnx").verdict == "not_causal"


def test_a_gemm_and_its_bias(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=96, n_positions=24, n_embd=32, n_layer=1, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    report = export(
        transformers.GPT2LMHeadModel(config).eval(), tmp_path / "m.onnx", precision="w8a8"
    )
    assert report.parity.max_error < 0.02
    assert "Gemm" not in operators(tmp_path / "m.onnx")


def test_rows_whose_sums_would_not_fit_stay() -> None:
    coding = coding_for("w8a8", "ort", 24)
    assert coding is not None
    assert coding.grid.block(1 << 16) == 1 << 16
    assert coding.grid.block((1 << 16) + 1) is None
    assert Grid(bits=8, per_row=True).block((1 << 16) + 1) == (1 << 16) + 1


def test_a_processor_that_cuts_sums_off_does_not_load_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(attention(), tmp_path / "int8.onnx", precision="int8")
    exact_product_settings.cache_clear()
    monkeypatch.setattr(integer_products, "_is_exact", lambda settings: False)
    with pytest.raises(DeviceError, match="would give wrong numbers here"):
        load(file)
    assert load(tmp_path / "int8.onnx").selftest().passed


def test_blocks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'w8a8' with target 'ort' has one scale for each row"):
        exported(tmp_path / "m.onnx", block_size=64)


class Sharp(nn.Module):
    """Attention whose scores are so large that the rounding of activations decides them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = attention()

    def forward(self, x: Tensor) -> Tensor:
        spread = torch.linspace(0, 4, WIDTH).exp()
        return self.inner(x * spread)


def test_more_rounding_than_a_module_bears_is_called_drift(tmp_path: Path) -> None:
    remedy = r"those first whose products lose most: keep=\{'inner\.[qkv]_proj\.weight': 'fp32'"
    with pytest.raises(DriftError, match=f"with activations rounded too, .* {remedy}"):
        exported(tmp_path / "m.onnx", Sharp(), example=features(2, 6), max_drift=10.0)
    assert list(tmp_path.iterdir()) == []


class MixesPositions(nn.Module):
    """A learned matrix over positions: a row of its product is a feature, at every position."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.mix = nn.Parameter(torch.randn(24, 24).triu())

    def forward(self, x: Tensor) -> Tensor:
        return (self.inner(x).mT @ self.mix).mT


def test_a_weight_over_positions_is_refused_unless_it_is_kept(tmp_path: Path) -> None:
    module, path = MixesPositions(), tmp_path / "m.onnx"
    message = (
        r"is NOT causal.* w8a8 rounds the activations before a weight together, by the largest, "
        r"and the weight 24 wide may multiply positions: keep it wider, keep=\{'mix': 'fp32'\}"
    )
    with pytest.raises(CausalityError, match=message):
        exported(path, module, example=features(2, 24))
    assert not path.exists()
    exported(path, module, example=features(2, 24), keep={"mix": "fp32"})
    assert attest(path).verdict == "causal"
