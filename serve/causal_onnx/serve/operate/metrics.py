"""What Prometheus reads: `/metrics`, under the names that vLLM uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from causal_onnx.serve.engine.engine import Engine
from causal_onnx.serve.engine.record import EngineRecord, Histogram
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.service import service_of

__all__ = ["ROUTES", "metrics_text"]

PREFIX, ALIAS = "causal_onnx:", "vllm:"

REASONS = {
    "stop": "stop",
    "complete": "stop",
    "length": "length",
    "limit": "length",
    "interrupted": "abort",
    "error": "error",
}
"""`Continuation.finish` -> `finished_reason`."""

GAUGES: dict[str, tuple[str, Callable[[Engine], float]]] = {
    "num_requests_running": (
        "Requests that are prefilled or decoded now.",
        lambda e: e.state.running,
    ),
    "num_requests_waiting": ("Requests in the queue.", lambda e: e.state.waiting),
    "kv_cache_usage_perc": (
        "Share of the cache's positions that running requests may need, 0 to 1.",
        lambda e: e.state.positions / e.state.most_positions,
    ),
}
COUNTERS: dict[str, tuple[str, Callable[[EngineRecord], float]]] = {
    "prompt_tokens_total": (
        "Prompt tokens of requests that have ended.",
        lambda r: r.prompt_tokens,
    ),
    "generation_tokens_total": ("Tokens that were generated.", lambda r: r.generation_tokens),
    "prefix_cache_queries_total": (
        "Prompt tokens looked up in the prefix cache.",
        lambda r: r.prompt_tokens,
    ),
    "prefix_cache_hits_total": (
        "Prompt tokens found in the prefix cache.",
        lambda r: r.cached_tokens,
    ),
    "spec_decode_num_drafts_total": (
        "Calls in which tokens that were guessed ahead are judged.",
        lambda r: r.drafts,
    ),
    "spec_decode_num_draft_tokens_total": (
        "Tokens that were guessed ahead.",
        lambda r: r.proposed_tokens,
    ),
    "spec_decode_num_accepted_tokens_total": (
        "Tokens that were guessed ahead and came true.",
        lambda r: r.accepted_tokens,
    ),
    "replays_equal_total": (
        "Replays with the same result as the request.",
        lambda r: r.replays_equal,
    ),
    "replays_different_total": (
        "Replays with another result than the request.",
        lambda r: r.replays_different,
    ),
}
HISTOGRAMS: dict[str, tuple[str, Callable[[EngineRecord], Histogram]]] = {
    "time_to_first_token_seconds": (
        "Seconds from arrival to the first token.",
        lambda r: r.time_to_first_token,
    ),
    "inter_token_latency_seconds": ("Seconds between two tokens.", lambda r: r.inter_token),
    "e2e_request_latency_seconds": ("Seconds from arrival to the last token.", lambda r: r.whole),
    "request_queue_time_seconds": ("Seconds in the queue.", lambda r: r.queued),
    "request_prefill_time_seconds": ("Seconds of prefill.", lambda r: r.prefill),
    "request_decode_time_seconds": (
        "Seconds from the first token to the last.",
        lambda r: r.decode,
    ),
    "request_prompt_tokens": ("Tokens of a prompt.", lambda r: r.prompt_length),
    "request_generation_tokens": ("Tokens of a continuation.", lambda r: r.generation_length),
}


def metrics_text(models: list[ServedModel], *, prefix: str = PREFIX) -> str:
    """All metrics, in Prometheus' text format."""
    return "".join(f"{line}\n" for line in _lines(models, prefix))


def _lines(models: list[ServedModel], prefix: str) -> Iterator[str]:
    spoken = [(served, served.engine) for served in models if served.engine is not None]
    # What a model holds, its adapters hold together; what was done is counted by name.
    engines = [(served.name, engine) for served, engine in spoken if served.parent is None]
    records = [(served.name, engine.records[served.adapter]) for served, engine in spoken]
    for name, (meaning, value) in GAUGES.items():
        yield from _head(prefix + name, meaning, "gauge")
        for model, engine in engines:
            yield f'{prefix}{name}{{model_name="{model}"}} {value(engine):g}'
    for name, (meaning, count) in COUNTERS.items():
        yield from _head(prefix + name, meaning, "counter")
        for model, record in records:
            with record.lock:
                yield f'{prefix}{name}{{model_name="{model}"}} {count(record)}'
    name = f"{prefix}request_success_total"
    yield from _head(name, "Continuations, by the reason why they ended.", "counter")
    for model, record in records:
        with record.lock:
            ended = dict(record.finished)
        for reason in dict.fromkeys(REASONS.values()):
            count_of = sum(ended.get(finish, 0) for finish in REASONS if REASONS[finish] == reason)
            yield f'{name}{{model_name="{model}",finished_reason="{reason}"}} {count_of}'
    for name, (meaning, histogram) in HISTOGRAMS.items():
        yield from _head(prefix + name, meaning, "histogram")
        for model, record in records:
            with record.lock:
                found = histogram(record)
                counts, total = list(found.counts), found.total
            yield from _histogram(prefix + name, model, found.bounds, counts, total)


def _head(name: str, meaning: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"


def _histogram(
    name: str, model: str, bounds: tuple[float, ...], counts: list[int], total: float
) -> Iterator[str]:
    below = 0
    for bound, count in zip((*bounds, float("inf")), counts, strict=True):
        below += count
        edge = "+Inf" if bound == float("inf") else f"{bound:g}"
        yield f'{name}_bucket{{model_name="{model}",le="{edge}"}} {below}'
    yield f'{name}_sum{{model_name="{model}"}} {total:.9g}'
    yield f'{name}_count{{model_name="{model}"}} {below}'


async def metrics(request: Request) -> Response:
    """All metrics; under vLLM's prefix too, where the operator asks for it."""
    service = service_of(request)
    models = list(service.models.values())
    text = metrics_text(models)
    if service.options.vllm_metrics:
        text += metrics_text(models, prefix=ALIAS)
    return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")


ROUTES = [Route("/metrics", metrics)]
