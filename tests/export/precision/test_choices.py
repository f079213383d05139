"""What a caller may choose for quantised weights: blocks, rounding, what is kept wider."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import onnx
import pytest

from causal_onnx.export import ExportError, export, verify
from causal_onnx.models import CausalMechanismV1, DecoderLM, tiny_llama_config
from causal_onnx.runtime import load
from tests.export.real import STORIES, reference


@cache
def decoder(seed: int = 0) -> DecoderLM:
    """The same for all tests, so that it is captured once."""
    return DecoderLM(tiny_llama_config(), seed=seed)


def block_sizes(path: Path) -> set[int]:
    nodes = onnx.load(path).graph.node
    return {a.i for node in nodes for a in node.attribute if a.name == "block_size"}


def test_a_trained_model_drifts_no_more_in_blocks_of_128_by_gptq_than_of_32_by_rounding(
    tmp_path: Path,
) -> None:
    pytest.importorskip("transformers")
    module = reference(STORIES)
    nearest, fitted = (
        export(module, tmp_path / "m.onnx", precision="int4", **options).drift
        for options in ({}, {"block_size": 128, "rounding": "gptq"})
    )
    assert nearest is not None
    assert fitted is not None
    assert (fitted.sampled_mean_kl or 1.0) < (nearest.sampled_mean_kl or 0.0)


def test_the_file_says_how_it_was_rounded_and_is_verified_so(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export(decoder(), path, precision="int4", rounding="gptq", effort="quick")
    certificate = load(path).certificate
    assert certificate is not None
    assert certificate["quantisation"]["rounding"] == "gptq"
    assert "rounded by gptq" in certificate["quantisation"]["summary"]
    assert verify(decoder(), path).passed
    assert not verify(decoder(1), path).passed


def test_a_module_of_features_is_fitted_to_inputs_like_its_example(tmp_path: Path) -> None:
    module = CausalMechanismV1(64, 64, 12, seed=0)
    report = export(module, tmp_path / "m.onnx", precision="int4", rounding="gptq")
    assert report.quantisation is not None
    assert report.quantisation.parity.max_error < 3e-6
    assert verify(module, tmp_path / "m.onnx").passed


@pytest.mark.parametrize(
    ("target", "width", "size"),
    [("ort", 320, 64), ("portable", 320, 64), ("ort", 576, 128), ("portable", 576, 64)],
)
def test_blocks_by_choice(target: str, width: int, size: int, tmp_path: Path) -> None:
    """320 is two blocks and a half of 128, 576 four and a half: the last may be short in "ort"."""
    path, module = tmp_path / "m.onnx", CausalMechanismV1(width, 64, 12, seed=0)
    report = export(module, path, precision="int4", block_size=128, target=target)
    assert block_sizes(path) == {size}
    assert report.quantisation is not None
    assert report.quantisation.parity.max_error < 3e-6
    assert "in blocks of 128" in report.quantisation.summary()
    assert load(path).selftest().passed
    assert verify(module, path).passed


def test_a_short_block_in_a_table_and_the_head_tied_to_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=144, intermediate_size=160, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config).eval()
    path = tmp_path / "m.onnx"
    options = {"precision": "int4", "cache": True, "effort": "quick"}
    report = export(module, path, block_size=32, **options)
    assert block_sizes(path) == {16, 32}
    report = export(module, path, block_size=64, rounding="gptq", **options)
    assert report.quantisation is not None
    assert report.quantisation.parity.max_error < 1e-5
    assert report.certificate.verdict == "causal"


def test_weights_are_kept_wider_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    table = next(name for name, p in decoder().named_parameters() if p.ndim == 2)
    keep = {"*down*": "fp32", table: "int8"}
    report = export(decoder(), path, precision="int4", keep=keep, cache=True, effort="quick")
    assert report.quantisation is not None
    wider = report.quantisation.options["wider"]
    assert wider[table] == 8
    assert {bits for name, bits in wider.items() if "down" in name} == {32}
    assert any("down" in text and "asked for" in text for text in report.quantisation.kept)
    assert ", 1 in 8, 2 kept" in report.quantisation.summary()
    assert verify(decoder(), path).passed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4", "block_size": 48}, "block_size must be one of 32, 64, 128, got 48"),
        ({"block_size": 64}, "block_size is for quantised weights .*; precision is 'fp32'"),
        ({"precision": "fp16", "rounding": "gptq"}, "rounding is for quantised weights"),
        ({"precision": "int4", "rounding": "up"}, "rounding must be one of nearest, gptq, got"),
        (
            {"precision": "int8", "keep": {"*": "int8"}},
            r"keep\['\*'\] must be 'fp32', which is wider than precision 'int8', got 'int8'",
        ),
        (
            {"precision": "int8", "target": "portable", "opset": 18, "block_size": 64},
            "precision 'int8' with target 'portable' has one scale for each row there",
        ),
    ],
)
def test_wrong_requests(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export(decoder(), tmp_path / "m.onnx", **options)  # type: ignore[arg-type]


def test_a_pattern_that_names_nothing_is_refused(tmp_path: Path) -> None:
    module = CausalMechanismV1(64, 64, 12, seed=0)
    with pytest.raises(ExportError, match=r"the pattern 'tail\*', which matches no weight"):
        export(module, tmp_path / "m.onnx", precision="int4", keep={"tail*": "fp32"})
