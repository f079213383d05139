"""The ingress of Ray before replicas in this process, some of which are lost on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("ray", reason="run by make suites")

from ray.exceptions import ActorDiedError
from starlette.requests import Request

from causal_onnx.runtime import load
from causal_onnx.serve import ServeOptions, create_app
from causal_onnx.serve.ray import Ingress
from causal_onnx.serve.ray.forwarded import AnswerPart
from causal_onnx.serve.ray.replica import answer_parts
from tests.runtime.artifacts import fixture

TOKENS = 40
BODY = {"model": "language", "prompt": [5, 3], "max_tokens": TOKENS}


@pytest.fixture(scope="module")
def app() -> Iterator[Any]:
    found = create_app({"language": load(fixture("language"), threads=1)})
    yield found
    found.state.service.models.close()


class Replicas:
    """What Ray's handle is to the ingress; `losses` says after how many parts each attempt ends."""

    def __init__(self, app: Any, losses: list[int], instead: AnswerPart | None = None) -> None:
        self._app, self._losses, self._instead = app, losses, instead
        self.requests: list[Any] = []
        self.model_ids: list[str] = []
        self.answer = self

    def options(self, **given: Any) -> Replicas:
        self.model_ids.append(given["multiplexed_model_id"])
        return self

    def remote(self, request: Any) -> _Stream:
        self.requests.append(request)
        return _Stream(self._parts(request))

    async def _parts(self, request: Any) -> AsyncIterator[AnswerPart]:
        left = self._losses.pop(0) if self._losses else None
        if left is None and self._instead is not None:
            instead, self._instead = self._instead, None
            yield instead
            return
        async for group in answer_parts(self._app, request, group_s=0.0):
            for part in one_by_one(group):
                if left == 0:
                    raise ActorDiedError
                left = None if left is None else left - 1
                yield part


def one_by_one(part: AnswerPart) -> list[AnswerPart]:
    """The head, and each event, so that a loss falls where it is said to."""
    head = [] if part.status is None else [AnswerPart(part.status, part.headers, ())]
    return [*head, *(AnswerPart(None, (), (body,)) for body in part.bodies)]


class _Stream:
    def __init__(self, parts: AsyncIterator[AnswerPart]) -> None:
        self._parts = parts

    def __aiter__(self) -> AsyncIterator[AnswerPart]:
        return self._parts

    def cancel(self) -> None:
        pass


def asked(
    replicas: Replicas, path: str, body: Any, *, method: str = "POST", **options: Any
) -> tuple[int, bytes]:
    """The status and the body of an answer, by an ingress before these replicas."""
    ingress = Ingress(
        replicas,
        models=["language"],
        adapters=options.pop("adapters", ()),
        is_multiplexed=options.pop("is_multiplexed", False),
        prefix_characters=64,
        retry_s=options.pop("retry_s", 60.0),
        max_body_bytes=ServeOptions().max_body_bytes,
        body_timeout_s=30.0,
    )
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"test"), (b"content-type", b"application/json")],
        "scheme": "http",
        "server": ("test", 80),
    }
    sent: list[Any] = []
    given = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Any:
        if given:
            return given.pop()
        await asyncio.Event().wait()
        return None

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        response = await ingress(Request(scope, receive))
        await response(scope, receive, send)

    asyncio.run(run())
    return sent[0]["status"], b"".join(item.get("body", b"") for item in sent)


def tokens_of(stream: bytes) -> dict[int, list[int]]:
    """Of each continuation of a stream, which must be whole, the ids."""
    *events, last = [line[6:] for line in stream.decode().splitlines() if line.startswith("data: ")]
    assert last == "[DONE]"
    found: dict[int, list[int]] = {}
    for data in map(json.loads, events):
        for choice in data["choices"]:
            found.setdefault(choice["index"], []).extend(choice["token_ids"])
    return found


