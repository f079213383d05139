"""Sequences whose cache stays on the server between requests."""

from __future__ import annotations

import numpy as np
import pytest

from causal_onnx.runtime import load
from causal_onnx.serve import (
    BadRequestError,
    BusyError,
    ServeOptions,
    UnavailableError,
    open_models,
)
from causal_onnx.serve.engine.sequences import SequenceEngine, SequenceOptions, SequenceStep
from tests.runtime.artifacts import fixture
from tests.serve.serving import served

VOCAB = 280


def chunks(seed: int, *sizes: int, batch: int = 1):
    random = np.random.default_rng(seed)
    return [random.integers(0, VOCAB, (batch, size)) for size in sizes]


def in_process(model, given):
    stream = model.stream(batch=len(given[0]))
    return [stream.run(chunk)["logits"] for chunk in given]


def step(identity, place: int, count: int) -> SequenceStep:
    return SequenceStep(identity, starts=place == 0, ends=place == count - 1)


@pytest.fixture(scope="module")
def model():
    return load(fixture("language"), threads=1)


def test_sequences_side_by_side_have_the_bits_of_streams(model) -> None:
    given = {name: chunks(name, 3, 1, 4, batch=name) for name in (1, 2)}
    with SequenceEngine(model) as engine:
        futures = {
            (name, place): engine.submit(step(name, place, 3), {"input_ids": given[name][place]})
            for place in range(3)
            for name in given
        }
        found = {key: future.result()["logits"] for key, future in futures.items()}
        assert engine.held == 0
    for name, parts in given.items():
        for place, expected in enumerate(in_process(model, parts)):
            assert found[name, place].tobytes() == expected.tobytes()


def test_a_sequence_that_never_began_or_has_ended_is_named(model) -> None:
    (chunk,) = chunks(0, 2)
    with SequenceEngine(model) as engine:
        with pytest.raises(BadRequestError, match="there is no sequence 5 of this model"):
            engine.submit(SequenceStep(5, False, False), {"input_ids": chunk}).result()
        engine.submit(SequenceStep(5, True, True), {"input_ids": chunk}).result()
        with pytest.raises(BadRequestError, match="it has ended, was idle"):
            engine.submit(SequenceStep(5, False, True), {"input_ids": chunk}).result()


def test_one_that_begins_again_has_read_nothing(model) -> None:
    given = chunks(0, 3, 2)
    with SequenceEngine(model) as engine:
        for chunk in (*given, given[0]):
            last = engine.submit(SequenceStep("a", True, False), {"input_ids": chunk}).result()
        assert engine.held == 1
    assert last["logits"].tobytes() == in_process(model, given[:1])[0].tobytes()


def test_a_refused_step_leaves_its_sequence_where_it_was(model) -> None:
    given = chunks(0, 3, 2)
    with SequenceEngine(model) as engine:
        engine.submit(SequenceStep(1, True, False), {"input_ids": given[0]}).result()
        for wrong in ({"input_ids": given[1] + VOCAB}, {"z": given[1]}, {}):
            with pytest.raises(
                ValueError, match=r"expected ids in|does not take the input 'z'|missing"
            ):
                engine.submit(SequenceStep(1, False, True), wrong).result()
        last = engine.submit(SequenceStep(1, False, True), {"input_ids": given[1]}).result()
    assert last["logits"].tobytes() == in_process(model, given)[1].tobytes()


def test_no_more_are_kept_than_may_be(model) -> None:
    (chunk,) = chunks(0, 2)
    with SequenceEngine(model, options=SequenceOptions(sequences=1, positions=5)) as engine:
        engine.submit(SequenceStep(1, True, False), {"input_ids": chunk}).result()
        with pytest.raises(BusyError, match="1 sequences of this model are kept"):
            engine.submit(SequenceStep(2, True, False), {"input_ids": chunk}).result()
        engine.submit(SequenceStep(1, False, False), {"input_ids": chunk}).result()
        with pytest.raises(BusyError, match="would have 6 positions, and 5 are kept"):
            engine.submit(SequenceStep(1, False, False), {"input_ids": chunk}).result()


def test_one_that_is_idle_too_long_is_dropped(model) -> None:
    (chunk,) = chunks(0, 2)
    with SequenceEngine(model, options=SequenceOptions(idle_s=1e-9)) as engine:
        engine.submit(SequenceStep(1, True, False), {"input_ids": chunk}).result()
        with pytest.raises(BadRequestError, match="was idle for more than 1e-09 s"):
            engine.submit(SequenceStep(1, False, False), {"input_ids": chunk}).result()
        assert engine.held == 0


def test_an_engine_that_ends_says_so(model) -> None:
    engine = SequenceEngine(model)
    engine.close()
    with pytest.raises(UnavailableError, match="the server is shutting down"):
        engine.submit(SequenceStep(1, True, False), {})


def test_a_model_without_a_cache_keeps_none() -> None:
    with pytest.raises(ValueError, match="has no KV cache, so it keeps no sequences"):
        SequenceEngine(load(fixture("small"), threads=1))


def test_the_usual_client_streams_by_sequence_id(model) -> None:
    http = pytest.importorskip("tritonclient.http", reason="needs tritonclient")
    given, found = chunks(0, 3, 1, 4), []
    with (
        served(open_models([str(fixture("language"))], threads=1), ServeOptions()) as address,
        http.InferenceServerClient(address.removeprefix("http://")) as client,
    ):
        for place, chunk in enumerate(given):
            item = http.InferInput("input_ids", chunk.shape, "INT64").set_data_from_numpy(chunk)
            result = client.infer(
                "language",
                [item],
                sequence_id=9,
                sequence_start=place == 0,
                sequence_end=place == 2,
            )
            assert [item["name"] for item in result.get_response()["outputs"]] == ["logits"]
            found.append(result.as_numpy("logits"))
    for one, other in zip(found, in_process(model, given), strict=True):
        assert one.tobytes() == other.tobytes()
