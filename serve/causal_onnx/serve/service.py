"""What the routes of all protocols share: the models, the options, and whether it goes on."""

from __future__ import annotations

from starlette.requests import Request

from causal_onnx.serve.errors import UnavailableError
from causal_onnx.serve.keys import Quota
from causal_onnx.serve.options import ServeOptions
from causal_onnx.serve.registry import Registry
from causal_onnx.serve.tracing import Tracing

__all__ = ["Service", "service_of"]


class Service:
    """The state of one server."""

    def __init__(self, models: Registry, options: ServeOptions) -> None:
        self.models, self.options = models, options
        self.quotas = {key.name: Quota(key) for key in options.keys}
        """The name of each key -> what was used of its limits."""
        provider = options.tracer_provider
        self.tracing = None if provider is None else Tracing(provider)
        """What makes spans of requests; None: nothing does."""
        self.is_draining = False
        """Whether no new work is taken, because the server is about to end."""

    @property
    def is_ready(self) -> bool:
        """Whether it takes work, for all of its models."""
        return not self.is_draining and all(served.is_open for served in self.models.values())

    @property
    def is_idle(self) -> bool:
        """Whether no request waits for a model, or is answered by one."""
        return all(served.is_idle for served in self.models.values())

    def check_open(self) -> None:
        """Raise where no new work is taken.

        Raises:
            UnavailableError: The server is about to end.
        """
        if self.is_draining:
            raise UnavailableError("the server is shutting down; ask another server")


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service: Service = request.app.state.service
    return service
