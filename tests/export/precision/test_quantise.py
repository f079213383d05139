"""precision="int8" and "int4": what is stored, what is proved, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from causal_onnx.export import DriftError, ExportError, ParityError, export, forms, verify
from causal_onnx.export.precision import rounding
from causal_onnx.export.precision.choose import Coding
from causal_onnx.export.precision.codes import quantise
from causal_onnx.export.precision.grid import Grid
from causal_onnx.export.precision.rounding import round_module, round_weights
from causal_onnx.models import (
    AttentionConfig,
    CausalMechanismV1,
    DecoderLM,
    MultiHeadAttention,
    tiny_llama_config,
)
from causal_onnx.runtime import load
from tests.export.captured import captured, run_model, zoo_inputs
from tests.zoo import entry


@cache
def attention() -> CausalMechanismV1:
    """The same for all tests, so that it is captured once; none changes it."""
    return CausalMechanismV1(64, 64, 12, seed=0)


class Copies(nn.Module):
    """PyTorch copies a layer: before training, all hold the same numbers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 2, 128, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layers(x, mask=mask, is_causal=True)


@cache
def copies() -> Copies:
    """The same for every precision, so that it is captured once."""
    torch.manual_seed(0)
    return Copies().eval()


@pytest.mark.parametrize("precision", ["int8", "int4", "w8a8"])
def test_layers_that_are_copies_are_rounded_alike(precision: str, tmp_path: Path) -> None:
    module, path = copies(), tmp_path / "m.onnx"
    x = torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(0))
    report = export(module, path, example=x, precision=precision, effort="quick")
    assert report.parity.passed
    assert verify(module, path, example=x).passed


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def stored_bytes(path: Path) -> int:
    tensors = onnx.load(path).graph.initializer
    return sum(len(tensor.raw_data) for tensor in tensors)


@pytest.mark.parametrize(
    ("precision", "target", "opset", "operator"),
    [
        ("int4", "ort", None, "MatMulNBits"),
        ("int8", "ort", None, "MatMulNBits"),
        ("int4", "portable", None, "DequantizeLinear"),
        ("int8", "portable", 24, "DequantizeLinear"),
        ("int8", "portable", 18, "DequantizeLinear"),
    ],
)
def test_coded_weights_equal_the_module_with_the_same_rounded_weights(
    precision: str, target: str, opset: int | None, operator: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    report = export(attention(), path, precision=precision, target=target, opset=opset)
    assert report.quantisation is not None
    assert report.quantisation.axes == {f"{name}_proj.weight": 1 for name in "qkv"}
    assert report.quantisation.parity.max_error < 1e-6
    assert report.certificate.every_length
    assert report.contract.precision == precision
    assert operator in operators(path)
    assert load(path).selftest().passed


def test_a_decoder_with_a_cache_stores_its_tied_head_once(tmp_path: Path) -> None:
    module = DecoderLM(tiny_llama_config(), seed=0)
    path = tmp_path / "m.onnx"
    report = export(module, path, precision="int4", cache=True, effort="quick")
    assert report.quantisation is not None
    assert report.cache is not None
    assert report.cache.passed
    assert report.certificate.verdict == "causal"
    assert len(report.quantisation.axes) == 15
    assert {"MatMulNBits", "GatherBlockQuantized"} <= set(operators(path))
    stored = {tensor.name: list(tensor.dims) for tensor in onnx.load(path).graph.initializer}
    assert list(stored.values()).count([256, 1, 16]) == 1
    assert verify(module, path).passed
    assert not verify(DecoderLM(tiny_llama_config(), seed=1), path).passed


@pytest.mark.parametrize(("precision", "ratio"), [("int8", 3.5), ("int4", 6.3)])
def test_weights_shrink(precision: str, ratio: float, tmp_path: Path) -> None:
    module = MultiHeadAttention(AttentionConfig(embed_dim=256, num_heads=4), seed=0)
    export(module, tmp_path / "m.onnx", example=torch.randn(2, 6, 256), precision=precision)
    whole = sum(p.numel() * 4 for p in module.parameters())
    assert stored_bytes(tmp_path / "m.onnx") < whole / ratio


def test_a_hugging_face_decoder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=96,
        n_positions=24,
        n_embd=32,
        n_layer=1,
        n_head=2,
        bos_token_id=0,
        eos_token_id=0,
    )
    module = transformers.GPT2LMHeadModel(config).eval()
    report = export(module, tmp_path / "m.onnx", precision="int8", cache=True, effort="quick")
    assert report.quantisation is not None
    assert report.quantisation.axes["transformer.h.0.attn.c_attn.weight"] == 0
    assert report.quantisation.axes["transformer.wte.weight"] == 1
    assert "transformer.wpe.weight" not in report.quantisation.axes


