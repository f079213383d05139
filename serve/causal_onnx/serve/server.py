"""Run the application by uvicorn, and end it in order."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import time
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from causal_onnx.serve.inference_protocol.grpc_server import GrpcServer
from causal_onnx.serve.service import Service

__all__ = ["Server", "bound_socket"]

log = logging.getLogger(__name__)

MOST_HEADER_BYTES = 32 << 10
BACKLOG = 2048
CLOSING_S = 5
"""How long answers that are being written may take once nothing runs any more."""


class _Protocol(H11Protocol):
    """HTTP/1.1 where headers must come in time: a client that sends them bit by bit is dropped."""

    header_timeout_s = 20.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_timer()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        self._end_timer()
        self._timer = self.loop.call_later(self.header_timeout_s, self.transport.close)

    def _end_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


class Server(uvicorn.Server):
    """Runs the application with uvicorn, and drains it: after SIGTERM or Ctrl-C it accepts no new
    requests, and ends when those in progress have.

    `/health/ready` then returns 503, so that no more are sent. A second signal ends it at once.
    """

    def __init__(
        self,
        app: Starlette,
        *,
        certificate: Path | None = None,
        private_key: Path | None = None,
        grpc: GrpcServer | None = None,
    ) -> None:
        """Configure a server for an application that `create_app` made.

        Args:
            app: The application.
            certificate: A PEM file with the certificate chain, for TLS; None: plain HTTP.
            private_key: A PEM file with its private key; None: it is in the same file.
            grpc: A gRPC server that runs as long as this one; None: HTTP only.
        """
        self._service: Service = app.state.service
        self._grpc = grpc
        self._ends_at: float | None = None
        config = uvicorn.Config(
            app,
            http=type(
                "Protocol",
                (_Protocol,),
                {"header_timeout_s": self._service.options.header_timeout_s},
            ),
            ssl_certfile=certificate,
            ssl_keyfile=private_key,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
            timeout_graceful_shutdown=CLOSING_S,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        if self._grpc is not None:
            await self._grpc.start()
        await super().startup(sockets=sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen no more, and let answers that are being written end."""
        if self._grpc is not None:
            await self._grpc.stop(0 if self.force_exit else CLOSING_S)
        await super().shutdown(sockets=sockets)

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
    """Returns a socket that listens on an address; port 0 takes a free port.

    Raises:
        OSError: The address is in use, or does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio knows it for TCP, and sends at once what there is: otherwise an answer
    # waits 40 ms for the client's word that it has the headers.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(BACKLOG)  # whoever comes before the application runs waits
    except OSError as error:
        found.close()
        advice = "; choose another port, or 0 for a free one" * (error.errno == errno.EADDRINUSE)
        message = f"cannot listen on {host}:{port}: {error.strerror or error}{advice}"
        raise OSError(message) from error
    found.set_inheritable(False)
    return found
