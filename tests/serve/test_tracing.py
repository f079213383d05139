"""Spans for OpenTelemetry, kept in memory."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from causal_onnx.runtime.text.extras import import_extra
from causal_onnx.serve import ServeOptions, open_models
from causal_onnx.serve.tracing import exporting_provider
from tests.runtime.artifacts import fixture
from tests.serve.serving import served
from tests.serve.test_command import command, lines_until_curl
from tests.serve.test_operate import ASKED, key_of, registry

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="needs the extra `otel`")
exports = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def tracing() -> tuple[Any, Any]:
    """A provider, and where its spans are kept."""
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    provider, kept = sdk.TracerProvider(), exports.InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return provider, kept


def spans_of(*paths: str, body: Any = ASKED, **headers: str) -> list[Any]:
    """The spans of requests, the last one ended first."""
    provider, kept = tracing()
    options = ServeOptions(tracer_provider=provider)
    with served(registry(), options) as address:
        for path in paths:
            method = "POST" if path.startswith("/v1/") else "GET"
            given = {"json": body} if method == "POST" else {}
            httpx.request(method, address + path, headers=headers, timeout=60, **given)
    return sorted(kept.get_finished_spans(), key=lambda span: -span.end_time)


def test_a_request_is_a_span_with_its_model_and_one_below_for_each_prompt() -> None:
    whole, *prompts = spans_of("/v1/completions", body={**ASKED, "prompt": [[5, 3], [5]], "n": 2})
    assert (whole.name, whole.kind.name) == ("POST /v1/completions", "SERVER")
    assert whole.attributes["gen_ai.request.model"] == "language"
    assert whole.attributes["http.response.status_code"] == 200
    assert [span.parent.span_id for span in prompts] == [whole.context.span_id] * 2
    assert sorted(s.attributes["gen_ai.usage.input_tokens"] for s in prompts) == [1, 2]
    for span in prompts:
        assert span.name == "text_completion language"
        assert span.attributes["gen_ai.usage.output_tokens"] == 8
        assert span.attributes["gen_ai.response.finish_reasons"] == ("length", "length")
        assert whole.start_time <= span.start_time <= span.end_time <= whole.end_time


def test_a_prompts_times_are_in_order() -> None:
    _, span = spans_of("/v1/completions")
    started, first = span.events
    assert (started.name, first.name) == ("started", "first token")
    assert span.start_time <= started.timestamp <= first.timestamp <= span.end_time
    queue = span.attributes["gen_ai.latency.time_in_queue"]
    assert 0 <= queue <= span.attributes["gen_ai.latency.time_to_first_token"]
    assert abs(queue - (started.timestamp - span.start_time) / 1e9) < 1e-5


def test_a_clients_trace_goes_on() -> None:
    whole, prompt = spans_of("/v1/completions", traceparent=f"00-{TRACE}-{PARENT}-01")
    assert f"{whole.context.trace_id:032x}" == f"{prompt.context.trace_id:032x}" == TRACE
    assert f"{whole.parent.span_id:016x}" == PARENT


def test_a_client_that_is_not_traced_is_not_traced_here() -> None:
    assert spans_of("/v1/completions", traceparent=f"00-{TRACE}-{PARENT}-00") == []


def test_what_is_refused_has_a_span_without_prompts() -> None:
    (span,) = spans_of("/v1/completions", body={**ASKED, "temperature": -1})
    assert span.attributes["http.response.status_code"] == 400
    assert span.status.is_ok or span.status.status_code.name == "UNSET"


def test_who_asks_how_the_server_is_has_no_span_and_unknown_paths_no_name() -> None:
    spans = spans_of("/health/ready", "/metrics", "/page/models", "/", "/secret/7")
    assert [span.name for span in spans] == ["GET"]


def test_no_text_is_in_a_span(talker: Path) -> None:
    provider, kept = tracing()
    secret = "héllo secret"
    messages = [{"role": "user", "content": secret}]
    with served(open_models([str(talker)]), ServeOptions(tracer_provider=provider)) as address:
        body = {"model": "talker", "messages": messages, "max_tokens": 3}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body).json()
    text = "".join(span.to_json() for span in kept.get_finished_spans())
    assert len(kept.get_finished_spans()) == 2
    assert "secret" not in text
    assert json.dumps(answer["choices"][0]["message"]["content"]) not in text


def test_a_line_of_the_log_has_the_trace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="causal_onnx.serve.requests")
    whole, _ = spans_of("/v1/completions")
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    assert [line["trace"] for line in lines] == [f"{whole.context.trace_id:032x}"]


def test_a_key_that_is_not_known_is_seen() -> None:
    provider, kept = tracing()
    options = ServeOptions(tracer_provider=provider, keys=(key_of("alice"),))
    with served(registry(), options) as address:
        httpx.post(f"{address}/v1/completions", json=ASKED)
    (span,) = kept.get_finished_spans()
    assert span.attributes["http.response.status_code"] == 401


def test_calls_over_grpc_have_spans_too() -> None:
    client_of = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
    import numpy as np

    from tests.serve.test_grpc import grpc_served

    provider, kept = tracing()
    asked = client_of.InferInput("input_ids", [1, 2], "INT64")
    asked.set_data_from_numpy(np.array([[5, 3]]))
    with (
        grpc_served(registry(), ServeOptions(tracer_provider=provider)) as address,
        client_of.InferenceServerClient(address) as client,
    ):
        client.infer("language", [asked], headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    (span,) = kept.get_finished_spans()
    assert span.name == "inference.GRPCInferenceService/ModelInfer"
    assert span.attributes["gen_ai.request.model"] == "language"
    assert f"{span.context.trace_id:032x}" == TRACE


def test_the_command_refuses_a_protocol_that_it_does_not_send(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with command(str(fixture("language")), "--tracing") as process:
        said = process.communicate()[1]
    assert process.returncode == 2
    assert "spans are sent as http/protobuf, and OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc'" in said


def test_the_command_sends_spans_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with collector() as (address, received):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
        with command(str(fixture("language")), "--tracing", "--threads", "1") as process:
            *_, listening, _ = lines_until_curl(process)
            httpx.post(f"{listening.split()[-1]}/v1/completions", json=ASKED | {"max_tokens": 2})
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
    assert [path for path, _ in received] == ["/v1/traces"]
    for part in (b"mine", b"POST /v1/completions", b"gen_ai.usage.output_tokens"):
        assert part in received[0][1]


@contextlib.contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """The address of something that takes spans, and what it took."""
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            is_zipped = self.headers.get("content-encoding") == "gzip"
            received.append((self.path, gzip.decompress(body) if is_zipped else body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("name", ["opentelemetry.sdk.trace.export", "opentelemetry.sdk.resources"])
def test_what_is_missing_is_named_with_its_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"tracing needs the package {name}: .*\[otel\]'"):
        exporting_provider()


def test_a_package_whose_parent_is_missing_is_named_too() -> None:
    with pytest.raises(ImportError, match=r"tracing needs the package absent\.part\.of: "):
        import_extra("absent.part.of", extra="otel", purpose="tracing")