def test_packing_changes_no_number() -> None:
    """Graph and module are rounded alike; storing the codes leaves the results as they were."""
    name = "lm_nanogpt_flash"
    model, module = captured(name), entry(name).factory().eval()
    grid = Grid(bits=8, per_row=True)
    assert round_weights(model, module, Coding(grid=grid)).axes
    before = run_model(model, zoo_inputs(name, 2, 7))[0]
    assert quantise(model, "portable", [grid]) > 0
    after = run_model(model, zoo_inputs(name, 2, 7))[0]
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6 * np.abs(before).max())


def test_weights_off_the_grid_stay() -> None:
    model = captured("lm_nanogpt_flash")
    assert quantise(model, "ort", [Grid(bits=4)]) == 0


def test_wrong_codes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def off_by_one(model: ir.Model, target: str, grids: Sequence[Grid]) -> int:
        count = quantise(model, target, grids)
        for value in model.graph.initializers.values():
            if value.const_value is not None and value.dtype == ir.DataType.UINT8:
                array = value.const_value.numpy().copy()
                array.flat[0] ^= 1
                value.const_value = ir.tensor(array, name=value.name)
        return count

    monkeypatch.setattr(forms, "quantise", off_by_one)
    with pytest.raises(ParityError, match="the graph with rounded weights disagrees"):
        export(attention(), tmp_path / "m.onnx", precision="int8")
    assert list(tmp_path.iterdir()) == []


def test_more_drift_than_allowed_fails(tmp_path: Path) -> None:
    with pytest.raises(DriftError, match=r"drift from fp32 .* relative error .* no file") as info:
        export(attention(), tmp_path / "m.onnx", precision="int4", max_drift=1e-3)
    assert info.value.drift.relative_error > 1e-3
    assert info.value.report.passed
    assert list(tmp_path.iterdir()) == []


class Narrow(nn.Module):
    """Nothing to round: 12 is no multiple of 16."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return (y @ y.mT).masked_fill(mask, -torch.inf).softmax(-1) @ y


def test_a_module_without_such_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"no weight to store in 4 bits: .*width 12 is not a mult"
    ):
        export(Narrow(), tmp_path / "m.onnx", example=torch.randn(2, 6, 12), precision="int4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": "int4", "target": "portable", "opset": 20},
            "precision 'int4' with target 'portable' needs opset 21 or newer",
        ),
        ({"precision": "int8", "max_drift": 0.0}, "max_drift must be positive, got 0.0"),
        ({"max_drift": 0.1}, "max_drift is for a lower precision"),
    ],
)
def test_wrong_requests(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export(attention(), tmp_path / "m.onnx", **options)  # type: ignore[arg-type]


def test_a_limit_of_drift_for_a_module_that_does_not_change_is_refused(tmp_path: Path) -> None:
    example = torch.randn(2, 6, 64).half()
    options = {"precision": "fp16", "max_drift": 0.1}
    with pytest.raises(ValueError, match="the module is in fp16 already, so max_drift has nothing"):
        export(copy.deepcopy(attention()).half(), tmp_path / "m.onnx", example=example, **options)  # type: ignore[arg-type]


def test_float64_weights_are_refused(tmp_path: Path) -> None:
    example = torch.randn(2, 6, 64, dtype=torch.float64)
    with pytest.raises(ValueError, match="this one has float64 weights"):
        export(
            copy.deepcopy(attention()).double(),
            tmp_path / "m.onnx",
            example=example,
            precision="int8",
        )


def test_rounding_names_a_parameter_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"'head.weight' cannot be rounded: there is no such"):
        round_module(copy.deepcopy(attention()), {"head.weight": 1}, Coding(grid=Grid(bits=8)))


def test_rounded_weights_of_a_large_module_lie_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [name for name, _ in attention().named_parameters() if name.endswith("weight")]
    coding, axes = Coding(grid=Grid(bits=4)), {names[0]: 1, names[1]: 0}
    expected, large = copy.deepcopy(attention()), copy.deepcopy(attention())
    round_module(expected, axes, coding)
    monkeypatch.setattr(rounding, "_MOST_IN_MEMORY", 0)
    round_module(large, axes, coding, folder=tmp_path)
    for name in axes:
        value = large.get_parameter(name)
        assert torch.equal(value, expected.get_parameter(name))
        assert value.data_ptr() % 4096 == 0
    assert list(tmp_path.iterdir()) == []


def test_a_large_module_is_exported_to_a_folder_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"example": torch.randn(2, 6, 64), "precision": "int8", "effort": "quick"}
    export(attention(), tmp_path / "small.onnx", **options)  # type: ignore[arg-type]
    monkeypatch.setattr(rounding, "_MOST_IN_MEMORY", 0)
    goal = tmp_path / "new" / "folder" / "large.onnx"
    export(attention(), goal, **options)  # type: ignore[arg-type]
    assert goal.read_bytes() == (tmp_path / "small.onnx").read_bytes()
    assert sorted(path.name for path in goal.parent.iterdir()) == ["large.onnx"]
