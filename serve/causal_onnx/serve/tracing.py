"""Spans of requests for OpenTelemetry: what was asked of which model, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from causal_onnx.runtime import __version__
from causal_onnx.runtime.text.extras import import_extra
from causal_onnx.serve.engine.generation import Generation

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

__all__ = ["RequestSpan", "Tracing", "exporting_provider"]

PURPOSE = "tracing"
NAME = "causal_onnx.serve"
NANO = 1_000_000_000


def exporting_provider() -> Any:
    """A tracer provider that sends spans where the variables `OTEL_*` of the environment say.

    They are OpenTelemetry's own: `OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_SERVICE_NAME`,
    `OTEL_TRACES_SAMPLER` and others. Spans are sent as protobuf over HTTP; whoever made it calls
    `shutdown`, which sends what is left.

    Raises:
        ImportError: The extra `otel` is not installed.
    """
    resources = import_extra("opentelemetry.sdk.resources", extra="otel", purpose=PURPOSE)
    sdk = import_extra("opentelemetry.sdk.trace", extra="otel", purpose=PURPOSE)
    export = import_extra("opentelemetry.sdk.trace.export", extra="otel", purpose=PURPOSE)
    otlp = import_extra(
        "opentelemetry.exporter.otlp.proto.http.trace_exporter", extra="otel", purpose=PURPOSE
    )
    resource = resources.Resource.create()
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        own = {"service.name": "causal-onnx", "service.version": __version__}
        resource = resource.merge(resources.Resource(own))
    # The caller shuts it down; a second time at exit would only warn.
    provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
    return provider


class Tracing:
    """Makes a span for each request, below the one of the client where it sent `traceparent`."""

    def __init__(self, provider: TracerProvider) -> None:
        """Take what makes spans.

        Raises:
            ImportError: The extra `otel` is not installed.
        """
        self._trace = import_extra("opentelemetry.trace", extra="otel", purpose=PURPOSE)
        self._propagate = import_extra("opentelemetry.propagate", extra="otel", purpose=PURPOSE)
        self._tracer = provider.get_tracer(NAME, __version__)

    def begin(
        self, name: str, headers: Mapping[str, str], attributes: Mapping[str, str]
    ) -> RequestSpan:
        """Begin the span of a request.

        Args:
            name: Of the span, such as `"POST /v1/completions"`.
            headers: The request's, or its metadata; names in lower case.
            attributes: What is known at the beginning.
        """
        span = self._tracer.start_span(
            name,
            context=self._propagate.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            attributes=dict(attributes),
        )
        return RequestSpan(span, self._tracer, self._trace)


class RequestSpan:
    """The span of one request; each prompt that it continues has one below it."""

    def __init__(self, span: Span, tracer: Any, trace: Any) -> None:
        self._span, self._tracer, self._trace = span, tracer, trace
        # Engines write times down by a clock that nobody sets; spans have that of the day.
        self._offset = time.time_ns() - round(time.monotonic() * NANO)

    @property
    def trace_id(self) -> str:
        """In hexadecimal digits, as `traceparent` has it."""
        return f"{self._span.get_span_context().trace_id:032x}"

    def end(
        self,
        *,
        name: str | None,
        failed: bool,
        attributes: Mapping[str, str | int],
        model: str | None,
        generations: Sequence[Generation],
    ) -> None:
        """End it, with nothing of the request's texts.

        Args:
            name: A better one; None: it keeps the one that it has.
            failed: Whether the server is to blame.
            attributes: What is known at the end.
            model: Its name, if the request was for one.
            generations: The prompts that were continued.
        """
        span = self._span
        if span.is_recording():
            span.set_attributes(dict(attributes))
            if name is not None:
                span.update_name(name)
            if model is not None:
                span.set_attribute("gen_ai.request.model", model)
            if failed:
                span.set_status(self._trace.StatusCode.ERROR)
            below = self._trace.set_span_in_context(span)
            for generation in generations:
                self._add(generation, model, below)
        span.end()

    def _add(self, generation: Generation, model: str | None, below: Any) -> None:
        times, sequences = generation.times, generation.sequences
        ended = time.monotonic() if times.ended is None else times.ended
        span = self._tracer.start_span(
            f"text_completion {model}", context=below, start_time=self._nano(times.queued)
        )
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.request.model": str(model),
            "gen_ai.request.max_tokens": generation.plan.max_new_tokens,
            "gen_ai.request.choice.count": len(sequences),
            "gen_ai.response.finish_reasons": [item.finish or "running" for item in sequences],
            "gen_ai.usage.input_tokens": len(generation.prompt),
            "gen_ai.usage.cache_read.input_tokens": generation.cached_tokens,
            "gen_ai.usage.output_tokens": generation.written_tokens,
            "gen_ai.latency.time_in_queue": (times.started or ended) - times.queued,
        }
        if times.started is not None:
            span.add_event("started", timestamp=self._nano(times.started))
        if times.tokens:
            span.add_event("first token", timestamp=self._nano(times.tokens[0]))
            attributes["gen_ai.latency.time_to_first_token"] = times.tokens[0] - times.queued
        span.set_attributes(attributes)
        span.end(end_time=self._nano(ended))

    def _nano(self, seconds: float) -> int:
        return round(seconds * NANO) + self._offset
