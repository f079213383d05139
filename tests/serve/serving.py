"""Run a server in this process, and send it what no client library would."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from causal_onnx.serve import Engine, Registry, ServeOptions, Server, create_app
from causal_onnx.serve.server import bound_socket


@contextlib.contextmanager
def served(models: Registry, options: ServeOptions | None = None, **tls: Path) -> Iterator[str]:
    """The address of a server that runs on a thread; the models end with it."""
    with running(models, options, **tls) as (address, _):
        yield address


@contextlib.contextmanager
def running(
    models: Registry, options: ServeOptions | None = None, **tls: Path
) -> Iterator[tuple[str, Server]]:
    """The same, with the server itself."""
    server = Server(create_app(models, options), **tls)
    with contextlib.closing(bound_socket("127.0.0.1", 0)) as socket:
        address = f"http://127.0.0.1:{socket.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([socket],))
        thread.start()
        try:
            yield address, server
        finally:
            server.should_exit = True
            thread.join()
            models.close()


@contextlib.contextmanager
def held(engine: Engine) -> Iterator[threading.Event]:
    """What lets an engine take its next steps of decoding; until it is set, it waits in one."""
    rows, may_go = engine._rows, threading.Event()
    step = rows.step

    def held_step(ids: Any) -> Any:
        may_go.wait()
        return step(ids)

    rows.step = held_step  # type: ignore[method-assign]
    try:
        yield may_go
    finally:
        may_go.set()


def post(address: str, path: str, body: Any) -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    import httpx

    content = body if isinstance(body, bytes) else None
    given = None if isinstance(body, bytes) else body
    answer = httpx.post(f"{address}{path}", content=content, json=given, timeout=60)
    return answer.status_code, answer.json()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject,
             "-keyout", str(key), "-out", str(certificate)],
            check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("openssl, which makes a certificate, is not installed")
    return certificate, key
