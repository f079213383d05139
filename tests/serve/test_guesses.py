"""Tokens that are guessed ahead: faster or not, the same tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from causal_onnx.runtime import (
    Constraint,
    DraftHeads,
    DraftModel,
    Model,
    PromptLookup,
    Sampling,
    load,
)
from causal_onnx.runtime.generation.continuation import GrowingSequence, Plan
from causal_onnx.serve import BadRequestError, Engine, EngineOptions, open_models
from causal_onnx.serve.engine import guesses, rows
from causal_onnx.serve.engine.guesses import ExpectedText, Pieces, RowGuesses
from tests.runtime.artifacts import fixture
from tests.runtime.foreign.files import ALL, load_foreign
from tests.serve.serving import held, served

FEED = rows.feed
HOT = Sampling(temperature=1.0, top_k=9)
QUOTE = [7, 30, 2, 9, 4, 44, 5]
PROMPT = QUOTE * 4


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a position more cost 5 % of a step, however fast this machine is now."""
    costs = lambda rows, ids: [1 + 0.05 * place for place in range(len(ids))]  # noqa: E731
    monkeypatch.setattr(guesses, "piece_costs", costs)


@pytest.fixture(scope="module")
def model() -> Model:
    return load(fixture("language"), threads=1)


def engine_of(model: Model, draft: object = None, **options: Any) -> Engine:
    return Engine(model, options=EngineOptions(chunk=8, draft=draft, **options))


def told(engine: Engine, prompt: Sequence[int] | str, **options: Any) -> list[object]:
    """All that is told of a request: tokens with scores, in the order of each continuation."""
    return sorted(engine.submit(prompt, **options), key=lambda token: token.index)


def wrong_here_and_there(ids: Sequence[int]) -> list[int]:
    return [token if place % 6 else (token + 1) % 280 for place, token in enumerate(ids, start=1)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_logprobs": 3},
        {"sampling": HOT, "seed": 5},
        {"sampling": HOT, "seed": 6, "n": 3},
        {"sampling": Sampling(temperature=0.8, repetition_penalty=1.3, presence_penalty=0.5)},
    ],
    ids=["greedy", "scored", "sampled", "several", "penalised"],
)
def test_tokens_and_their_scores_are_those_without_guesses(model: Model, options) -> None:
    options = {"max_new_tokens": 90, "seed": 1, **options}
    with engine_of(model) as plain, engine_of(model, PromptLookup()) as guessing:
        expected = told(plain, PROMPT, **options)
        prediction = wrong_here_and_there([t.score.id for t in expected if t.index == 0])
        generation = guessing.submit(PROMPT, prediction=prediction, **options)
        assert sorted(generation, key=lambda token: token.index) == expected
    assert generation.accepted_prediction_tokens >= 40
    assert generation.rejected_prediction_tokens > 0


def test_guesses_are_made_of_the_texts_own_words(model: Model) -> None:
    flat = {"logit_bias": dict.fromkeys((3, 4), 50.0), "temperature": 0.01}
    options = {"max_new_tokens": 60, "sampling": Sampling(**flat), "seed": 0}
    with engine_of(model) as plain, engine_of(model, PromptLookup()) as guessing:
        generation = guessing.submit(PROMPT, **options)
        assert list(generation) == told(plain, PROMPT, **options)
    assert generation.accepted_tokens > 20
    assert generation.accepted_prediction_tokens == 0


@pytest.mark.parametrize("place", [5, 6, 7, 40])
def test_a_stop_ends_a_text_within_guesses_that_came_true(model: Model, place: int) -> None:
    options = {"max_new_tokens": 90, "sampling": HOT, "seed": 3}
    with engine_of(model) as plain, engine_of(model, PromptLookup()) as guessing:
        ids = [token.score.id for token in told(plain, PROMPT, **options)]
        options["stop"] = [ids[place]]
        generation = guessing.submit(PROMPT, prediction=ids, **options)
        assert list(generation) == (expected := told(plain, PROMPT, **options))
    assert expected[-1].finish == "stop"
    assert 0 < generation.accepted_tokens <= len(expected)


@pytest.mark.parametrize("context", [50, None], ids=["of the engine", "of the model"])
def test_the_longest_sequence_ends_within_guesses(model: Model, context: int | None) -> None:
    prompt = [*PROMPT, *[6, 8] * (180 if context is None else 5)]
    options = {"max_new_tokens": 90, "sampling": HOT, "seed": 3}
    with (
        engine_of(model, context=context) as plain,
        engine_of(model, PromptLookup(), context=context) as guessing,
    ):
        expected = told(plain, prompt, **options)
        generation = guessing.submit(
            prompt, prediction=[t.score.id for t in expected] * 2, **options
        )
        assert list(generation) == expected
    assert expected[-1].finish == "limit"
    assert generation.accepted_tokens > 5


