"""Decoders of other exporters become folders of ours: proven, recorded, and run as they were."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from causal_onnx.export import adoption
from causal_onnx.export.adoption import adopt, computed_inside, decoder_file
from causal_onnx.export.attestation import attest
from causal_onnx.export.errors import ExportError
from causal_onnx.runtime import ArtifactError, load, read_artifact, verify_bundle
from causal_onnx.runtime.contract import CachePair, ComputedInput, Contract, TensorSpec
from causal_onnx.runtime.request.computed import computed_inputs
from tests.runtime.foreign.files import COMPARED, reference, unpack


@pytest.mark.parametrize("name", COMPARED)
def test_an_adopted_folder_continues_as_transformers_does(name: str, tmp_path: Path) -> None:
    found = adopt(unpack(name, tmp_path).parent, tmp_path / "model")
    loaded = load(tmp_path / "model", threads=1)
    endless = load(
        tmp_path / "model", threads=1, contract=replace(loaded.contract, eos_token_ids=())
    )
    known = reference(name, tmp_path)
    for prompt, wanted in zip(known["prompts"], known["greedy"], strict=True):
        assert list(endless.generate(prompt, max_new_tokens=120).ids) == wanted
    assert found.certificate.verdict == "causal"
    assert found.certificate.every_length
    assert loaded.selftest().passed
    assert verify_bundle(tmp_path / "model").passed


@pytest.mark.parametrize("name", ["merged-llama", "optimum-gpt2", "mobius-llama"])
def test_positions_and_flags_are_computed_in_the_graph(name: str, tmp_path: Path) -> None:
    found = adopt(unpack(name, tmp_path), tmp_path / "model")
    assert found.contract.computed == ()
    inputs = {spec.name for spec in found.contract.inputs}
    assert inputs - found.contract.past_names == {"input_ids", "attention_mask"}
    assert "position_ids" in "".join(found.changes)


def test_the_folder_says_what_it_is(tmp_path: Path) -> None:
    path = unpack("merged-llama", tmp_path)
    adopt(path, tmp_path / "model")
    artifact = read_artifact(tmp_path / "model")
    assert artifact.source["origin"].startswith("adopted: another exporter wrote the graph, and it")
    assert artifact.source["written_by"] == "optimum-onnx"
    assert artifact.certificate is not None
    assert "parity" not in artifact.certificate
    page = (tmp_path / "model" / "README.md").read_text()
    assert "not compared with PyTorch" in page
    assert "If rows differ in length, padding comes first" in page
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [2, 3]
    assert artifact.contract is not None
    assert (artifact.contract.eos_token_ids, artifact.contract.max_seq_len) == ((2, 3), 160)


def test_an_adopted_file_is_the_same_again(tmp_path: Path) -> None:
    path = unpack("genai-llama", tmp_path)
    for name in ("one", "two"):
        adopt(path, tmp_path / name)
    for file in ("model.onnx", "model.onnx.data", "contract.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("name", ["genai-qwen3", "mobius-llama", "optimum-gpt2"])
def test_a_file_is_attested_as_it_is_too(name: str, tmp_path: Path) -> None:
    assert attest(unpack(name, tmp_path)).every_length


def altered(path: Path, **ops: str) -> Path:
    """The file with other operators in place of these."""
    proto = onnx.load(path)
    for node in proto.graph.node:
        node.op_type = ops.get(node.op_type, node.op_type)
    onnx.save(proto, path)
    return path


def test_a_file_that_is_not_causal_is_refused_with_the_node_named(tmp_path: Path) -> None:
    path = altered(unpack("optimum-llama", tmp_path), LessOrEqual="GreaterOrEqual")
    with pytest.raises(ExportError, match=r'is not causal, at \w+ ".+": .*nothing was written'):
        adopt(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_what_nothing_decides_is_taken_on_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def undecided(*arguments: Any, **options: Any) -> Any:
        return replace(attest(*arguments, **options), verdict="undecided", reason="it is open")

    monkeypatch.setattr("causal_onnx.export.adoption.attest", undecided)
    path = unpack("genai-llama", tmp_path)
    with pytest.raises(ExportError, match=r"not shown to be causal: it is open.*--undecided-ok"):
        adopt(path, tmp_path / "model")
    adopt(path, tmp_path / "model", undecided_ok=True)
    certificate = read_artifact(tmp_path / "model").certificate
    assert certificate is not None
    assert certificate["verdict"] == "undecided"


@pytest.mark.parametrize(
    ("name", "ragged", "message"),
    [
        ("genai-llama", "left", "halves of rows of different lengths: onnxr"),
        (
            "optimum-gpt2",
            "packed",
            "single steps of different lengths and one pass differ",
        ),
    ],
)
def test_a_contract_that_is_not_the_files_is_found_out(
    name: str, ragged: str, message: str, tmp_path: Path
) -> None:
    path = unpack(name, tmp_path)
    own = read_artifact(path).derived_contract
    unshared = tuple(replace(pair, shared=False) for pair in own.cache)
    wrong = replace(own, ragged=ragged, cache=unshared)
    with pytest.raises(ExportError, match=f"does not do what its contract says: .*{message}"):
        adopt(path, tmp_path / "model", contract=wrong)


def test_the_decoder_of_a_folder_is_found(tmp_path: Path) -> None:
    merged = unpack("merged-llama", tmp_path)
    shutil.copy(merged, merged.with_name("decoder_with_past_model.onnx"))
    assert decoder_file(merged.parent) == merged
    shutil.copy(merged, merged.with_name("model.onnx"))
    with pytest.raises(ArtifactError, match=r"has several decoders; name one: .*model.onnx"):
        decoder_file(merged.parent)
    merged.with_name("model.onnx").unlink()
    merged.with_name("decoder_with_past_model.onnx").unlink()
    merged.unlink()
    with pytest.raises(ArtifactError, match=r"has no decoder with a cache: .*can only begin a seq"):
        decoder_file(merged.parent)
    with pytest.raises(ArtifactError, match=r"it has no \.onnx file"):
        decoder_file(tmp_path)


def test_transformers_js_keeps_its_tokenizer_a_folder_above(tmp_path: Path) -> None:
    path = unpack("optimum-llama", tmp_path)
    (path.parent / "onnx").mkdir()
    path.rename(path.parent / "onnx" / "model.onnx")
    (path.parent / "LICENSE").write_text("free")
    found = adopt(path.parent, tmp_path / "model")
    assert found.source == path.parent / "onnx" / "model.onnx"
    assert (tmp_path / "model" / "LICENSE").read_text() == "free"


def test_our_own_files_are_not_adopted(tmp_path: Path) -> None:
    adopt(unpack("genai-llama", tmp_path), tmp_path / "model")
    with pytest.raises(ArtifactError, match=r"already carries a contract.*causal-onnx bundle"):
        adopt(tmp_path / "model" / "model.onnx", tmp_path / "again")


def test_what_the_graph_computes_is_what_the_runtime_would(tmp_path: Path) -> None:
    """Positions in int32, a flag without axes and a count of logits, with padding on both sides."""
    past = TensorSpec(name="past", dtype="float32", axes=("batch", 1, "past_seq", 1))
    contract = Contract(
        inputs=(
            TensorSpec(name="mask", dtype="int32", axes=("batch", "total_seq")),
            TensorSpec(name="positions", dtype="int32", axes=("batch", "seq")),
            TensorSpec(name="flag", dtype="bool", axes=()),
            TensorSpec(name="kept", dtype="int64", axes=(1,)),
            past,
        ),
        outputs=(replace(past, name="present", axes=("batch", 1, "total_seq", 1)),),
        cache=(CachePair(past="past", present="present"),),
        mask="mask",
        computed=(
            ComputedInput(name="positions", rule="positions"),
            ComputedInput(name="flag", rule="has_past"),
            ComputedInput(name="kept", rule="all_logits"),
        ),
        ragged="left",
    )
    names = ("positions", "flag", "kept")
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in names]
    types = {"positions": TensorProto.INT32, "flag": TensorProto.BOOL, "kept": TensorProto.INT64}
    inputs = [
        helper.make_tensor_value_info("mask", TensorProto.INT32, ["b", "t"]),
        helper.make_tensor_value_info("past", TensorProto.FLOAT, ["b", 1, "p", 1]),
        *(helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()),
    ]
    outputs = [helper.make_tensor_value_info(f"{n}_out", kind, None) for n, kind in types.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    inner, changes = computed_inside(proto, contract)
    assert inner.computed == ()
    assert changes == ["flag, kept, positions computed in the graph"]
    import onnxruntime as ort

    session = ort.InferenceSession(proto.SerializeToString())
    mask = np.array([[0, 0, 1, 1, 0], [1, 1, 1, 1, 1]], np.int32)
    for past_seq in (0, 2):
        got = session.run(None, {"mask": mask, "past": np.zeros((2, 1, past_seq, 1), np.float32)})
        wanted = computed_inputs(contract, mask, batch=2, past_seq=past_seq, seq=5 - past_seq)
        for name, value in zip(names, got, strict=True):
            np.testing.assert_array_equal(value, wanted[name])
            assert value.shape == wanted[name].shape


def test_a_folder_that_is_in_the_way_is_found_before_the_file_is_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = unpack("optimum-llama", tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").touch()
    monkeypatch.setattr(adoption, "attest", None)  # calling it fails
    with pytest.raises(FileExistsError, match="is not empty and not a bundle"):
        adopt(theirs, tmp_path / "model")
