"""Cached attention in onnxruntime's grouped-query operator: found, right, and left where not."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from causal_onnx.export import export
from causal_onnx.models import AttentionConfig, DecoderConfig, DecoderLM
from causal_onnx.runtime.contract import CHUNKED, ORT_FORMS
from tests.zoo.masks import SinkLogits

CAPACITY = 24

COUNTS = 16
"""Where the operator takes the new positions of each row (`query_seqlens`)."""


@cache
def decoder(*, head_dim: int = 16, **attention: object) -> DecoderLM:
    """One layer with two query heads to a key-value head, unless said otherwise.

    The same for all tests, so that it is captured once.
    """
    sizes = {"embed_dim": 64, "num_heads": 4, "num_kv_heads": 2, "head_dim": head_dim}
    config = AttentionConfig(**{**sizes, "max_seq_len": CAPACITY, **attention})  # type: ignore[arg-type]
    return DecoderLM(
        DecoderConfig(vocab_size=61, num_layers=1, attention=config, mlp_dim=48, norm="rms"), seed=0
    )


@cache
def partly_rotary() -> nn.Module:
    """A Hugging Face decoder that turns a quarter of each head."""
    import transformers

    config = transformers.GPTNeoXConfig(
        vocab_size=61,
        hidden_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=CAPACITY,
        rotary_pct=0.25,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    return transformers.GPTNeoXForCausalLM(config).eval()


def operator(path: Path) -> onnx.NodeProto | None:
    """The grouped-query operator of the file, in its branches too."""
    nodes = [
        inner
        for node in onnx.load(path).graph.node
        for inner in (node, *(inner for a in node.attribute for inner in a.g.node))
        if inner.op_type == "GroupQueryAttention"
    ]
    return nodes[0] if nodes else None


def attributes(node: onnx.NodeProto) -> dict[str, object]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


# module, rotary inside, queries, keys and values as one
FOUND = {
    "half": (lambda: decoder(rotary="half"), True, True),
    "interleaved": (lambda: decoder(rotary="interleaved", qkv_bias=True), True, True),
    "part of a head": (partly_rotary, True, False),
    "head too narrow to turn inside": (lambda: decoder(rotary="half", head_dim=8), False, False),
    "query and key norm": (lambda: decoder(rotary="half", qk_norm=True), True, False),
    "no rotary, softcap": (lambda: decoder(softcap=5.0), False, True),
}


@pytest.mark.parametrize("target", ORT_FORMS)
@pytest.mark.parametrize(("make", "turns", "packed"), FOUND.values(), ids=FOUND)
def test_a_cached_core_runs_in_the_operator(
    make: object, turns: bool, packed: bool, target: str, tmp_path: Path
) -> None:
    # The export itself compares with PyTorch: chunks, single steps, rows of different lengths.
    report = export(  # type: ignore[operator]
        make(), tmp_path / "m.onnx", cache=True, max_seq_len=CAPACITY, target=target
    )
    assert report.certificate.verdict == "causal"
    assert report.certificate.every_length
    node = operator(tmp_path / "m.onnx")
    assert node is not None
    assert (len(node.input) > COUNTS) == (target == CHUNKED)
    assert attributes(node).get("do_rotary", 0) == int(turns)
    assert (list(node.input[1:3]) == ["", ""]) == packed
    # What the operator does itself is not done outside as well.
    outside = Counter(n.op_type for n in onnx.load(tmp_path / "m.onnx").graph.node)
    assert bool(outside["Cos"]) == (
        not turns and make is FOUND["head too narrow to turn inside"][0]
    )


@pytest.mark.parametrize(
    "make",
    [lambda: decoder(alibi=True), lambda: decoder(window=5), lambda: decoder(head_dim=12)],
    ids=["bias", "bounded window", "width it refuses"],
)
def test_what_the_operator_cannot_do_is_written_otherwise(make: object, tmp_path: Path) -> None:
    report = export(make(), tmp_path / "m.onnx", cache=True, max_seq_len=CAPACITY)  # type: ignore[operator]
    assert report.cache is not None
    assert report.cache.passed
    assert operator(tmp_path / "m.onnx") is None


def test_beyond_its_tables_a_model_without_limit_is_turned_by_its_own_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The export compares lengths up to 41 with PyTorch, in chunks and in batches.
    monkeypatch.setattr("causal_onnx.export.attention.rotary.USUAL_TABLE", 16)
    report = export(decoder(rotary="half", max_seq_len=None), tmp_path / "m.onnx", cache=True)
    assert report.cache is not None
    assert report.cache.passed
    assert report.certificate.verdict == "causal"
    node = operator(tmp_path / "m.onnx")
    assert node is not None
    assert attributes(node)["do_rotary"] == 1
    tables = [i.dims for i in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert [16, 8] in [list(dims) for dims in tables]


def test_by_one_operator_for_all_calls_a_model_without_limit_is_turned_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("causal_onnx.export.attention.rotary.USUAL_TABLE", 16)
    module = decoder(rotary="half", max_seq_len=None)
    report = export(module, tmp_path / "m.onnx", cache=True, target=CHUNKED)
    assert report.cache is not None
    assert report.cache.passed
    assert all(pair.shared for pair in report.contract.cache)
    node = operator(tmp_path / "m.onnx")
    assert node is not None
    assert "do_rotary" not in attributes(node)


@cache
def with_sinks() -> nn.Module:
    """Heads of a width that the operator takes."""
    torch.manual_seed(0)
    return SinkLogits(dim=32)


@pytest.mark.parametrize("target", ORT_FORMS)
def test_a_sink_goes_into_the_operator(target: str, tmp_path: Path) -> None:
    example = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    report = export(with_sinks(), tmp_path / "m.onnx", example=example, cache=True, target=target)
    assert report.cache is not None
    assert report.cache.passed
    node = operator(tmp_path / "m.onnx")
    assert node is not None
    assert node.input[11]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[DecoderLM, Path]:
    module, path = decoder(rotary="half"), tmp_path_factory.mktemp("grouped") / "m.onnx"
    export(module, path, cache=True)
    return module, path


def test_past_and_present_may_share_one_buffer(exported: tuple[DecoderLM, Path]) -> None:
    module, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = module.example_input(1, CAPACITY)
    with torch.no_grad():
        expected = module(ids).numpy()
    names = [pair.name for pair in session.get_inputs() if pair.name.startswith("past")]
    buffers = [
        onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 2, CAPACITY, 16), np.float32))
        for _ in names
    ]
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 20), (20, CAPACITY)):
        binding = session.io_binding()
        binding.bind_cpu_input("input_ids", ids[:, start:stop].numpy())
        binding.bind_cpu_input("attention_mask", np.ones((1, stop), np.int64))
        for name, buffer in zip(names, buffers, strict=True):
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        (got,) = (x for x in binding.copy_outputs_to_cpu() if x.shape[-1] == 61)
        np.testing.assert_allclose(got, expected[:, start:stop], rtol=0, atol=1e-5)


def test_a_row_without_new_tokens_keeps_its_cache(exported: tuple[DecoderLM, Path]) -> None:
    _, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = np.arange(10, dtype=np.int64).reshape(2, 5)
    empty = np.zeros((2, 2, 0, 16), np.float32)
    names = [x.name for x in session.get_inputs() if x.name.startswith("past")]
    _, *past = session.run(
        None, {"input_ids": ids, "attention_mask": np.ones_like(ids)} | dict.fromkeys(names, empty)
    )
    mask = np.ones((2, 6), np.int64)
    mask[1, 5] = 0
    _, *present = session.run(
        None,
        {"input_ids": ids[:, :1], "attention_mask": mask} | dict(zip(names, past, strict=True)),
    )
    for old, new in zip(past, present, strict=True):
        np.testing.assert_array_equal(new[1, :, :5], old[1])
