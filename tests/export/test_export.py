"""export() end to end: what it promises, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import causal_onnx.export
from causal_onnx.export import CausalityError, ExportError, ParityError, export, forms, verify
from causal_onnx.export.graph.cleanup import tidy
from causal_onnx.models import (
    AttentionConfig,
    CausalMechanismV1,
    DecoderLM,
    MultiHeadAttention,
    tiny_llama_config,
)
from causal_onnx.runtime import load


@pytest.mark.parametrize("name", causal_onnx.export.__all__)
def test_every_public_name_is_found_where_its_file_is(name: str) -> None:
    assert getattr(causal_onnx.export, name).__name__ == name


class Handwritten(nn.Module):
    """One head with a context x context mask buffer, as in a tutorial."""

    def __init__(self, dim: int = 16, context: int = 24, diagonal: int = 1) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.register_buffer("mask", torch.triu(torch.ones(context, context), diagonal=diagonal))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-2]
        scores = self.q(x) @ self.k(x).transpose(-2, -1)
        scores = scores.masked_fill(self.mask.bool()[:length, :length], -torch.inf)
        return self.dropout((scores / 4).softmax(-1)) @ self.v(x)


def features(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "example",
    [features(1, 1, 16), features(2, 6, 16), features(6, 16), features(1, 24, 16)],
    ids=["one position", "batch", "no batch", "the maximum"],
)
def test_any_example_gives_a_file_for_both_ranks(example: Tensor, tmp_path: Path) -> None:
    module = Handwritten().eval()
    export(module, tmp_path / "m.onnx", example=example)
    model = load(tmp_path / "m.onnx")
    for seq in (1, 5, 24):
        x = features(3, seq, 16)
        with torch.no_grad():
            expected = module(x).numpy()
        np.testing.assert_allclose(model(x.numpy()), expected, rtol=0, atol=2e-6)
        np.testing.assert_allclose(model(x[1].numpy()), expected[1], rtol=0, atol=2e-6)


def test_own_module_needs_no_example(tmp_path: Path) -> None:
    report = export(CausalMechanismV1(8, 4, 12, seed=0), tmp_path / "m.onnx")
    assert report.contract.max_seq_len == 12
    assert report.contract.unbatched
    assert report.certificate.verdict == "causal"
    assert json.loads(json.dumps(report.to_dict()))["parity"]["passed"]


def test_longer_than_the_context_is_refused_by_runtime_and_graph(tmp_path: Path) -> None:
    export(Handwritten(), tmp_path / "m.onnx", example=features(2, 6, 16))
    x = features(1, 25, 16).numpy()
    with pytest.raises(ValueError, match="length is 25, but this model accepts at most 24"):
        load(tmp_path / "m.onnx")(x)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    bare = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options)
    with pytest.raises(Exception, match="sequence_longer_than_max_seq_len_24"):
        bare.run(None, {"x": x})


def test_file_does_not_grow_with_the_context(tmp_path: Path) -> None:
    sizes = [
        export(
            Handwritten(context=context), tmp_path / f"{context}.onnx", example=features(2, 6, 16)
        ).size_bytes
        for context in (320, 1024)
    ]
    # Only the digits of the limit and of the proof's lengths differ.
    assert abs(sizes[1] - sizes[0]) < 2048


def test_module_is_left_as_it_was(tmp_path: Path) -> None:
    module = Handwritten().train()
    module(features(2, 6, 16)).sum().backward()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    gradient = module.q.weight.grad.clone()
    random_state = torch.get_rng_state()
    export(module, tmp_path / "m.onnx", example=features(2, 6, 16))
    assert module.training
    assert module.dropout.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(module.q.weight.grad, gradient)
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_pytorch_is_left_as_it_was(tmp_path: Path) -> None:
    names = [
        (functional, "scaled_dot_product_attention"),
        (torch, "triu_indices"),
        (torch.SymInt, "__hash__"),
        (torch.SymInt, "__index__"),
        (Tensor, "__setitem__"),
        (Tensor, "__bool__"),
    ]
    before = [getattr(owner, name) for owner, name in names]
    fast = torch.backends.mha.get_fastpath_enabled()
    export(Handwritten(), tmp_path / "m.onnx", example=features(2, 6, 16))
    with pytest.raises(ExportError):
        export(Looping(), tmp_path / "n.onnx", example=features(2, 6, 16))
    assert [getattr(owner, name) for owner, name in names] == before
    assert torch.backends.mha.get_fastpath_enabled() == fast


class Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows = [x[:, : t + 1].mean(1) for t in range(x.shape[1])]  # the loop
        return torch.stack(rows, 1)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        return functional.dropout(y, 0.5)  # the draw


class Bidirectional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("module", "error", "message"),
    [
        (Looping(), ExportError, r"test_export\.py:\d+ \(rows = .*range\(x\.shape\[1\]\)"),
        (Noisy(), ExportError, r"random in eval mode .*test_export\.py:\d+"),
        (Bidirectional(), CausalityError, "NOT causal: at length 2, changing positions >= 1"),
        (Handwritten(diagonal=2), CausalityError, "NOT causal"),
    ],
    ids=["loop", "random", "bidirectional", "shifted mask"],
)
def test_refused_with_the_reason_and_no_file(
    module: nn.Module, error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        export(module, tmp_path / "m.onnx", example=features(2, 6, 16))
    assert list(tmp_path.iterdir()) == []


def test_wrong_graph_raises_with_the_table_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"the file of yesterday")

    def spoilt(model: ir.Model) -> None:
        tidy(model)
        weight = next(v for v in model.graph.initializers.values() if len(v.shape or ()) == 2)
        assert weight.const_value is not None
        weight.const_value = ir.tensor(weight.const_value.numpy() * 1.001)

    monkeypatch.setattr(forms, "tidy", spoilt)
    with pytest.raises(ParityError, match=r"batch 1 .*batch 2 .*batch 5") as caught:
        export(Handwritten(), path, example=features(2, 6, 16))
    assert not caught.value.report.passed
    assert path.read_bytes() == b"the file of yesterday"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("opset", [18, 20, 22, 23, 24, 25])
def test_opsets(opset: int, tmp_path: Path) -> None:
    config = AttentionConfig(embed_dim=16, num_heads=2, max_seq_len=20)
    report = export(
        MultiHeadAttention(config, seed=0), tmp_path / "m.onnx", target="portable", opset=opset
    )
    proto = onnx.load(tmp_path / "m.onnx")
    assert report.parity.passed
    assert proto.ir_version == 10
    assert next(o.version for o in proto.opset_import if not o.domain) == opset
    assert {o.domain for o in proto.opset_import} == {""}


@pytest.mark.parametrize(
    ("alibi", "precision", "switches", "long_form"),
    [
        (False, "fp32", {257}, "GroupQueryAttention"),
        (True, "fp32", {257}, "Loop"),
        (False, "fp16", {257, 641}, "GroupQueryAttention"),
    ],
    ids=["fp32", "alibi", "fp16"],
)
def test_both_forms_of_the_ort_target_are_compared(
    alibi: bool, precision: str, switches: set[int], long_form: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    config = AttentionConfig(embed_dim=32, num_heads=2, max_seq_len=700, alibi=alibi)
    report = export(MultiHeadAttention(config, seed=0), path, precision=precision)
    (choice,) = [node for node in onnx.load(path).graph.node if node.op_type == "If"]
    long, short = (
        {node.op_type for node in branch.g.node}
        for branch in sorted(choice.attribute, key=lambda x: x.name, reverse=True)
    )
    assert long_form in long
    assert "Attention" in short
    lengths = {case.seq for case in report.parity.cases}
    assert {1, 700} | switches == {n for n in lengths if n == 1 or 100 < n <= 700}


class LastOnly(nn.Module):
    """A language model that gives the logits of the last position alone."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = DecoderLM(tiny_llama_config(), seed=0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids)[:, [-1]]


