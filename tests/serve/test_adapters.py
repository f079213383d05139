"""Adapters that are served beside their model, each under a name of its own."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causal_onnx.cli import main as cli
from causal_onnx.runtime import Chat, Model, PrefixCache, PromptLookup, Sampling, load
from causal_onnx.serve import Engine, EngineOptions, Registry, ServedModel, open_models
from causal_onnx.serve.engine.rows import equal_sizes, open_rows
from causal_onnx.serve.engine.sequences import SequenceEngine, SequenceStep
from causal_onnx.serve.engine.tensors import TensorEngine
from causal_onnx.serve.operate.metrics import metrics_text
from tests.serve.conftest import STORIES
from tests.serve.models import with_template, write_adapter
from tests.serve.serving import post, served

RANKS = {"fairy": 2, "night": 20}
ROWS = [None, *RANKS]
PROMPT = "Once upon a time"
LONG = PROMPT * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model whose attention and first MLP layers adapters may change."""
    pytest.importorskip("torch", reason="a checkpoint is exported with PyTorch")
    from causal_onnx.export import export_checkpoint

    place = tmp_path_factory.mktemp("adapted") / "stories"
    export_checkpoint(STORIES, place, adaptable=["*.q_proj", "*.up_proj"], effort="quick")
    return place


@pytest.fixture(scope="module")
def paths(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of random weights that change what is written."""
    place = tmp_path_factory.mktemp("adapters")
    return {
        name: write_adapter(folder, place / f"{name}.npz", rank=rank, seed=rank)
        for name, rank in RANKS.items()
    }


@pytest.fixture(scope="module")
def model(folder: Path, paths: dict[str, Path]) -> Model:
    return load(folder, threads=1, adapters=paths, cast=True)


def written(engine: Engine, names: Sequence[str | None], **options: Any) -> list[tuple[int, ...]]:
    """What comes of a prompt with each adapter, all at once."""
    options = {"max_new_tokens": 24, "seed": 1, **options}
    begun = [engine.submit(PROMPT, adapter=name, **options) for name in names]
    return [item.results()[0].ids for item in begun]


def test_requests_with_different_adapters_are_decoded_together(model: Model) -> None:
    with Engine(model, options=EngineOptions(sequences=4, prefix_positions=0)) as engine:
        assert len(engine.batch_sizes) > 1
        together = written(engine, [*ROWS, "night"])
        alone = [written(engine, [name])[0] for name in [*ROWS, "night"]]
    assert together == alone
    assert together[2] == together[3]
    assert len(set(together)) == 3
    for name, ids in zip(ROWS, together, strict=False):
        assert model.generate(PROMPT, max_new_tokens=24, adapter=name).ids == ids


def test_an_adapter_follows_its_sequence_as_others_leave(model: Model) -> None:
    with Engine(model, options=EngineOptions(sequences=4)) as engine:
        expected = {name: written(engine, [name], max_new_tokens=30)[0] for name in ROWS}
        begun = [
            (name, engine.submit(PROMPT, adapter=name, max_new_tokens=count, seed=1))
            for name, count in zip(
                [*ROWS, *ROWS[::-1], *ROWS], (3, 30, 9, 20, 2, 30, 5, 7, 11), strict=True
            )
        ]
        for name, item in begun:
            (found,) = item.results()
            assert found.ids == expected[name][: len(found.ids)]


def test_the_prefix_cache_keeps_what_an_adapter_read_apart(model: Model) -> None:
    with Engine(model, options=EngineOptions(chunk=16)) as engine:
        first = [engine.submit(LONG, adapter=name, max_new_tokens=8) for name in ROWS]
        expected = [item.results()[0].ids for item in first]
        again = [engine.submit(LONG, adapter=name, max_new_tokens=8) for name in ROWS]
        assert [item.results()[0].ids for item in again] == expected
    assert [item.cached_tokens for item in first] == [0, 0, 0]
    assert all(item.cached_tokens >= 80 for item in again)


def test_generation_shares_a_prefix_cache_among_adapters(model: Model) -> None:
    cache = PrefixCache(model, capacity_positions=1000, block=16)
    options: dict[str, Any] = {"max_new_tokens": 8, "prefix_cache": cache}
    for _ in range(2):
        for name in ROWS:
            found = model.generate(LONG, adapter=name, **options)
            assert found.ids == model.generate(LONG, max_new_tokens=8, adapter=name).ids
    together = model.generate_batch([LONG] * 3, adapter=ROWS, **options)
    assert [item.ids for item in together] == [
        model.generate(LONG, max_new_tokens=8, adapter=name).ids for name in ROWS
    ]
    assert (cache.stats.prompts, cache.stats.hits) == (9, 6)


def test_a_chat_keeps_its_adapter_from_turn_to_turn(
    folder: Path, paths: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("jinja2", reason="chat templates need the extra text")
    model = load(with_template(folder, tmp_path / "chatty"), adapters=paths)
    said = [{"role": "user", "content": PROMPT}]
    options: dict[str, Any] = {"max_new_tokens": 12, "sampling": Sampling()}
    replies = {name: model.chat(said, adapter=name, **options) for name in ROWS}
    assert len({reply.ids for reply in replies.values()}) == 3
    talk = Chat(model, adapter="night", **options)
    assert talk.send(PROMPT).ids == replies["night"].ids
    again = [*said, {"role": "assistant", "content": talk.messages[-1]["content"]}, *said]
    assert talk.send(PROMPT).ids == model.chat(again, adapter="night", **options).ids


def test_guesses_change_no_token_of_an_adapted_model(model: Model) -> None:
    options = EngineOptions(draft=PromptLookup(), sequences=1)
    with Engine(model, options=options) as guessing, Engine(model) as plain:
        assert written(guessing, ["night"]) == written(plain, ["night"])


def test_replays_take_the_same_adapter(model: Model) -> None:
    turn = threading.Event()
    with Engine(model, options=EngineOptions(replays=True)) as engine:
        written(engine, ROWS)
        for record in engine.records.values():
            while not record.replays_equal + record.replays_different:
                turn.wait(0.01)
        found = [engine.records[name] for name in ROWS]
    assert [(record.replays_equal, record.replays_different) for record in found] == [(1, 0)] * 3


def test_an_adapter_that_is_not_loaded_is_refused(model: Model) -> None:
    with Engine(model) as engine, pytest.raises(ValueError, match="there is no adapter 'day'"):
        engine.submit(PROMPT, adapter="day")
    with pytest.raises(ValueError, match="there is no adapter 'day'; loaded are fairy, night"):
        model.stream(adapter="day")
    with pytest.raises(ValueError, match="a name or None for each of 2 rows, got"):
        model.stream(batch=2, adapter=["fairy"])


def test_numbers_of_rows_that_an_adapter_changes_are_found(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert equal_sizes(model, count=3, capacity=64) == (1, 2, 3)
    adapters = model.runner.adapters
    plain = adapters.inputs

    def other_bits(rows: Sequence[str | None]) -> dict[str, Any]:
        scale = np.float32(1 + 1e-3 * (len(rows) == 2))
        return {name: value * scale for name, value in plain(rows).items()}

    monkeypatch.setattr(adapters, "inputs", other_bits)
    assert equal_sizes(model, count=3, capacity=64) == (1, 3)
    assert open_rows(model, count=3, capacity=64).count == 3


def test_tensors_are_answered_with_an_adapter(model: Model) -> None:
    ids = np.array([[1, 2, 3]])
    given = {"input_ids": ids}
    with TensorEngine(model) as engine:
        futures = [engine.submit(given, adapter=name) for name in [*ROWS, "night"]]
        found = [future.result()["logits"] for future in futures]
        own = model.adapter_inputs(["fairy"])
        with pytest.raises(ValueError, match=r"is that of the adapter 'night'; leave it out"):
            engine.submit({**given, **own}, adapter="night")
    for name, logits in zip([*ROWS, "night"], found, strict=True):
        expected = model.run(ids, **model.adapter_inputs([name]))["logits"]
        assert logits.tobytes() == expected.tobytes()


def test_each_adapter_has_sequences_of_its_own(model: Model) -> None:
    begin, end = SequenceStep(5, True, False), SequenceStep(5, False, True)
    with SequenceEngine(model) as engine:
        for name in ROWS:
            engine.submit(begin, {"input_ids": np.array([[1, 2]])}, adapter=name).result()
        assert engine.held == 3
        for name in ROWS:
            step = engine.submit(end, {"input_ids": np.array([[3]])}, adapter=name).result()
            stream = model.stream(adapter=name)
            stream.run(np.array([[1, 2]]))
            assert step["logits"].tobytes() == stream.run(np.array([[3]]))["logits"].tobytes()


def test_a_server_lists_and_serves_each_adapter_by_its_name(
    folder: Path, paths: dict[str, Path], model: Model
) -> None:
    import httpx

    asked = {"prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    models = open_models([f"tales={folder}"], threads=1, adapters=paths)
    with served(models) as address:
        listed = httpx.get(f"{address}/v1/models").json()["data"]
        answers = {
            name: post(address, "/v1/completions", {"model": name or "tales", **asked})[1]
            for name in ROWS
        }
        assert httpx.get(f"{address}/v1/models/night").json()["parent"] == "tales"
        assert post(address, "/v1/completions", {"model": "day", **asked})[0] == 404
        text = httpx.get(f"{address}/metrics").text
    assert [(item["id"], item.get("parent")) for item in listed] == [
        ("tales", None), ("fairy", "tales"), ("night", "tales")
    ]  # fmt: skip
    for name, answer in answers.items():
        expected = model.generate(PROMPT, max_new_tokens=12, adapter=name).text
        assert answer["choices"][0]["text"] == expected
        assert answer["model"] == (name or "tales")
    assert 'causal_onnx:generation_tokens_total{model_name="night"} 12' in text
    assert 'causal_onnx:num_requests_running{model_name="night"}' not in text


def test_an_adapter_comes_and_goes_with_its_model(folder: Path, paths: dict[str, Path]) -> None:
    models = open_models([f"tales={folder}"], threads=1, adapters=paths)
    models.remove("fairy")
    assert list(models) == ["tales", "night"]
    engine = models["night"].engine
    assert engine is not None
    assert engine.state.is_open
    models.load("tales")
    assert list(models) == ["tales", "night", "fairy"]
    assert models["night"].engine is models["tales"].engine is not engine
    assert not engine.state.is_open
    assert "fairy" in metrics_text(list(models.values()))
    models.remove("tales")
    assert list(models) == []


def test_names_of_adapters_are_checked(folder: Path, model: Model, paths: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="adapters are of one model, and 2 are served"):
        open_models([str(folder), f"b={folder}"], adapters=paths)
    with pytest.raises(ValueError, match=r"'a/b' cannot be the name of a model: .*ADAPTER=path"):
        open_models([str(folder)], adapters={"a/b": paths["night"]})
    with pytest.raises(ValueError, match="two models are called 'night'"):
        open_models([f"night={folder}"], adapters=paths)
    one = ServedModel.of("m", model)
    with pytest.raises(ValueError, match="two models are called 'm'"):
        Registry([one, dataclasses.replace(one)])
    one.close()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["m", "--adapter", "night"], "--adapter takes NAME=FOLDER, such as french=./lora-fr, got"),
        (["m", "--adapter", "a=x", "--adapter", "a=y"], "--adapter names 'a' twice"),
        (["m", "n", "--adapter", "a=x"], "--adapter is for one model, and several are served"),
    ],
)
def test_the_command_says_how_adapters_are_named(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *arguments]) == 2
    assert complaint in capsys.readouterr().err