def test_guesses_keep_to_a_constraint_and_to_stop_texts(talker: Path) -> None:
    model = load(talker, threads=1)
    constraint = Constraint.regex(r"(the cat sat on the mat\. ){3,5}")
    for options in ({"constraint": constraint}, {"sampling": HOT, "seed": 2, "stop": "t"}):
        with engine_of(model) as plain, engine_of(model, PromptLookup()) as guessing:
            expected = told(plain, "the cat sat", max_new_tokens=120, **options)
            generation = guessing.submit("the cat sat", max_new_tokens=120, **options)
            assert list(generation) == expected
    assert expected[-1].finish in ("stop", "length")


def test_a_constrained_text_that_repeats_itself_is_guessed(talker: Path) -> None:
    constraint = Constraint.regex(r"(the cat sat on the mat\. ){5}")
    with engine_of(load(talker, threads=1), PromptLookup()) as guessing:
        generation = guessing.submit("the", max_new_tokens=150, constraint=constraint)
        assert generation.results()[0].finish == "complete"
    assert generation.accepted_tokens > 40


def test_nobodys_guesses_change_a_bit_of_others(model: Model) -> None:
    def options_of(i: int) -> dict[str, Any]:
        sampling = HOT if i % 2 else None
        return {"max_new_tokens": 3 + 9 * (i % 7), "n": 1 + i % 3, "seed": i, "sampling": sampling}

    prompts = [QUOTE[: 1 + i % 7] * (1 + i % 5) for i in range(12)]
    with engine_of(model) as plain, engine_of(model, PromptLookup(), sequences=4) as guessing:
        alone = [told(plain, prompt, **options_of(i)) for i, prompt in enumerate(prompts)]
        begun = []
        for i, prompt in enumerate(prompts):
            prediction = wrong_here_and_there([token.score.id for token in alone[i]])
            given = {"prediction": prediction} if i % 4 else {}
            begun.append(guessing.submit(prompt, **options_of(i), **given))
        found = [sorted(generation, key=lambda token: token.index) for generation in begun]
    assert found == alone
    assert sum(generation.accepted_tokens for generation in begun) > 50


def test_what_was_read_of_a_prompt_is_used_again_beside_guesses(model: Model) -> None:
    with engine_of(model, PromptLookup()) as engine:
        first = engine.submit(PROMPT, max_new_tokens=30)
        ids = first.results()[0].ids
        again = engine.submit(PROMPT, max_new_tokens=30, prediction=ids)
        assert again.results() == first.results()
    assert (first.cached_tokens, again.cached_tokens) == (0, 24)
    assert again.accepted_prediction_tokens > 20


def test_a_cancelled_request_leaves_nothing_of_its_guesses(model: Model) -> None:
    with engine_of(model, PromptLookup(), sequences=1) as engine, held(engine) as may_go:
        first = engine.submit(PROMPT, max_new_tokens=200, prediction=[3] * 100)
        next(iter(first))
        second = engine.submit(PROMPT, max_new_tokens=30)
        first.cancel()
        may_go.set()
        (found,) = second.results()
        assert engine.state.positions == 0
    assert found.ids == model.generate(PROMPT, max_new_tokens=30).ids


def test_replays_count_no_guesses(model: Model) -> None:
    with engine_of(model, PromptLookup(), replays=True) as engine:
        generation = engine.submit(PROMPT, max_new_tokens=40, sampling=HOT, seed=1)
        generation.results()
        engine.close(drain_s=60)
        record = engine.record
    assert (record.proposed_tokens, record.accepted_tokens) == (
        generation.proposed_tokens,
        generation.accepted_tokens,
    )
    assert record.replays_different == 0


def test_a_draft_model_guesses_and_changes_no_token(model: Model) -> None:
    draft = DraftModel(model=model, count=4)
    options = {"max_new_tokens": 60, "seed": 3}
    for sampling in (None, HOT):
        with engine_of(model) as plain, engine_of(model, draft) as guessing:
            generation = guessing.submit(PROMPT, sampling=sampling, **options)
            assert list(generation) == told(plain, PROMPT, sampling=sampling, **options)
        assert generation.proposed_tokens > 0
        if sampling is None:  # it is the model itself
            assert generation.accepted_tokens == generation.proposed_tokens


def test_a_draft_that_fits_no_model_is_refused(model: Model, tmp_path: Path) -> None:
    other = load_foreign(ALL[0], tmp_path)
    with pytest.raises(ValueError, match=r"the draft model has \d+ ids, this one 280"):
        engine_of(model, DraftModel(model=other))
    with pytest.raises(TypeError, match="draft must be a PromptLookup, a DraftModel or a model"):
        engine_of(model, "lookup")
    with pytest.raises(TypeError, match="DraftHeads are for generate and tokens; an engine"):
        engine_of(model, DraftHeads())
    with pytest.raises(ValueError, match="generating needs a language model"):
        DraftModel(model=load(fixture("small"), threads=1))


def rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call over several positions have other last bits."""

    def feed(stream, ids, lengths=None, *, last_only=False):
        found = FEED(stream, ids, lengths, last_only=last_only)
        return found + np.float32(1e-3) if np.shape(ids)[1] > 1 else found

    monkeypatch.setattr(rows, "feed", feed)


def test_nothing_is_guessed_where_it_would_change_bits(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded(monkeypatch)
    with engine_of(model, PromptLookup()) as engine:
        reason = "a call over several positions gives other bits than single steps"
        assert engine.no_guesses == reason
        assert engine.submit(PROMPT, max_new_tokens=30).results()
        assert engine.record.drafts == 0
        with pytest.raises(BadRequestError, match=f"is not supported for this model: {reason}"):
            engine.submit(PROMPT, prediction=[3])


def test_a_step_after_a_piece_must_have_the_same_bits(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = []

    def feed(stream, ids, lengths=None, *, last_only=False):
        found = FEED(stream, ids, lengths, last_only=last_only)
        follows_a_piece = np.shape(ids)[1] == 1 and pieces[-1:] == [3]
        pieces.append(np.shape(ids)[1])
        return found + np.float32(1e-3) if follows_a_piece else found

    monkeypatch.setattr(rows, "feed", feed)
    with engine_of(model, PromptLookup()) as engine:
        assert engine.no_guesses == (
            "a call over several positions gives other bits than single steps"
        )


def test_a_sequence_without_room_for_guesses_says_so(model: Model) -> None:
    with engine_of(model, PromptLookup(), context=3) as engine:
        assert engine.no_guesses == "its sequences have at most 3 positions"
        assert len(engine.submit([1], max_new_tokens=9).results()[0].ids) == 3


@pytest.mark.parametrize(
    ("prediction", "message"),
    [([3, 280], r"the prediction holds the id 280, expected ids in \[0, 280\)"),
     ([-1], "the prediction holds the id -1"), (["x"], "prediction must be"),
     ("text", "text needs a tokenizer")],
)  # fmt: skip
def test_a_prediction_that_cannot_come_is_refused(model: Model, prediction, message: str) -> None:
    with engine_of(model, PromptLookup()) as engine:
        with pytest.raises((ValueError, TypeError, BadRequestError), match=message):
            engine.submit([1], prediction=prediction)
        assert engine.submit([1], prediction=[], max_new_tokens=2).results()


# How many tokens are guessed.


def growing(ids: Sequence[int]) -> GrowingSequence:
    sequence = GrowingSequence([1, 2], Plan(max_new_tokens=999, sampling=Sampling()), None)  # type: ignore[arg-type]
    sequence.ids.extend(ids)
    return sequence


def row_guesses(costs: Sequence[float], expected: Sequence[int]) -> RowGuesses:
    pieces = Pieces(costs=tuple(costs))
    return RowGuesses(PromptLookup(), pieces, expected=expected, chunk=8)


def test_more_is_guessed_where_guesses_come_true_and_less_where_not() -> None:
    found = row_guesses([1 + 0.2 * i for i in range(9)], range(100, 200))
    counts = []
    for right in [*"yyyyyyyy", *"nnnnnn"]:
        proposed = found.propose(growing([]), 50)
        counts.append(len(proposed))
        found.judge(len(proposed) if right == "y" else 0, len(proposed))
    assert counts[:8] == sorted(counts[:8])
    assert counts[7] == 8 > counts[0]
    assert counts[8:] == sorted(counts[8:], reverse=True)


def test_guesses_that_never_come_true_become_rare_and_come_back() -> None:
    found, steps = row_guesses([1 + 0.2 * i for i in range(9)], range(100, 200)), []
    for step in range(400):
        if proposed := found.propose(growing([]), 50):
            steps.append(step)
            found.judge(0, len(proposed))
    assert len(steps) < 16
    for _ in range(200):
        if proposed := found.propose(growing([]), 50):
            found.judge(len(proposed), len(proposed))
    assert len(found.propose(growing([]), 50)) == 8


def test_nothing_is_guessed_that_costs_more_than_it_can_save() -> None:
    assert Pieces(costs=(1, 2, 3, 4)).best(0.99) == 0
    assert Pieces(costs=(1, 1.1, 1.2, 1.3)).best(0.9) == 3
    assert Pieces(costs=(1, 1.1, 1.2, 1.3)).best(0.9, guess=0.9) == 0
    assert Pieces(costs=(1, 1, 1)).best(0.0) == 0
    assert row_guesses([1, 2, 3], range(100)).propose(growing([]), 0) == []


def test_an_expected_text_is_found_again_after_a_change() -> None:
    text = ExpectedText([10, 11, 12, 13, 14, 10, 11, 19])
    ids = [token for token, _ in text.guess(growing([]), 3)]
    assert ids == [10, 11, 12]
    assert text.guess(growing([10, 99]), 3) == []
    assert text.guess(growing([10, 99, 12]), 3) == []
    assert [token for token, _ in text.guess(growing([10, 99, 12, 13]), 3)] == [14, 10, 11]
    assert [token for token, _ in text.guess(growing([10, 99, 12, 13, 14, 10, 11]), 3)] == [19]


# Over HTTP.

CHAT = {"model": "talker", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 40}


@pytest.fixture(scope="module")
def address(talker: Path, module_costs: None):
    options = EngineOptions(draft=PromptLookup())
    places = [str(talker), str(fixture("small"))]
    with served(open_models(places, threads=1, engine_options=options)) as found:
        yield found


@pytest.fixture(scope="module")
def module_costs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            guesses, "piece_costs", lambda rows, ids: [1 + 0.05 * i for i in range(len(ids))]
        )
        yield


def ask(address: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{address}/v1/chat/completions", json={**CHAT, **body}, timeout=60)


def test_a_chat_takes_a_prediction_and_tells_what_came_true(address: str) -> None:
    plain = ask(address, {}).json()
    text = plain["choices"][0]["message"]["content"]
    found = ask(address, {"prediction": {"type": "content", "content": text}}).json()
    parts = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]
    other = ask(address, {"prediction": {"type": "content", "content": parts}}).json()
    assert found["choices"] == other["choices"] == plain["choices"]
    details = found["usage"]["completion_tokens_details"]
    assert details == other["usage"]["completion_tokens_details"]
    assert set(details) == {"accepted_prediction_tokens", "rejected_prediction_tokens"}
    assert details["accepted_prediction_tokens"] > 0
    assert "completion_tokens_details" not in plain["usage"]


@pytest.mark.parametrize(
    ("given", "param"),
    [("x", "prediction"), ([], "prediction"), ({}, "prediction.type"),
     ({"type": "text", "content": "x"}, "prediction.type"),
     ({"type": "content"}, "prediction.content"),
     ({"type": "content", "content": 3}, "prediction.content"),
     ({"type": "content", "content": ["x"]}, None),
     ({"type": "content", "content": [{"type": "image_url"}]}, "prediction.content[0].type"),
     ({"type": "content", "content": "x", "odd": 1}, "prediction.odd")],
)  # fmt: skip
def test_a_prediction_that_is_no_text_is_refused(address: str, given, param: str | None) -> None:
    answer = ask(address, {"prediction": given})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("content", ["", [], "\ud83d", "\x00", "é" * 3000, "<s></s>"])
def test_odd_predictions_change_nothing_and_harm_nothing(address: str, content: object) -> None:
    plain = ask(address, {"seed": 1, "temperature": 1}).json()["choices"]
    body = {"seed": 1, "temperature": 1, "prediction": {"type": "content", "content": content}}
    headers = {"Content-Type": "application/json"}
    url = f"{address}/v1/chat/completions"
    answer = httpx.post(url, content=json.dumps({**CHAT, **body}), headers=headers, timeout=60)
    assert answer.status_code in (200, 400)
    assert answer.status_code == 400 or answer.json()["choices"] == plain


def test_a_model_without_a_cache_takes_no_prediction(address: str) -> None:
    prediction = {"type": "content", "content": "x"}
    answer = ask(address, {"model": "small", "prediction": prediction})
    assert answer.status_code == 400
    assert "is not a language model with a cache" in answer.json()["error"]["message"]


def test_a_prediction_is_in_the_document_where_it_is_taken(address: str, talker: Path) -> None:
    assert '"prediction"' in httpx.get(f"{address}/openapi.json").text
    with served(open_models([str(talker)], threads=1)) as other:
        assert '"prediction"' not in httpx.get(f"{other}/openapi.json").text
        answer = ask(other, {"prediction": {"type": "content", "content": "x"}})
    assert answer.status_code == 400
    assert "its engine was started without a draft" in answer.json()["error"]["message"]


def test_metrics_count_guesses_under_vllms_names(address: str) -> None:
    ask(address, {"prediction": {"type": "content", "content": "x" * 40}})
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    names = [
        f"spec_decode_num_{name}_total" for name in ("drafts", "draft_tokens", "accepted_tokens")
    ]
    drafts, proposed, accepted = (
        int(line.split()[-1])
        for name in names
        for line in lines
        if line.startswith(f"causal_onnx:{name}")
    )
    assert 0 < drafts <= proposed
    assert accepted <= proposed
