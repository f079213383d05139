"""Serve models over HTTP, to clients of OpenAI's API among others; needs no PyTorch.

Language models continue texts and ids, and chat where their folder has a template; requests are
batched as they come. It needs the extra `serve`. Ctrl-C or SIGTERM stops it once running requests
have finished; a second one stops it at once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import UsageError
from causal_onnx.cli.options import (
    add_device_arguments,
    add_draft_arguments,
    add_prepared_argument,
    add_trusted_argument,
)

if TYPE_CHECKING:
    from causal_onnx.runtime import DraftModel, PromptLookup
    from causal_onnx.serve import ServedModel

__all__ = ["EPILOG", "add_arguments", "run"]

KINDS = {"chat": "chat and text", "text": "text", "ids": "token ids"}
"""`ServedModel.kind` -> what is said of it."""

EPILOG = """\
examples:
  causal-onnx serve model/
  causal-onnx serve model/ --adapter french=./lora-fr --adapter legal=./lora-legal
  causal-onnx serve stories=model/ other/ single.onnx --port 8000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="the folder of a model, or an .onnx file; NAME=MODEL gives it another name",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="a LoRA adapter of the model, which must be exported with --adaptable; it is served "
        "as a model of this name (repeatable)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address (default: 127.0.0.1)")
    parser.add_argument(
        "--port",
        type=_port,
        default=8000,
        metavar="N",
        help="the port (default: 8000; 0: a free one)",
    )
    parser.add_argument(
        "--grpc-port",
        type=_port,
        metavar="N",
        help="serve the Open Inference Protocol over gRPC too (extra grpc); 0: a free port",
    )
    parser.add_argument(
        "--repository",
        type=Path,
        metavar="FOLDER",
        help="a folder whose models clients may load and unload while the server runs",
    )
    batching = parser.add_argument_group("batching, for each model")
    batching.add_argument(
        "--sequences",
        type=int,
        default=8,
        metavar="N",
        help="sequences decoded together (default: 8)",
    )
    batching.add_argument(
        "--context", type=int, metavar="N", help="positions of a sequence (default: the model's)"
    )
    batching.add_argument(
        "--chunk",
        type=int,
        default=64,
        metavar="N",
        help="positions of a prompt that are prefilled between two steps (default: 64)",
    )
    batching.add_argument(
        "--queue", type=int, default=64, metavar="N", help="requests that may wait (default: 64)"
    )
    batching.add_argument(
        "--prefix-positions",
        type=int,
        metavar="N",
        help="positions of prompts to keep for later prompts that begin alike (0: none)",
    )
    batching.add_argument(
        "--replays",
        action="store_true",
        help="repeat requests when idle, and count those whose results differ",
    )
    add_draft_arguments(batching)
    access = parser.add_argument_group("access")
    access.add_argument(
        "--keys", type=Path, metavar="FILE", help="a file of hashed keys (docs/serving.md)"
    )
    access.add_argument(
        "--tls-certificate", type=Path, metavar="FILE", help="serve HTTPS with this certificate"
    )
    access.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key")
    access.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="URL",
        help="an origin whose pages are admitted (repeatable)",
    )
    parser.add_argument(
        "--tracing",
        action="store_true",
        help="send spans to OpenTelemetry, as the variables OTEL_* say (extra otel)",
    )
    parser.add_argument("--no-page", action="store_true", help="serve no page at /")
    parser.add_argument(
        "--vllm-metrics", action="store_true", help="also write the metrics under the prefix vllm:"
    )
    parser.add_argument(
        "--drain",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds that running requests may take once it is stopped (default: 120)",
    )
    add_device_arguments(parser)
    add_prepared_argument(parser)
    add_trusted_argument(parser)


def _port(text: str) -> int:
    """A port, as argparse converts it."""
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 65535, got {text!r}")
    return int(text)


