"""What an engine makes of requests, alone and in company."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from causal_onnx.runtime import Model, Sampling, load
from causal_onnx.serve import BadRequestError, BusyError, Engine, EngineOptions, UnavailableError
from tests.runtime.artifacts import fixture
from tests.serve.conftest import STORIES
from tests.serve.serving import held

HOT = Sampling(temperature=1.0)


@pytest.fixture(scope="module")
def model(stories: Path) -> Model:
    return load(stories, threads=1)


@pytest.fixture
def engine(model: Model) -> Iterator[Engine]:
    with Engine(model, options=EngineOptions(sequences=4, chunk=8)) as found:
        yield found


def test_a_request_gives_what_the_model_gives_by_itself(engine: Engine, model: Model) -> None:
    (found,) = engine.submit("Once upon a time", max_new_tokens=40).results()
    assert found.text == model.generate("Once upon a time", max_new_tokens=40).text
    assert found.finish == "length"


def test_every_token_of_a_mixed_load_is_the_same_alone(engine: Engine) -> None:
    def submit(i: int):  # prompts of 1 to 60 ids, one to three continuations, some of them hot
        sampling = HOT if i % 2 else None
        options = {"max_new_tokens": 3 + 5 * (i % 7), "n": 1 + i % 3, "seed": i}
        return engine.submit([1] + [3 + i] * (i * 5 % 60), sampling=sampling, **options)

    together = [generation.results() for generation in [submit(i) for i in range(12)]]
    assert engine.batch_sizes == (1, 2, 3, 4)
    assert together == [submit(i).results() for i in range(12)]


def test_one_operator_for_all_calls_gives_the_same_tokens(engine: Engine, tmp_path: Path) -> None:
    from causal_onnx.export import export_checkpoint

    export_checkpoint(STORIES, tmp_path / "stories", target="ort-1.32", effort="quick")

    def served(engine: Engine) -> list[object]:
        begun = [
            engine.submit([1] + [3 + i] * (i * 7 % 40), sampling=HOT, max_new_tokens=20, seed=i)
            for i in range(6)
        ]
        return [generation.results() for generation in begun]

    options = EngineOptions(sequences=4, chunk=8)
    with Engine(load(tmp_path / "stories", threads=1), options=options) as other:
        assert other.batch_sizes == (1, 2, 3, 4)
        assert served(other) == served(engine)


def test_a_model_whose_rows_share_no_buffers_is_decoded_in_turn() -> None:
    model = load(fixture("language"), threads=1)
    with Engine(model, options=EngineOptions(sequences=3)) as engine:
        begun = [engine.submit([5, i], max_new_tokens=9, n=1 + i % 2) for i in range(1, 6)]
        found = [[item.ids for item in generation.results()] for generation in begun]
    assert engine.batch_sizes == (1,)
    alone = [model.generate([5, i], max_new_tokens=9).ids for i in range(1, 6)]
    assert found == [[ids] * (1 + i % 2) for i, ids in enumerate(alone, start=1)]


def test_tokens_come_to_an_event_loop(engine: Engine) -> None:
    async def read() -> tuple[str, str]:
        parts = [t.text async for t in engine.submit("Once upon", max_new_tokens=9)]
        (whole,) = await engine.submit("Once upon", max_new_tokens=9).wait()
        return "".join(parts), whole.text

    parts, whole = asyncio.run(read())
    assert parts == whole != ""


def test_the_ids_of_a_prompt_are_scored(engine: Engine, model: Model) -> None:
    generation = engine.submit("Once upon a time", max_new_tokens=0, score_prompt=True)
    assert generation.results() == []
    found = generation.prompt_scores
    assert [score.id for score in found] == list(generation.prompt)
    stream = model.stream()
    for before, score in zip(generation.prompt, found[1:], strict=False):
        logits = stream.run([[before]])["logits"][0, 0].astype("float64")
        assert score.logprob == pytest.approx(float(logits[score.id]) - logsumexp(logits), abs=1e-4)


def logsumexp(values) -> float:
    import numpy as np

    return float(np.log(np.exp(values - values.max()).sum()) + values.max())


def test_a_cancelled_request_makes_room_for_the_next(model: Model) -> None:
    with Engine(model, options=EngineOptions(sequences=1)) as engine, held(engine) as may_go:
        first = engine.submit("Once", max_new_tokens=200)
        next(iter(first))
        waiting, second = (engine.submit("Once", max_new_tokens=5) for _ in range(2))
        waiting.cancel()
        first.cancel()
        may_go.set()
        assert [len(c.ids) for c in second.results()] == [5]
        assert (first.results()[0].finish, waiting.results()[0].ids) == ("interrupted", ())
        assert engine.state.positions == 0


def test_a_larger_priority_is_taken_up_first(model: Model) -> None:
    with Engine(model, options=EngineOptions(sequences=1)) as engine, held(engine) as may_go:
        next(iter(engine.submit("Once", max_new_tokens=100)))
        later = engine.submit("Once", max_new_tokens=5)
        sooner = engine.submit("Once", max_new_tokens=5, priority=1)
        may_go.set()
        for generation in (later, sooner):
            generation.results()
    assert sooner.times.started < later.times.started


def test_a_full_queue_refuses_and_says_so(model: Model) -> None:
    options = EngineOptions(sequences=1, queue=1)
    with Engine(model, options=options) as engine, held(engine):
        next(iter(engine.submit("Once", max_new_tokens=9)))
        engine.submit("Once", max_new_tokens=9)
        with pytest.raises(BusyError, match="1 requests are waiting for this model, which is"):
            engine.submit("Once")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 5}, "n is 5, and this server decodes 4 sequences at once"),
        ({"n": 3, "max_new_tokens": 60}, "need 183 positions of the cache, which has 150"),
    ],
)
def test_what_there_is_never_room_for_is_refused(model: Model, options, message: str) -> None:
    limits = EngineOptions(sequences=4, cache_positions=150)
    with Engine(model, options=limits) as engine, pytest.raises(BadRequestError, match=message):
        engine.submit([1], **options)


def test_a_prompt_beyond_the_context_is_refused(model: Model) -> None:
    options = EngineOptions(context=16)
    message = "the prompt has 17 ids, and this server accepts 16 positions per sequence"
    with Engine(model, options=options) as engine:
        with pytest.raises(BadRequestError, match=message):
            engine.submit([1] * 17)
        (found,) = engine.submit([1] * 16, max_new_tokens=9).results()
    assert (len(found.ids), found.finish) == (1, "limit")


def test_a_closed_engine_refuses(model: Model) -> None:
    engine = Engine(model)
    engine.close()
    with pytest.raises(UnavailableError, match="the server is shutting down"):
        engine.submit("Once")


def test_closing_waits_for_what_runs(model: Model) -> None:
    engine = Engine(model)
    generation = engine.submit("Once upon", max_new_tokens=50)
    engine.close(drain_s=60)
    assert [len(found.ids) for found in generation.results()] == [50]


def test_a_request_that_cannot_go_on_ends_alone(engine: Engine) -> None:
    other = engine.submit("Once", max_new_tokens=30)
    nothing = Sampling(logit_bias=dict.fromkeys(range(105), float("-inf")))
    with pytest.raises(ValueError, match="no token is allowed"):
        engine.submit("Once", sampling=nothing).results()
    assert [len(found.ids) for found in other.results()] == [30]


def test_what_was_read_of_a_prompt_is_used_again_with_the_same_bits(model: Model) -> None:
    prompts = [[1, *range(3, 40), 5, i] for i in range(4)]
    options = EngineOptions(sequences=2, chunk=8)
    with Engine(model, options=options) as engine:
        begun = [engine.submit(prompt, max_new_tokens=20) for prompt in prompts]
        found = [generation.results() for generation in begun]
    with Engine(model, options=EngineOptions(chunk=8, prefix_positions=0)) as engine:
        fresh = [engine.submit(prompt, max_new_tokens=20).results() for prompt in prompts]
    assert [generation.cached_tokens for generation in begun] == [0, 32, 32, 32]
    assert found == fresh


def test_scores_of_a_prompt_are_read_anew(engine: Engine) -> None:
    prompt = list(range(3, 30))
    engine.submit(prompt, max_new_tokens=1).results()
    scored = engine.submit(prompt, max_new_tokens=1, score_prompt=True)
    scored.results()
    assert (scored.cached_tokens, len(scored.prompt_scores)) == (0, 27)


def replayed(engine: Engine, count: int) -> tuple[int, int]:
    """How many requests were repeated with the same result, and with another."""
    record, turn = engine.record, threading.Event()
    while record.replays_equal + record.replays_different < count:
        turn.wait(0.01)
    return record.replays_equal, record.replays_different


def test_requests_are_repeated_when_there_is_nothing_else_to_do(model: Model) -> None:
    with Engine(model, options=EngineOptions(sequences=3, replays=True)) as engine:
        options = {"max_new_tokens": 9, "sampling": HOT, "top_logprobs": 1}
        begun = [engine.submit([1, 5, i], n=1 + i % 2, **options) for i in range(3, 8)]
        assert all(generation.results() for generation in begun)
        assert replayed(engine, 5) == (5, 0)
        assert engine.record.finished["length"] == 8


def test_a_request_that_becomes_something_else_is_counted_and_named(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine(model, options=EngineOptions(replays=True)) as engine:
        generation = engine.prepare([1, 5], max_new_tokens=9, sampling=HOT, seed=3)
        generation.seed = 4  # what is repeated then is another request
        engine.enqueue([generation])
        generation.results()
        assert replayed(engine, 1) == (0, 1)
    assert "a request of 2 ids with seed 4" in caplog.text


def test_a_request_is_made_and_taken_up_with_the_same_arguments() -> None:
    made, taken = inspect.signature(Engine.prepare), inspect.signature(Engine.submit)
    assert made == taken
    assert "max_new_tokens" in made.parameters
    assert Engine.submit.__doc__ == Engine.prepare.__doc__
    assert Engine.submit.__qualname__ == "Engine.submit"