def ids_of(stream: bytes) -> set[str]:
    return {json.loads(line[6:])["id"] for line in stream.splitlines() if line[:7] == b"data: {"}


@pytest.mark.parametrize("losses", [[1], [3], [10], [2, 2, 5], [0, 0, 1]], ids=str)
@pytest.mark.parametrize("more", [{}, {"n": 3}, {"temperature": 1}, {"echo": True}], ids=str)
def test_a_stream_whose_replica_is_lost_goes_on(
    app: Any, losses: list[int], more: dict[str, Any]
) -> None:
    body = {**BODY, **more, "stream": True, "stream_options": {"include_usage": True}}
    replicas = Replicas(app, list(losses))
    status, found = asked(replicas, "/v1/completions", body)
    _, alone = asked(Replicas(app, []), "/v1/completions", json.loads(replicas.requests[0].body))
    assert (status, len(replicas.requests)) == (200, len(losses) + 1)
    assert tokens_of(found) == tokens_of(alone)
    assert all(len(ids) == TOKENS for ids in tokens_of(found).values())
    assert len(ids_of(found)) == 1
    assert found.count(b'"usage":{') == 1


@pytest.mark.parametrize("losses", [[0], [1, 0]], ids=str)
def test_a_whole_answer_whose_replica_is_lost_comes_from_another_one(
    app: Any, losses: list[int]
) -> None:
    status, found = asked(Replicas(app, list(losses)), "/v1/completions", BODY)
    _, alone = asked(Replicas(app, []), "/v1/completions", BODY)
    assert status == 200
    assert json.loads(found)["choices"] == json.loads(alone)["choices"]


def test_a_stream_of_the_other_protocol_goes_on(app: Any) -> None:
    path, body = "/v2/models/language/generate_stream", {"input_ids": [5, 3], "max_tokens": 20}

    def ids(stream: bytes) -> list[int]:
        events = [json.loads(line[6:]) for line in stream.splitlines() if line[:7] == b"data: {"]
        return [token for event in events for token in event["output_ids"]]

    _, found = asked(Replicas(app, [4]), path, body)
    assert ids(found) == ids(asked(Replicas(app, []), path, body)[1])


def test_where_the_others_are_full_a_lost_request_comes_again(app: Any) -> None:
    full = AnswerPart(429, (), (b'{"error": {}}',))
    replicas = Replicas(app, [2], instead=full)
    _, found = asked(replicas, "/v1/completions", {**BODY, "stream": True})
    assert len(replicas.requests) == 3
    assert len(tokens_of(found)[0]) == TOKENS


def test_without_another_replica_a_request_ends_with_an_error(app: Any) -> None:
    status, found = asked(Replicas(app, [0] * 9), "/v1/completions", BODY, retry_s=0.001)
    assert status == 503
    assert "no other one came" in json.loads(found)["error"]["message"]
    _, found = asked(
        Replicas(app, [3] + [0] * 9), "/v1/completions", {**BODY, "stream": True}, retry_s=0.001
    )
    assert b"no other one came" in found
    assert found.endswith(b"data: [DONE]\n\n")


def test_what_a_full_server_answers_first_is_passed_on(app: Any) -> None:
    full = AnswerPart(429, ((b"retry-after", b"1"),), (b'{"error": {}}',))
    status, found = asked(Replicas(app, [], instead=full), "/v1/completions", BODY)
    assert (status, found) == (429, b'{"error": {}}')


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/completions", {"model": "none", "prompt": "x"}, 404, "no model 'none'"),
        ("/v1/completions", {**BODY, "odd": 1}, 400, "odd is not supported"),
        ("/v1/completions", [], 400, "must be a JSON object"),
        ("/v2/repository/models/language/unload", {}, 400, "loaded and unloaded by Ray"),
        ("/v2/models/none/infer", {}, 404, "no model 'none'"),
        ("/nowhere", {}, 404, "there is no POST /nowhere"),
    ],
)
def test_errors_are_those_of_the_server(
    app: Any, path: str, body: Any, status: int, message: str
) -> None:
    found, text = asked(Replicas(app, []), path, body)
    assert found == status
    assert message in text.decode()


