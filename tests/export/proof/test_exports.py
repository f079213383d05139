"""Graphs that torch.onnx.export writes, by either exporter, are proved causal for every length."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import export
from causal_onnx.export.attestation import attest
from tests.export.analysis.exporting import export_dynamo, export_torchscript, input_names
from tests.zoo import entry

NAMES = [
    "attn_one_head_3d",
    "attn_sdpa_gqa",
    "mask_sink_logits",
    "pos_rotary_interleaved",
    "win_alternating_layers",
    "cache_sdpa_bool",
    "scan_token_shift",
]


def exported(
    name: str, path: Path, how: object, opset: int
) -> tuple[Path, dict[str, dict[int, str]]]:
    item = entry(name)
    names = input_names(item.roles)
    inputs = item.inputs(3, 7, 5) if item.takes_past else item.inputs(3, 7)
    axes = {n: dict(own) for n, own in zip(names, item.axes, strict=True)}
    how(item.factory(), inputs, item.axes, path / "m.onnx", names=names, opset=opset)  # type: ignore[operator]
    return path / "m.onnx", axes


@pytest.mark.parametrize("opset", [18, 24])
@pytest.mark.parametrize("name", NAMES)
def test_exports_of_good_modules_are_proved(name: str, opset: int, tmp_path: Path) -> None:
    path, axes = exported(name, tmp_path, export_dynamo, opset)
    found = attest(path, axes=axes)
    assert found.verdict == "causal", str(found)
    assert found.every_length, found.open_step
    assert found.dynamic.moved
    words = {c.footprint.replace("causal window ", "window:").split(",")[0] for c in found.cores}
    declared = set(entry(name).footprint.split(" / "))
    assert words == (declared if words else set())


TRACED = [name for name in NAMES if name not in ("pos_rotary_interleaved", "attn_sdpa_gqa")]
"""Tracing bakes the length into the one and refuses grouped heads of the other."""


@pytest.mark.parametrize("name", TRACED)
def test_exports_by_tracing_are_proved(name: str, tmp_path: Path) -> None:
    path, axes = exported(name, tmp_path, export_torchscript, 17)
    found = attest(path, axes=axes)
    assert found.verdict == "causal", str(found)
    assert found.every_length, found.open_step


def test_attention_in_a_loop_over_blocks_is_found_and_followed_past_one_block(
    tmp_path: Path,
) -> None:
    item = entry("attn_sdpa_gqa")
    export(item.factory(), tmp_path / "m.onnx", example=item.inputs(3, 7), target="tiled")
    found = attest(tmp_path / "m.onnx")
    assert found.verdict == "causal", str(found)
    assert [core.footprint for core in found.cores] == ["causal"]
    assert max(int(text.split("+")[1]) for text in found.lengths) > 64


class Peeking(nn.Module):
    """A block whose inner attention lost its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(x @ self.inner(x).transpose(1, 2), -1)
        return x + weights @ x


@pytest.mark.parametrize("how", [export_dynamo, export_torchscript], ids=["dynamo", "tracing"])
def test_a_rejection_names_the_line_where_the_exporter_wrote_it(
    how: object, tmp_path: Path
) -> None:
    axes = ({0: "batch", 1: "seq"},)
    x = torch.randn(3, 7, 16)
    how(Peeking(), (x,), axes, tmp_path / "m.onnx", names=["x"], opset=18)  # type: ignore[operator]
    offence = attest(tmp_path / "m.onnx", axes={"x": axes[0]}).offence
    assert offence is not None
    assert offence.op_type == "Softmax"
    if how is export_dynamo:
        assert "torch.softmax(x @ self.inner(x)" in offence.line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "cores"),
    [
        ("hf_llama_sdpa", {"causal"}),
        ("hf_gpt2_eager", {"causal"}),
        ("hf_gemma2_eager", {"causal window 5", "causal"}),
        ("hf_mpt_eager", {"causal with ALiBi"}),
    ],
)
def test_decoders_of_transformers_are_proved(name: str, cores: set[str], tmp_path: Path) -> None:
    class Logits(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.model(input_ids=input_ids, use_cache=False).logits

    item = entry(name)
    path = export_dynamo(
        Logits(item.factory()), item.inputs(3, 7), item.axes, tmp_path / "m.onnx",
        names=["input_ids"], opset=18,
    )  # fmt: skip
    found = attest(path, axes={"input_ids": dict(item.axes[0])})
    assert found.verdict == "causal"
    assert found.every_length
    assert {core.footprint.split(", softcap")[0] for core in found.cores} == cores
