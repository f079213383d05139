"""From the folder of a trained model to a folder that is a model, and its text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from causal_onnx.export import ExportReport, export_checkpoint
from causal_onnx.runtime import Model, Tokenizer, load, verify_bundle
from tests.export.real import SORTER, STORIES, continued, reference


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, Path]:
    """Where each of the two was exported to."""
    place = tmp_path_factory.mktemp("models")
    found = {source: place / source.name for source in (STORIES, SORTER)}
    for source, folder in found.items():
        report = export_checkpoint(source, folder)
        assert isinstance(report, ExportReport)
        assert report.path == folder / "model.onnx"
    return found


PROMPTS = ["Once upon a time", "Lily and her dog", "The"]


def prompts_of(source: Path) -> list[list[int]]:
    if source == STORIES:
        tokenizer = Tokenizer(STORIES)
        return [tokenizer.encode(text) for text in PROMPTS]
    return [[0, 0, 2, 1, 0, 1], [2, 2, 1, 0, 1, 2], [1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("source", [STORIES, SORTER], ids=lambda path: path.name)
def test_220_greedy_tokens_are_those_of_transformers(
    source: Path, folders: dict[Path, Path]
) -> None:
    model, trained = load(folders[source]), reference(source)
    for prompt in prompts_of(source):
        count = 220 if source == STORIES else 11 - len(prompt)
        (expected,) = continued(trained, prompt, count)
        assert list(model.generate(prompt, max_new_tokens=count).ids) == expected


@pytest.mark.parametrize("source", [STORIES, SORTER], ids=lambda path: path.name)
@pytest.mark.parametrize("penalty", [1.0, -1.0])
def test_beams_are_those_of_transformers(
    source: Path, penalty: float, folders: dict[Path, Path]
) -> None:
    model, trained = load(folders[source]), reference(source)
    beams = 3 if source == STORIES else 2
    options: dict[str, Any] = {"length_penalty": penalty}
    for prompt in prompts_of(source):
        count = 24 if source == STORIES else 11 - len(prompt)
        expected = continued(
            trained, prompt, count, num_beams=beams, num_return_sequences=beams, **options
        )
        found = model.beam_search(prompt, max_new_tokens=count, beams=beams, **options)
        assert [list(beam.ids) for beam in found] == expected


def test_the_sorter_sorts(folders: dict[Path, Path]) -> None:
    model = load(folders[SORTER])
    found = model.generate([2, 0, 1, 1, 0, 2], max_new_tokens=6)
    assert list(found.ids) == [0, 0, 1, 1, 2, 2]


def test_the_folder_has_all_that_the_checkpoint_had(folders: dict[Path, Path]) -> None:
    folder = folders[STORIES]
    for name in ("tokenizer.json", "tokenizer_config.json", "LICENSE"):
        assert (folder / name).read_bytes() == (STORIES / name).read_bytes()
    contract = load(folder).contract
    assert (contract.eos_token_ids, contract.bos_token_id) == ((2,), 1)
    settings = json.loads((folder / "generation_config.json").read_text())
    assert (settings["eos_token_id"], settings["bos_token_id"]) == (2, 1)
    assert json.loads((folder / "contract.json").read_text())["certificate"]["verdict"] == "causal"


def test_every_byte_of_the_folders_is_verified(folders: dict[Path, Path]) -> None:
    for folder in folders.values():
        report = verify_bundle(folder)
        assert report.passed, report.findings
        assert len(report.streams) > 0


def test_text_goes_in_and_out(folders: dict[Path, Path]) -> None:
    model: Model = load(folders[STORIES])
    text = model.generate("Once upon a time", max_new_tokens=40).text
    assert text is not None
    assert "there was" in text


def test_the_trained_context_is_the_limit_everywhere(folders: dict[Path, Path]) -> None:
    for source, context in ((STORIES, 256), (SORTER, 11)):
        assert load(folders[source]).contract.max_seq_len == context
        genai = json.loads((folders[source] / "genai_config.json").read_text())
        assert genai["model"]["context_length"] == context