def test_logits_of_the_last_position_alone_are_told_how_to_get_all(tmp_path: Path) -> None:
    example, remedy = torch.zeros(2, 6, dtype=torch.int64), "Return the logits of all positions"
    report = export(LastOnly(), tmp_path / "m.onnx", example=example)
    assert any(remedy in warning for warning in report.warnings)
    with pytest.raises(ExportError, match=remedy):
        export(LastOnly(), tmp_path / "c.onnx", example=example, cache=True)


def test_half_precision(tmp_path: Path) -> None:
    module = Handwritten().eval()
    report = export(module, tmp_path / "m.onnx", example=features(2, 6, 16), precision="fp16")
    assert report.contract.precision == "fp16"
    x = features(2, 9, 16)
    got = load(tmp_path / "m.onnx")(x.half().numpy())
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, module(x).detach().numpy(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("target", ["portable", "tiled"])
def test_half_precision_below_the_attention_operator(target: str, tmp_path: Path) -> None:
    config = AttentionConfig(embed_dim=32, num_heads=2, max_seq_len=80, softcap=5.0)
    module = MultiHeadAttention(config, seed=0)
    report = export(module, tmp_path / "m.onnx", target=target, precision="fp16", opset=20)
    assert report.parity.passed
    assert not report.warnings  # attention is written anew, not as captured


def test_large_weights_go_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causal_onnx.export.write.EXTERNAL_DATA_FROM_BYTES", 1000)
    export(CausalMechanismV1(32, 32, 12, seed=0), tmp_path / "m.onnx")
    data, model = sorted(tmp_path.iterdir(), reverse=True), tmp_path / "m.onnx"
    assert data[1:] == [model]
    digest = hashlib.sha256(data[0].read_bytes()).hexdigest()
    assert data[0].name == f"m.onnx.{digest[:16]}.data"
    assert load(model).selftest().passed


@pytest.mark.parametrize("place", ["file/m.onnx", f"{'m' * 300}.onnx"])
def test_a_place_that_takes_no_file_is_found_before_the_module_is_called(
    place: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    module = CausalMechanismV1(8, 4, 12, seed=0)
    module.register_forward_pre_hook(lambda *_: pytest.fail("called"))
    with pytest.raises(OSError, match=r"cannot write .*; choose another place"):
        export(module, tmp_path / place)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_verify_accepts_the_source_and_names_another(tmp_path: Path) -> None:
    module = CausalMechanismV1(8, 4, 12, seed=0)
    export(module, tmp_path / "m.onnx")
    assert verify(module, tmp_path / "m.onnx").passed
    assert not verify(CausalMechanismV1(8, 4, 12, seed=1), tmp_path / "m.onnx").passed
    with pytest.raises(ValueError, match="the file's outputs are output: float32"):
        verify(CausalMechanismV1(8, 6, 12, seed=0), tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "gpu"}, "target must be one of ort, ort-1.32, portable, tiled, got 'gpu'"),
        ({"opset": 16}, r"opset must be in \[17, 25\], got 16"),
        (
            {"precision": "int3"},
            "precision must be one of fp32, fp16, bf16, int8, int4, w8a8, got 'int3'",
        ),
        ({"max_seq_len": 1}, "max_seq_len must be at least 2, got 1"),
        ({"max_seq_len": 99}, "max_seq_len is 99, but the module accepts at most 12 positions"),
    ],
)
def test_wrong_arguments(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export(CausalMechanismV1(8, 4, 12), tmp_path / "m.onnx", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_something_that_is_no_module() -> None:
    with pytest.raises(TypeError, match=r"export takes a torch.nn.Module, got list"):
        export([], "m.onnx")  # type: ignore[arg-type]
