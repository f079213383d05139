"""Run the application by uvicorn, and end it in order."""

from __future__ import annotations

import logging
import signal
import socket
import time
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from causal_onnx.serve.service import Service

__all__ = ["Server", "bound_socket"]

log = logging.getLogger(__name__)

MOST_HEADER_BYTES = 32 << 10
BACKLOG = 2048
CLOSING_S = 5
"""How long answers that are being written may take once nothing runs any more."""


class Server(uvicorn.Server):
    """A server that drains: after SIGTERM it takes no new work, and ends when what it has is done.

    `/health/ready` says 503 then, so that nobody sends more. A second signal ends it at once.
    """

    def __init__(self, app: Starlette) -> None:
        """Take an application that `create_app` made."""
        self._service: Service = app.state.service
        self._ends_at: float | None = None
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
            timeout_graceful_shutdown=CLOSING_S,
        )
        super().__init__(config)

    def drain(self) -> None:
        """Take no new work, and end when there is none left, or after `ServeOptions.drain_s`."""
        if self._ends_at is None:
            self._service.is_draining = True
            self._ends_at = time.monotonic() + self._service.options.drain_s
            log.info("draining: no new work is taken")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second ends."""
        if self._ends_at is not None:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
        else:
            self.drain()

    async def on_tick(self, counter: int) -> bool:
        if self._ends_at is not None:
            is_late = time.monotonic() >= self._ends_at
            if is_late:
                log.warning("some requests did not end within the time for draining")
            if is_late or self._service.is_idle:
                self.should_exit = True
        return await super().on_tick(counter)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0: a free one.

    Raises:
        OSError: The address is taken, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(BACKLOG)  # whoever comes before the application runs waits
    except OSError as error:
        found.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    found.set_inheritable(False)
    return found
