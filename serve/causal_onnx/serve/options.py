"""What the operator of a server chooses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from causal_onnx.runtime.request.whole_numbers import whole_number
from causal_onnx.serve.keys import ApiKey

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["ServeOptions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeOptions:
    """Limits and features of the server; those of its engines are in `EngineOptions`."""

    max_body_bytes: int = 8 << 20
    """The largest body of a request, in bytes."""
    body_timeout_s: float = 30.0
    """Seconds that a client may take to send a body."""
    ping_s: float = 15.0
    """Seconds without an event after which a stream gets a comment, so that proxies keep it."""
    drain_s: float = 120.0
    """Seconds that running requests may take to end after SIGTERM or Ctrl-C."""
    most_prompts: int = 256
    """The most prompts of a request."""
    header_timeout_s: float = 20.0
    """Seconds that a client may take to send the headers of a request."""
    reader_timeout_s: float = 60.0
    """Seconds that a client may leave a stream unread."""
    keys: tuple[ApiKey, ...] = ()
    """Keys that are accepted; empty: no key is required."""
    cors_origins: tuple[str, ...] = ()
    """Other origins whose pages may send requests, such as `"https://example.org"`."""
    tracer_provider: TracerProvider | None = None
    """The provider of an OpenTelemetry span for each request; None: no spans."""
    page: bool = True
    """Whether a page is served at `/`."""
    vllm_metrics: bool = False
    """Whether metrics are also written under vLLM's prefix."""

    def __post_init__(self) -> None:
        whole_number("max_body_bytes", self.max_body_bytes)
        whole_number("most_prompts", self.most_prompts)
        for name in _SECONDS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name} must be a positive number of seconds, got {value!r}")


_SECONDS = ("body_timeout_s", "ping_s", "drain_s", "header_timeout_s", "reader_timeout_s")