def run(args: argparse.Namespace, console: Console) -> int:
    """Serve until a signal ends it."""
    from causal_onnx.runtime.text.extras import import_extra

    import_extra("starlette", extra="serve", purpose="serving")
    import_extra("uvicorn", extra="serve", purpose="serving")
    if args.grpc_port is not None:
        import_extra("grpc", extra="grpc", purpose="serving over gRPC")
    from causal_onnx.serve import (
        EngineOptions,
        GrpcServer,
        ServeOptions,
        Server,
        create_app,
        open_models,
    )
    from causal_onnx.serve.keys import read_keys
    from causal_onnx.serve.server import bound_socket

    if args.tls_key is not None and args.tls_certificate is None:
        raise UsageError("--tls-key needs --tls-certificate")
    adapters = _adapters(args.adapter)
    if adapters and len(args.models) > 1:
        raise UsageError("--adapter is for one model, and several are served")
    engines = EngineOptions(
        sequences=args.sequences,
        context=args.context,
        chunk=args.chunk,
        queue=args.queue,
        prefix_positions=args.prefix_positions,
        draft=_draft(args),
        replays=args.replays,
    )
    provider = _tracer_provider() if args.tracing else None
    options = ServeOptions(
        drain_s=args.drain,
        keys=() if args.keys is None else read_keys(args.keys),
        cors_origins=tuple(args.cors_origin),
        tracer_provider=provider,
        page=not args.no_page,
        vllm_metrics=args.vllm_metrics,
    )
    with contextlib.closing(bound_socket(args.host, args.port)) as socket:
        if not options.keys and not _is_own(args.host):
            console.note(
                f"warning: other machines can reach {args.host}, and no key is required (--keys)"
            )
        models = open_models(
            args.models,
            device=args.device,
            threads=args.threads,
            trusted=args.trusted,
            prepared=args.prepared,
            engine_options=engines,
            repository=args.repository,
            adapters=adapters,
        )
        with contextlib.closing(models):
            host = f"[{args.host}]" if ":" in args.host else args.host
            scheme = "http" if args.tls_certificate is None else "https"
            address = f"{scheme}://{host}:{socket.getsockname()[1]}"

            def announce(text: str) -> None:
                console.print(text)
                sys.stdout.flush()  # it serves from here on, and a pipe or file would wait

            for served in models.values():
                announce(_described(served))
            announce(f"listening on {address}")
            announce(_curl(address, next(iter(models.values())), needs_key=bool(options.keys)))
            app = create_app(models, options)
            tls: dict[str, Path | None] = {}
            if args.tls_certificate is not None:
                tls = {"certificate": args.tls_certificate, "private_key": args.tls_key}
            grpc = None
            if args.grpc_port is not None:
                grpc = GrpcServer(
                    app.state.service,
                    host=args.host,
                    port=args.grpc_port,
                    on_start=lambda port: announce(f"gRPC on {host}:{port}"),
                    **tls,
                )
            server = Server(app, grpc=grpc, **tls)
            with _requests_on_stderr(), contextlib.ExitStack() as stack:
                if provider is not None:
                    stack.callback(provider.shutdown)  # sends what is left
                server.run(sockets=[socket])
    return 0


def _adapters(texts: list[str]) -> dict[str, Path]:
    """Adapters by name.

    Raises:
        UsageError: One has no name or no path, or two have the same name.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        if not (sign and name and path):
            raise UsageError(f"--adapter takes NAME=FOLDER, such as french=./lora-fr, got {text!r}")
        if name in found:
            raise UsageError(f"--adapter names {name!r} twice")
        found[name] = Path(path)
    return found


def _draft(args: argparse.Namespace) -> PromptLookup | DraftModel | None:
    """What guesses tokens ahead."""
    from causal_onnx.runtime import DraftModel, PromptLookup, load

    if args.draft is not None:
        model = load(args.draft, device=args.device, threads=args.threads, trusted=args.trusted)
        return DraftModel(model=model)
    return PromptLookup() if args.lookup else None


def _tracer_provider() -> Any:
    """What sends spans as the environment says."""
    from causal_onnx.serve.tracing import exporting_provider

    names = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    name = next((name for name in names if os.environ.get(name)), None)
    if name is not None and os.environ[name] != "http/protobuf":
        raise UsageError(f"spans are sent as http/protobuf, and {name} is {os.environ[name]!r}")
    return exporting_provider()


def _is_own(host: str) -> bool:
    """Whether only this machine reaches an address."""
    return host in ("localhost", "::1") or host.startswith("127.")


@contextlib.contextmanager
def _requests_on_stderr() -> Iterator[None]:
    """Write a line for each request."""
    log = logging.getLogger("causal_onnx.serve.requests")
    handler, before = logging.StreamHandler(sys.stderr), (log.level, log.propagate)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before


def _described(served: ServedModel) -> str:
    """What a model is, and where it runs."""
    runner, engine = served.model.runner, served.engine
    if served.parent is not None:
        return f"{served.name}: an adapter of {served.parent}"
    where = f"{served.model.device}, {runner.threads} thread{'s' * (runner.threads != 1)}"
    if engine is None:
        return f"{served.name}: tensors, on {where}"
    most = engine.batch_sizes[-1]
    batching = f"up to {most} together" if most > 1 else "one after the other"
    text = (
        f"{served.name}: {KINDS[served.kind]}, {engine.context} positions, on {where}, {batching}"
    )
    if engine.options.draft is None:
        return text
    return f"{text}, " + (
        "guesses ahead"
        if engine.no_guesses is None
        else f"guesses nothing ahead: {engine.no_guesses}"
    )


def _curl(address: str, served: ServedModel, *, needs_key: bool) -> str:
    """A command that works, once the client's own key is filled in."""
    key = " -H 'Authorization: Bearer KEY'" if needs_key else ""
    if served.engine is None:
        return f"try: curl {address}/v1/models{key}"
    if served.tokenizer is None:
        prompt: object = [0]
    else:
        prompt = "Once upon a time"
    body = json.dumps({"model": served.name, "prompt": prompt, "max_tokens": 32})
    kind = "-H 'Content-Type: application/json'"
    return f"try: curl {address}/v1/completions{key} {kind} -d '{body}'"
