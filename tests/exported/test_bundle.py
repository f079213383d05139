"""Bundles of real exports, and what the package onnx reads in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from causal_onnx.export import export
from causal_onnx.models import AttentionConfig, DecoderConfig, DecoderLM
from causal_onnx.runtime import load, verify_bundle, write_bundle


@pytest.fixture(scope="module")
def decoder() -> DecoderLM:
    attention = AttentionConfig(
        embed_dim=16, num_heads=4, num_kv_heads=2, max_seq_len=16, rotary="half", window=3
    )
    config = DecoderConfig(vocab_size=1500, num_layers=1, attention=attention, mlp_dim=16)
    return DecoderLM(config, seed=0)


@pytest.fixture(scope="module")
def bundle(decoder: DecoderLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    export(decoder, folder / "m.onnx", cache=True)
    write_bundle(folder / "m.onnx", folder / "bundle")
    return folder / "bundle"


def test_cached_models_are_streamed_too(bundle: Path) -> None:
    """Through a cache that keeps a window, beyond its length."""
    report = verify_bundle(bundle)
    assert report.passed, report.findings
    assert len(report.streams) == 2
    plans = json.loads((bundle / "goldens.json").read_text())["streams"]
    assert plans == [{"case": 1, "chunks": [2, 1, 1, 1]}, {"case": 2, "chunks": [1, 1, 1]}]


def test_the_test_data_is_what_pytorch_computes(bundle: Path, decoder: DecoderLM) -> None:
    """Whole, though the file keeps these logits in part only."""
    session = onnxruntime.InferenceSession(bundle / "model.onnx")
    for folder in sorted(bundle.glob("test_data_set_*")):
        inputs, outputs = {}, {}
        for kind, nodes, found in (
            ("input", session.get_inputs(), inputs),
            ("output", session.get_outputs(), outputs),
        ):
            for index, node in enumerate(nodes):
                content = (folder / f"{kind}_{index}.pb").read_bytes()
                tensor = onnx.TensorProto.FromString(content)
                assert tensor.name == node.name
                found[node.name] = onnx.numpy_helper.to_array(tensor)
        got = session.run(list(outputs), inputs)
        for (name, expected), value in zip(outputs.items(), got, strict=True):
            np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5, err_msg=name)
        with torch.inference_mode():
            logits = decoder.eval()(torch.tensor(inputs["input_ids"])).numpy()
        np.testing.assert_allclose(outputs["logits"], logits, rtol=0, atol=1e-5)


def test_weights_in_a_second_file_go_along(
    decoder: DecoderLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from causal_onnx.export import write as artifact

    monkeypatch.setattr(artifact, "EXTERNAL_DATA_FROM_BYTES", 1000)
    export(decoder, tmp_path / "m.onnx")
    (beside,) = tmp_path.glob("m.onnx.*.data")
    files = write_bundle(tmp_path / "m.onnx", tmp_path / "bundle")
    assert beside.name in files
    beside.unlink()
    assert verify_bundle(tmp_path / "bundle").passed
    data = tmp_path / "bundle" / beside.name
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)
    assert f"{data.name} was changed" in verify_bundle(tmp_path / "bundle").findings[0]


def test_a_windowed_cache_is_not_for_genai(bundle: Path) -> None:
    assert not (bundle / "genai_config.json").exists()
    assert load(bundle / "model.onnx").contract.cache[0].bounded == 2


def test_an_input_that_may_be_left_out_is_in_the_test_data(bundle: Path) -> None:
    """A runner of ONNX's tests gives one file to each input of the graph."""
    graph = onnx.load(bundle / "model.onnx").graph
    names = [node.name for node in graph.input]
    assert "last_only" in names
    content = (bundle / "test_data_set_0" / f"input_{names.index('last_only')}.pb").read_bytes()
    assert not onnx.numpy_helper.to_array(onnx.TensorProto.FromString(content))
    assert len(list((bundle / "test_data_set_0").glob("input_*.pb"))) == len(names)
