"""Keys, limits, metrics, logs, and clients that mean no good."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from causal_onnx.runtime import load
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.serve import BusyError, EngineOptions, Registry, ServedModel, ServeOptions
from causal_onnx.serve.keys import ApiKey, Quota, find_key, new_key, read_keys
from causal_onnx.serve.server import Server, bound_socket
from tests.runtime.artifacts import fixture
from tests.serve.serving import held, post, running, self_signed, served

ASKED = {"model": "language", "prompt": [5, 3], "max_tokens": 4}


def registry(**options: int) -> Registry:
    model = load(fixture("language"), threads=1)
    return Registry([ServedModel.of("language", model, engine_options=EngineOptions(**options))])


def key_of(text: str, **limits: int) -> ApiKey:
    return ApiKey(name=text, sha256=hashlib.sha256(text.encode()).hexdigest(), **limits)


def ask(address: str, key: str | None, **changed: object) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{address}/v1/completions", json={**ASKED, **changed}, headers=headers)


def test_who_has_no_key_is_refused_and_probes_need_none() -> None:
    with served(registry(), ServeOptions(keys=(key_of("alice"),))) as address:
        statuses = [ask(address, key).status_code for key in (None, "bob", "alice")]
        refused = ask(address, "bob").json()["error"]
        assert statuses == [401, 401, 200]
        assert (refused["type"], refused["code"]) == ("authentication_error", "invalid_api_key")
        assert httpx.get(f"{address}/health/ready").status_code == 200
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/v1/nowhere").status_code == 401


def test_a_key_has_its_limits() -> None:
    keys = (key_of("few", requests_per_minute=1), key_of("short", tokens_per_minute=1))
    with served(registry(), ServeOptions(keys=keys)) as address:
        few = [ask(address, "few") for _ in range(2)]
        short = [ask(address, "short") for _ in range(2)]
    assert [answer.status_code for answer in few] == [200, 429]
    assert [answer.status_code for answer in short] == [200, 429]
    assert 1 <= int(few[1].headers["retry-after"]) <= 60
    assert few[1].json()["error"]["code"] == "rate_limit_exceeded"


def test_what_was_used_comes_back_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("causal_onnx.serve.keys.time.monotonic", lambda: now[0])
    quota = Quota(key_of("some", requests_per_minute=2, tokens_per_minute=60))
    for seconds, tokens in ((0, 60), (0, 30), (45, 0)):
        now[0] += seconds
        quota.begin()
        quota.end(tokens)
    with pytest.raises(BusyError, match="this key may use 2 requests a minute; come again in 16 s"):
        quota.begin()


def test_requests_at_once_are_limited() -> None:
    quota = Quota(key_of("one", concurrent=1))
    quota.begin()
    with pytest.raises(BusyError, match="1 requests of this key are running, which is its limit"):
        quota.begin()
    quota.end(0)
    quota.begin()


def test_a_key_is_found_by_its_hash_alone() -> None:
    key, digest = new_key()
    kept = ApiKey(name="new", sha256=digest)
    assert find_key([key_of("other"), kept], key) is kept
    assert find_key([key_of("other"), kept], digest) is None


def named(digit: str) -> dict[str, object]:
    return {"name": "a", "sha256": digit * 64}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "must hold"),
        ('{"keys": []}', "must hold"),
        ('{"keys": [{"name": "a", "sha256": "5"}]}', "the key of a needs its sha256"),
        (json.dumps({"keys": [{**named("0"), "odd": 1}]}), "odd"),
        ('{"keys": [{"name": "a"}]}', r"must be an object with name and sha256; .* got \['name'\]"),
        ('{"keys": ["alice"]}', "must be an object with name and sha256; .* got alice"),
        (json.dumps({"keys": [named("0"), named("1")]}), "two keys have the same name"),
    ],
)
def test_a_file_of_keys_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_keys(path)


def test_metrics_count_what_was_done_under_vllms_names() -> None:
    with served(registry(), ServeOptions(vllm_metrics=True)) as address:
        for _ in range(3):
            ask(address, None)
        text = httpx.get(f"{address}/metrics").text
    for prefix in ("causal_onnx", "vllm"):
        assert f'{prefix}:generation_tokens_total{{model_name="language"}} 12\n' in text
        assert f'{prefix}:num_requests_running{{model_name="language"}} 0\n' in text
        assert f'{prefix}:e2e_request_latency_seconds_count{{model_name="language"}} 3\n' in text
    assert 'request_success_total{model_name="language",finished_reason="length"} 3\n' in text
    assert 'inter_token_latency_seconds_count{model_name="language"} 9\n' in text


def test_metrics_are_in_prometheus_own_format() -> None:
    with served(registry()) as address:
        lines = httpx.get(f"{address}/metrics").text.splitlines()
    number = r"[-+0-9.e]+"
    label = r'[a-z_]+="[^"]*"'
    form = rf"# (HELP|TYPE) \S+ .+|[a-z0-9_:]+\{{{label}(,{label})?\}} {number}"
    assert [line for line in lines if not re.fullmatch(form, line)] == []


def test_a_request_is_logged_without_its_texts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="causal_onnx.serve.requests")
    with served(registry()) as address:
        headers = {"X-Request-Id": "my-own"}
        answer = httpx.post(f"{address}/v1/completions", json=ASKED, headers=headers)
        other = httpx.get(f"{address}/health", headers={"X-Request-Id": "not \x7f one"})
    line = json.loads(caplog.records[0].getMessage())
    assert answer.headers["x-request-id"] == line["request"] == "my-own"
    assert (line["status"], line["prompt_tokens"], line["generation_tokens"]) == (200, 2, 4)
    assert line["finish"] == ["length"]
    assert re.fullmatch(r"[0-9a-f]{24}", other.headers["x-request-id"])


def test_a_body_that_is_too_large_is_refused() -> None:
    with served(registry(), ServeOptions(max_body_bytes=100)) as address:
        status, found = post(address, "/v1/completions", {**ASKED, "prompt": [5] * 100})
        chunks = httpx.post(f"{address}/v1/completions", content=iter([b"x" * 90] * 3))
    assert (status, chunks.status_code) == (413, 413)
    assert "this server accepts 100" in found["error"]["message"]


def received(client: socket.socket) -> bytes:
    """What comes before the other side ends; it may not wait for all that was sent to it."""
    got = b""
    try:
        while part := client.recv(4000):
            got += part
    except ConnectionResetError:
        pass
    return got


def connect(address: str) -> socket.socket:
    place = urlsplit(address)
    return socket.create_connection((place.hostname, place.port), timeout=30)


def test_a_client_that_sends_its_headers_bit_by_bit_is_dropped() -> None:
    with (
        served(registry(), ServeOptions(header_timeout_s=0.2)) as address,
        connect(address) as client,
    ):
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost:")
        assert received(client) == b""


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with (
        served(registry(), ServeOptions(body_timeout_s=0.2)) as address,
        connect(address) as client,
    ):
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        got = b""
        while not got.endswith(b"}"):
            got += client.recv(2000)
    assert b"the body did not arrive within 0.2 s" in got


def test_headers_that_are_too_long_are_refused() -> None:
    with served(registry()) as address, connect(address) as client:
        client.sendall(b"GET / HTTP/1.1\r\nX: " + b"x" * 33_000)
        assert received(client)[:13] in (b"HTTP/1.1 400 ", b"")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_ends_its_request(stream: bool) -> None:
    models = registry()
    engine = models["language"].engine
    body = json.dumps({**ASKED, "max_tokens": 390, "n": 4, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with served(models) as address, held(engine) as may_go:
        with connect(address) as client:
            client.sendall(head.encode() + body)
            wait_until(lambda: engine.state.running == 1)
        wait_until(lambda: all(item.is_cancelled for item in tuple(engine._positions)))
        may_go.set()
        wait_until(lambda: engine.state.running == 0)
    assert engine.record.finished["interrupted"] == 4
    assert engine.record.generation_tokens <= 8


def wait_until(is_so: Callable[[], bool]) -> None:
    """Ask again and again; what never comes ends the test by its time."""
    turn = threading.Event()
    for _ in range(3000):
        if is_so():
            return
        turn.wait(0.01)
    pytest.fail("it did not come")


def test_a_full_queue_says_when_to_come_again() -> None:
    models = registry(sequences=1, queue=1)
    engine = models["language"].engine
    with served(models) as address, held(engine):
        next(iter(engine.submit([5, 3], max_new_tokens=9)))
        engine.submit([5, 3], max_new_tokens=9)
        answer = ask(address, None)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert answer.json()["error"]["type"] == "rate_limit_error"


def drained(server: Server, address: str) -> tuple[int, int, int]:
    server.drain()
    paths = ("/health/live", "/health/ready")
    live, ready = (httpx.get(address + path).status_code for path in paths)
    return live, ready, ask(address, None).status_code


def test_a_server_that_drains_takes_no_new_work() -> None:
    models = registry()
    engine = models["language"].engine
    with running(models) as (address, server), held(engine) as may_go:
        going = engine.submit([5, 3], max_new_tokens=390)
        assert drained(server, address) == (200, 503, 503)
        may_go.set()
        assert [len(found.ids) for found in going.results()] == [390]


def test_pages_of_others_may_ask_only_where_the_operator_says_so() -> None:
    origin = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    options = ServeOptions(keys=(key_of("alice"),), cors_origins=("https://example.org",))
    answers = []
    for chosen in (ServeOptions(), options):
        with served(registry(), chosen) as address:
            answers.append(httpx.options(f"{address}/v1/completions", headers=origin))
    assert "access-control-allow-origin" not in answers[0].headers
    assert answers[1].headers["access-control-allow-origin"] == "https://example.org"


def test_https_is_served_with_a_certificate(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with served(registry(), certificate=certificate, private_key=key) as address:
        found = httpx.get(f"{address.replace('http', 'https')}/v1/models", verify=trusting)
    assert found.status_code == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_a_method_that_a_path_has_not_is_refused(method: str) -> None:
    with served(registry()) as address:
        found = httpx.request(method, f"{address}/v1/completions")
    assert (found.status_code, found.headers["allow"]) == (405, "POST")
    error = found.json()["error"]
    assert error["message"].startswith(f"{method} /v1/completions")
    assert error["type"] == "invalid_request_error"


def test_answers_are_sent_at_once() -> None:
    """asyncio switches Nagle's algorithm off for sockets that it knows for TCP, and no others."""
    with bound_socket("127.0.0.1", 0) as listening:
        assert listening.proto == socket.IPPROTO_TCP
