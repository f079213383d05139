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
    """How requests are taken; what the engines do is in `EngineOptions`."""

    max_body_bytes: int = 8 << 20
    """The largest body of a request."""
    body_timeout_s: float = 30.0
    """How long a client may take to send one."""
    ping_s: float = 15.0
    """A stream on which nothing was sent for so long gets a comment, so that proxies keep it."""
    drain_s: float = 120.0
    """How long running requests may take to end after SIGTERM."""
    most_prompts: int = 256
    """Prompts of one request."""
    header_timeout_s: float = 20.0
    """How long a client may take to send the headers of a request."""
    reader_timeout_s: float = 60.0
    """How long a client may leave a stream unread."""
    keys: tuple[ApiKey, ...] = ()
    """Keys that are taken; none: everyone may ask."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may ask, such as `"https://example.org"`; none: no page of others."""
    tracer_provider: TracerProvider | None = None
    """What makes a span of OpenTelemetry for each request; None: nothing does."""
    page: bool = True
    """Whether there is a page at `/`."""
    vllm_metrics: bool = False
    """Whether metrics come under vLLM's prefix, too."""

    def __post_init__(self) -> None:
        whole_number("max_body_bytes", self.max_body_bytes)
        whole_number("most_prompts", self.most_prompts)
        for name in _SECONDS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name} must be a positive number of seconds, got {value!r}")


_SECONDS = ("body_timeout_s", "ping_s", "drain_s", "header_timeout_s", "reader_timeout_s")
