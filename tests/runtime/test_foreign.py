"""Decoders that other exporters wrote, run as they are: `load("their.onnx")`."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import (
    ArtifactError,
    Model,
    PrefixCache,
    PromptLookup,
    Sampling,
    UnsafeFileError,
    load,
)
from tests.runtime.artifacts import field
from tests.runtime.foreign.files import ALL, COMPARED, load_foreign, raw_greedy, reference, unpack
from tests.runtime.onnx_bytes import DEFAULT, graph, node, value

LIMITS = {"gpt2": 160, "llama": 160, "qwen2": 160, "qwen3": 160, "bloom": None}
RAGGED = {"genai": "packed_steps", "optimum": "left", "mobius": "left", "merged": "left"}


@pytest.mark.parametrize("name", COMPARED)
def test_greedy_continuations_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    loaded = load_foreign(name, tmp_path)
    known = reference(name, tmp_path)
    for prompt, wanted in zip(known["prompts"], known["greedy"], strict=True):
        assert list(loaded.generate(prompt, max_new_tokens=120).ids) == wanted


@pytest.mark.parametrize("name", COMPARED)
def test_the_best_beam_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    loaded = load_foreign(name, tmp_path)
    known = reference(name, tmp_path)
    for prompt, wanted in zip(known["prompts"], known["beams"], strict=True):
        best = loaded.beam_search(prompt, max_new_tokens=24, beams=3)[0]
        assert list(best.ids) == wanted


@pytest.mark.parametrize("name", ["genai-llama-int4", "mobius-llama-fp16", "merged-llama"])
def test_tokens_are_those_of_a_loop_over_onnxruntime(name: str, tmp_path: Path) -> None:
    loaded = load_foreign(name, tmp_path)
    prompt = [1, 5, 9, 20]
    wanted = raw_greedy(unpack(name, tmp_path), prompt, 100)
    assert list(loaded.generate(prompt, max_new_tokens=100).ids) == wanted


@pytest.mark.parametrize("name", ALL)
def test_prompts_of_different_lengths_go_together_as_alone(name: str, tmp_path: Path) -> None:
    loaded = load_foreign(name, tmp_path)
    prompts = [[1, 5, 9, 20, 33, 7, 8], [1, 44, 3], [1, 17, 2, 30, 12, 6, 41, 19, 27, 4, 11]]
    alone = [loaded.generate(prompt, max_new_tokens=12).ids for prompt in prompts]
    assert [x.ids for x in loaded.generate_batch(prompts, max_new_tokens=12)] == alone


def chunked(loaded: Model, rows: list[list[int]], counts: list[list[int]]) -> list[np.ndarray]:
    """Logits of rows that are read in chunks: of chunk i, row r reads counts[i][r] ids."""
    stream, done = loaded.stream(batch=len(rows)), [0] * len(rows)
    found: list[list[np.ndarray]] = [[] for _ in rows]
    for lengths in counts:
        ids = np.zeros((len(rows), max(lengths)), np.int64)
        for row, (start, count) in enumerate(zip(done, lengths, strict=True)):
            ids[row, :count] = rows[row][start : start + count]
        logits = stream(ids, lengths=lengths)
        for row, count in enumerate(lengths):
            found[row].append(logits[row, :count])
            done[row] += count
    return [np.concatenate(parts) for parts in found]


@pytest.mark.parametrize("name", ALL)
def test_ragged_chunks_give_what_each_row_gives_alone(name: str, tmp_path: Path) -> None:
    loaded = load_foreign(name, tmp_path)
    rows = [[1, 5, 9, 20, 33, 7, 8, 11, 12], [1, 44, 3, 6], [1, 17, 2, 30, 12, 6, 41, 19, 27]]
    counts = [[3, 1, 5], [1, 1, 1], [4, 0, 2], [1, 2, 1]]
    scale = 1e-2 if "fp16" in name else 1e-4
    for ids, logits in zip(rows, chunked(loaded, rows, counts), strict=True):
        np.testing.assert_allclose(logits, loaded(np.array([ids]))[0], atol=scale, rtol=scale)


@pytest.mark.parametrize("name", ["genai-llama", "optimum-llama", "merged-bloom"])
def test_a_stream_that_was_rewound_forked_or_saved_goes_on_alike(name: str, tmp_path: Path) -> None:
    loaded = load_foreign(name, tmp_path)
    stream = loaded.stream(batch=2)
    stream(np.array([[1, 5, 9], [1, 7, 0]]), lengths=[3, 2])
    stream.save(tmp_path / "stream")
    wanted = stream.fork()(np.array([[4], [6]]))
    stream(np.array([[8, 8], [9, 9]]))
    stream.rewind([3, 2])
    for other in (stream, loaded.restore(tmp_path / "stream")):
        np.testing.assert_allclose(other(np.array([[4], [6]])), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["genai-llama", "optimum-llama", "merged-bloom"])
def test_a_prefix_that_is_known_changes_no_token(name: str, tmp_path: Path) -> None:
    loaded = load_foreign(name, tmp_path)
    prompts = [[*range(1, 40), 50], [*range(1, 40), 51, 52]]
    wanted = [loaded.generate(prompt, max_new_tokens=20).ids for prompt in prompts]
    known = PrefixCache(loaded, capacity_positions=1000, block=8)
    for _ in range(2):
        found = loaded.generate_batch(prompts, max_new_tokens=20, prefix_cache=known)
        assert [item.ids for item in found] == wanted


@pytest.mark.parametrize("name", ["genai-llama", "optimum-llama", "merged-bloom"])
def test_guessing_ahead_changes_no_token(name: str, tmp_path: Path) -> None:
    loaded, prompt = load_foreign(name, tmp_path), [1, 5, 9, 20, 5, 9]
    guessed = loaded.generate(prompt, max_new_tokens=60, draft=PromptLookup())
    assert guessed.ids == loaded.generate(prompt, max_new_tokens=60).ids
    assert guessed.speculation is not None
    assert guessed.speculation.accepted > 0


@pytest.mark.parametrize("name", ["genai-llama", "merged-gpt2"])
def test_drawn_tokens_are_the_same_from_the_same_seed(name: str, tmp_path: Path) -> None:
    loaded = load_foreign(name, tmp_path)
    drawn = [
        loaded.generate(
            [1, 5], max_new_tokens=30, sampling=Sampling(temperature=2.0), seed=seed
        ).ids
        for seed in (3, 3, 4)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("name", ALL)
def test_the_contract_follows_from_names_sizes_and_config(name: str, tmp_path: Path) -> None:
    contract = load_foreign(name, tmp_path, endless=False).contract
    layout, kind = name.split("-")[:2]
    ragged = {"mobius-qwen3": "packed_steps", "merged-bloom": "none"}.get(name, RAGGED[layout])
    assert (contract.max_seq_len, contract.ragged) == (LIMITS[kind], ragged)
    assert contract.mask == "attention_mask"
    assert contract.cache[1].past == "past_key_values.0.value"
    assert [pair.shared for pair in contract.cache] == [ragged == "packed_steps"] * 4


def test_an_end_of_text_that_the_config_names_ends_a_text(tmp_path: Path) -> None:
    loaded = load_foreign("optimum-llama", tmp_path, endless=False)
    assert loaded.contract.eos_token_ids == (2, 3)
    endless = load_foreign("optimum-llama", tmp_path).generate([1, 5], max_new_tokens=100).ids
    first = next((index for index, token in enumerate(endless) if token in (2, 3)), None)
    ids = loaded.generate([1, 5], max_new_tokens=100).ids
    assert ids == endless[: len(ids)]
    assert first is None or len(ids) == first + 1


def test_the_layout_of_transformers_js_has_its_config_a_folder_above(tmp_path: Path) -> None:
    path = unpack("optimum-llama", tmp_path)
    (path.parent / "onnx").mkdir()
    moved = path.rename(path.parent / "onnx" / "model_q4.onnx")
    assert load(moved).contract.eos_token_ids == (2, 3)


def test_a_call_may_give_the_mask_and_the_positions_itself(tmp_path: Path) -> None:
    loaded = load_foreign("optimum-llama", tmp_path)
    padded = np.array([[0, 0, 1, 5, 9], [1, 44, 3, 7, 8]])
    mask = (np.arange(5)[None] >= [[2], [0]]).astype(np.int64)
    logits = loaded(padded, attention_mask=mask)
    np.testing.assert_allclose(logits[0, 2:], loaded(padded[:1, 2:])[0], atol=1e-5)
    positions = np.maximum(mask.cumsum(1) - 1, 0)
    same = loaded(padded, attention_mask=mask, position_ids=positions)
    np.testing.assert_array_equal(same, logits)


def test_padding_that_a_graph_cannot_take_is_refused(tmp_path: Path) -> None:
    ids, mask = np.array([[1, 5, 9]]), np.array([[0, 1, 1]])
    bloom = load_foreign("merged-bloom", tmp_path)
    with pytest.raises(ValueError, match=r"padding that this file cannot take .* equally long"):
        bloom(ids, attention_mask=mask)
    with pytest.raises(ValueError, match="has a token after padding"):
        load_foreign("genai-llama", tmp_path)(ids, attention_mask=mask)


def test_a_contract_that_is_given_wins(tmp_path: Path) -> None:
    path = unpack("optimum-llama", tmp_path)
    own = replace(load(path).contract, max_seq_len=7)
    assert load(path, contract=own).contract == own


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="trials need Linux")
def test_a_file_of_another_exporter_has_its_trial_too(tmp_path: Path) -> None:
    loaded = load_foreign("optimum-llama", tmp_path, isolated_trial=True)
    assert len(loaded.generate([1, 5], max_new_tokens=3).ids) == 3


def test_half_of_a_pair_of_files_is_refused_with_the_other_half_named(tmp_path: Path) -> None:
    path = unpack("merged-llama", tmp_path).with_name("decoder_model.onnx")
    with pytest.raises(ArtifactError, match="only begin a sequence: load decoder_model_merged"):
        load(path)


def test_local_functions_are_for_whoever_trusts_the_file(tmp_path: Path) -> None:
    with pytest.raises(UnsafeFileError, match=r"local functions \(1\).*trusted=True loads it"):
        load_foreign("mobius-llama", tmp_path, trusted=False)


def test_a_model_larger_than_its_config_says_is_refused_by_ids(tmp_path: Path) -> None:
    path = unpack("optimum-llama", tmp_path)
    config = json.loads((path.parent / "config.json").read_text())
    (path.parent / "config.json").write_text(json.dumps({**config, "vocab_size": 10}))
    with pytest.raises(ValueError, match=r"holds the id 20 .* expected ids in \[0, 10\)"):
        load(path)(np.array([[1, 20]]))


def test_a_config_that_is_no_object_is_named(tmp_path: Path) -> None:
    path = unpack("genai-llama", tmp_path)
    (path.parent / "genai_config.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"genai_config.json must hold a JSON object, got list"):
        load(path)


def test_settings_of_another_file_are_not_of_this_one(tmp_path: Path) -> None:
    path = unpack("genai-llama", tmp_path)
    other = shutil.copy(path, path.with_name("other.onnx"))
    with pytest.raises(ArtifactError, match=r"does not say how many heads .* or how wide they are"):
        load(other)


def test_a_file_of_no_layout_is_refused_with_what_was_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(
        field(1, 10)
        + field(
            7,
            graph(
                [node("Identity", ["x"], ["y"])],
                inputs=[value("x", "batch", "seq", 4)],
                outputs=[value("y", "batch", "seq", 4)],
            ),
        )
        + field(8, DEFAULT)
    )
    with pytest.raises(
        ArtifactError, match=r"nothing says what this input is: x: float32 .*Looked for"
    ):
        load(path)
