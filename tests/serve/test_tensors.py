"""Requests of tensors, alone and together."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError

import numpy as np
import pytest

from causal_onnx.runtime import Model, load
from causal_onnx.runtime.errors import RunError
from causal_onnx.serve import BusyError, TensorEngine, TensorOptions, UnavailableError
from tests.runtime.artifacts import fixture


def model_of(name: str) -> Model:
    return load(fixture(name), threads=1)


class Held(TensorEngine):
    """Calls nothing until it is let go, so that requests wait together."""

    def hold(self) -> None:
        self._changed.acquire()

    def let_go(self) -> None:
        self._changed.release()


def ids(seed: int, rows: int = 1, seq: int = 5):
    return np.random.default_rng(seed).integers(0, 11, (rows, seq))


def ask_together(engine: Held, requests: list):
    engine.hold()  # the same thread may go on submitting
    futures = [engine.submit({"input_ids": request}) for request in requests]
    engine.let_go()
    return [future.result()["y"] for future in futures]


def test_requests_that_wait_together_become_one_call_with_the_bits_of_each() -> None:
    model = model_of("decoder")
    requests = [ids(seed, rows=1 + seed % 2) for seed in range(4)]
    with Held(model) as engine:
        first = ask_together(engine, requests)
        calls = engine.calls
        again = ask_together(engine, requests)
        assert engine.calls == calls + 1
    for request, one, other in zip(requests, first, again, strict=True):
        assert one.tobytes() == other.tobytes() == model(request).tobytes()


def test_other_lengths_are_calls_of_their_own() -> None:
    model = model_of("decoder")
    requests = [ids(1, seq=5), ids(2, seq=7), ids(3, seq=5)]
    with Held(model) as engine:
        found = ask_together(engine, requests)
    for request, one in zip(requests, found, strict=True):
        assert one.tobytes() == model(request).tobytes()


def test_a_call_whose_bits_differ_is_never_made_for_several() -> None:
    class Leaky(Held):
        def _call(self, feeds):
            found = super()._call(feeds)
            return {"y": found["y"] + len(found["y"])}  # it depends on the company

    with Leaky(model_of("decoder")) as engine:
        requests = [ids(1), ids(2)]
        for _ in range(2):
            found = ask_together(engine, requests)
            expected = [engine.model(request) + 1 for request in requests]
            assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_a_request_that_fails_costs_its_neighbours_nothing() -> None:
    class Fragile(Held):
        def _call(self, feeds):
            if (feeds["input_ids"] == 10).any():
                raise RunError("no such id")
            return super()._call(feeds)

    good, bad = np.full((1, 5), 3), np.full((1, 5), 10)
    with Fragile(model_of("decoder")) as engine:
        engine.hold()
        futures = [engine.submit({"input_ids": request}) for request in (good, bad, good)]
        engine.let_go()
        expected = engine.model(good)
        for future in (futures[0], futures[2]):
            assert np.array_equal(future.result()["y"], expected)
        with pytest.raises(RunError, match="no such id"):
            futures[1].result()


def test_an_input_without_the_batch_axis_comes_back_so() -> None:
    model = model_of("small")
    with TensorEngine(model) as engine:
        x = np.ones((2, 3), np.float32)
        assert np.array_equal(engine.submit({"x": x}).result()["y"], model(x))


def test_an_event_loop_waits_for_tensors() -> None:
    async def ask(engine: TensorEngine):
        future = engine.submit({"input_ids": ids(1)})
        return (await asyncio.wrap_future(future))["y"]

    model = model_of("decoder")
    with TensorEngine(model) as engine:
        assert np.array_equal(asyncio.run(ask(engine)), model(ids(1)))


def test_what_the_contract_does_not_allow_is_refused_at_once() -> None:
    with TensorEngine(model_of("decoder")) as engine:
        with pytest.raises(ValueError, match="unknown input 'x'"):
            engine.submit({"x": ids(1)})
        with pytest.raises(ValueError, match=r"11"):
            engine.submit({"input_ids": ids(1) + 11})


def test_a_full_queue_and_an_end_are_said() -> None:
    engine = Held(model_of("decoder"), options=TensorOptions(queue=1))
    engine.hold()
    waiting = engine.submit({"input_ids": ids(1)})
    with pytest.raises(BusyError, match="1 requests are waiting for this model"):
        engine.submit({"input_ids": ids(1)})
    waiting.cancel()
    engine.let_go()
    engine.close()
    with pytest.raises(CancelledError):
        waiting.result()
    with pytest.raises(UnavailableError, match="the server is shutting down"):
        engine.submit({"input_ids": ids(1)})