def test_models_that_are_loaded_when_they_are_asked_for_are_listed(app: Any) -> None:
    replicas = Replicas(app, [])
    status, text = asked(replicas, "/v1/models", None, method="GET", is_multiplexed=True)
    assert [item["id"] for item in json.loads(text)["data"]] == ["language"]
    assert (status, replicas.requests) == (200, [])
    status, text = asked(replicas, "/v1/completions", {"model": "x"}, is_multiplexed=True)
    assert (status, b"no model 'x'" in text) == (404, True)


def test_the_application_answers_without_a_cluster() -> None:
    from ray import serve

    from causal_onnx.serve.ray import build_app

    handle = serve.run(
        build_app([f"language={fixture('language')}"], threads=1), _local_testing_mode=True
    )
    given = [{"type": "http.request", "body": json.dumps(BODY).encode(), "more_body": False}]

    async def receive() -> Any:
        return given.pop()

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"",
             "headers": [(b"host", b"test")], "scheme": "http", "server": ("test", 80)}  # fmt: skip
    response = handle.remote(Request(scope, receive)).result()
    model = load(fixture("language"), threads=1)
    expected = list(model.generate([5, 3], max_new_tokens=TOKENS).ids)
    assert json.loads(response.body)["choices"][0]["token_ids"] == expected


def test_the_router_asks_the_replica_of_a_prefix_first(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from ray.serve.request_router import ReplicaID

    from causal_onnx.serve.ray import PrefixRouter

    names = [ReplicaID(f"replica{i}", "models") for i in range(3)]
    replicas = [SimpleNamespace(replica_id=name) for name in names]
    loads: dict[Any, int] = {}
    router = PrefixRouter.__new__(PrefixRouter)
    monkeypatch.setattr(PrefixRouter, "replica_queue_len_cache", loads, raising=False)
    router.initialize_state(imbalance=4)

    def first(prefix: str, read: Callable[[Any], Any] = lambda ranks: ranks[0][0]) -> Any:
        context = SimpleNamespace(should_backoff=False)
        request = SimpleNamespace(
            args=[SimpleNamespace(prefix=prefix)],
            metadata=SimpleNamespace(multiplexed_model_id=""),
            routing_context=context,
        )
        found = asyncio.run(router.choose_replicas(replicas, request))
        assert context.should_backoff
        return read(found)

    chosen = first("Once")
    assert first("Once") is chosen
    assert {first(str(i)).replica_id for i in range(40)} == set(names)
    loads[chosen.replica_id] = 4
    other = first("Once" * 40)
    assert other is not chosen
    assert first("Once" * 40, lambda ranks: ranks[-1][0]) is chosen
    loads.clear()
    request = SimpleNamespace(args=[SimpleNamespace(prefix="Once" * 40)])
    router.on_request_routed(request, other.replica_id, None)
    assert first("Once" * 50) is other
    assert first("Once") is chosen


def test_an_adapter_is_asked_of_who_holds_its_model(app: Any) -> None:
    replicas = Replicas(app, [])
    given: Any = {"is_multiplexed": True, "adapters": ["french"]}
    _, listed = asked(replicas, "/v1/models", None, method="GET", **given)
    parents = {item["id"]: item.get("parent") for item in json.loads(listed)["data"]}
    assert parents == {"language": None, "french": "language"}
    status, found = asked(replicas, "/v1/completions", {**BODY, "model": "french"}, **given)
    assert replicas.model_ids == ["language"]
    assert (status, b"french" in found) == (404, True)  # this replica was not given it
    status, _ = asked(replicas, "/v1/completions", {**BODY, "model": "german"}, **given)
    assert (status, len(replicas.model_ids)) == (404, 1)
