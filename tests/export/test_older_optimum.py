"""Decoders as optimum wrote them before 1.14, whose part with a past was traced at one position.

Made of files of its newer version: behind a past they lack the causal mask of the new positions, as
PyTorch left it out at one position, and they declare one position there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from causal_onnx.export import adopt
from causal_onnx.runtime import ArtifactError, Model, load
from causal_onnx.runtime.session.runner import Runner
from tests.runtime.foreign.files import reference, unpack

KINDS = {"steps": "merged-llama", "single": "optimum-llama"}
ROWS = [[1, 5, 9, 20, 33, 7, 8, 11], [1, 44, 3, 6], [1, 17, 2, 30, 12, 6]]


def traced_at_one_position(graph: onnx.GraphProto) -> None:
    """Let new positions see each other, and declare that there is one."""
    nodes = []
    for node in graph.node:
        if node.op_type == "LessOrEqual":
            before, after = (f"{node.output[0]}_{name}" for name in ("before", "after"))
            nodes += [
                helper.make_node("LessOrEqual", node.input, [before]),
                helper.make_node("Greater", node.input, [after]),
                helper.make_node("Or", [before, after], node.output),
            ]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (*graph.input, *graph.output):
        if value.name in ("input_ids", "logits"):
            value.type.tensor_type.shape.dim[1].dim_value = 1


def write_older(kind: str, folder: Path) -> Path:
    path = unpack(KINDS[kind], folder)
    proto = onnx.load(path)
    if kind == "single":
        traced_at_one_position(proto.graph)
        path = path.with_name("decoder_with_past_model.onnx")
    else:
        branches = {item.name: item.g for item in proto.graph.node[0].attribute}
        traced_at_one_position(branches["then_branch"])
    onnx.save(proto, path)
    return path


def load_older(kind: str, folder: Path) -> Model:
    path = write_older(kind, folder)
    contract = load(path).contract
    assert contract.ragged == kind
    return load(path, threads=1, contract=replace(contract, eos_token_ids=()))


def test_such_a_file_is_wrong_for_several_positions_behind_a_past(tmp_path: Path) -> None:
    careless = replace(load_older("steps", tmp_path).contract, ragged="none")
    model = load(write_older("steps", tmp_path), contract=careless)
    stream, ids = model.stream(), np.array([ROWS[0]])
    chunks = [stream(ids[:, :4]), stream(ids[:, 4:])]
    assert np.abs(np.concatenate(chunks, 1) - model(ids)).max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_beams_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model = load_older(kind, tmp_path)
    known = reference(KINDS[kind], tmp_path)
    for prompt, greedy, beam in zip(known["prompts"], known["greedy"], known["beams"], strict=True):
        assert list(model.generate(prompt, max_new_tokens=60).ids) == greedy[:60]
        best = model.beam_search(prompt, max_new_tokens=24, beams=3)[0]
        assert list(best.ids) == beam
    alone = [model.generate(row, max_new_tokens=9).ids for row in ROWS]
    assert [x.ids for x in model.generate_batch(ROWS, max_new_tokens=9)] == alone


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_reads_chunks_and_rows_of_any_length(kind: str, tmp_path: Path) -> None:
    model = load_older(kind, tmp_path)
    whole = load(unpack("optimum-llama", tmp_path), threads=1)
    stream = model.stream(batch=2)
    ids = np.array([ROWS[0], ROWS[2] + [0, 0]])
    first = stream(ids[:, :3])
    second = stream(ids[:, 3:7], lengths=[4, 2])
    last = stream(ids[:, 7:], lengths=[1, 0], last_only=True)
    wanted = [whole(np.array([row]))[0] for row in (ROWS[0], ROWS[2])]
    np.testing.assert_allclose(first, [w[:3] for w in wanted], atol=1e-4)
    np.testing.assert_allclose(second[0], wanted[0][3:7], atol=1e-4)
    np.testing.assert_allclose(second[1, :2], wanted[1][3:5], atol=1e-4)
    np.testing.assert_allclose(last[0], wanted[0][-1:], atol=1e-4)
    assert stream.lengths == (8, 5)


@pytest.mark.parametrize(
    ("kind", "past", "message"),
    [("single", 0, "reads one position in each call"), ("steps", 2, "in a call with a past .* 3")],
)
def test_a_request_of_several_positions_is_refused(
    kind: str, past: int, message: str, tmp_path: Path
) -> None:
    model = load_older(kind, tmp_path)
    held: dict[str, Any] = {}
    for name in model.contract.past_names if past else ():
        spec = next(spec for spec in model.contract.inputs if spec.name == name)
        held[name] = np.zeros(spec.shape({"batch": 1, "past_seq": past}), np.float32)
    with pytest.raises(ValueError, match=rf"{message}.*: model\.stream\(\)"):
        model.run(input_ids=np.array([[1, 5, 9]]), **held)


@pytest.mark.parametrize("kind", KINDS)
def test_no_folder_is_made_of_it(kind: str, tmp_path: Path) -> None:
    path = write_older(kind, tmp_path)
    with pytest.raises(ArtifactError, match=r"one position per call.* runs as it is: load\(path\)"):
        adopt(path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_long_prompt_is_read_in_one_call_where_no_chunk_follows_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("causal_onnx.runtime.generation.prompt.CHUNK", 3)
    model = load_older("steps", tmp_path)
    calls: list[int] = []
    run = Runner.run_step

    def counted(self: Runner, feeds: dict[str, Any]) -> Any:
        calls.append(feeds["input_ids"].shape[1])
        return run(self, feeds)

    monkeypatch.setattr(Runner, "run_step", counted)
    model.generate(ROWS[0], max_new_tokens=2)
    assert calls == [8, 1]
