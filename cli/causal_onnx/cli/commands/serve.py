"""Serve models over HTTP, to clients of OpenAI's API among others; needs no PyTorch.

Language models continue texts and ids, and chat where their folder has a template; requests are
batched as they come. Needs the extra `serve`. SIGTERM ends it in order: running requests finish.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from typing import TYPE_CHECKING

from causal_onnx.cli.console import Console
from causal_onnx.cli.options import add_device_arguments, add_trusted_argument

if TYPE_CHECKING:
    from causal_onnx.serve import ServedModel

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx serve model/
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
    parser.add_argument("--host", default="127.0.0.1", help="the address (default: 127.0.0.1)")
    parser.add_argument(
        "--port", type=int, default=8000, metavar="N", help="default: 8000; 0: a free one"
    )
    batching = parser.add_argument_group("batching, for each model")
    batching.add_argument(
        "--sequences", type=int, default=8, metavar="N", help="decoded together (default: 8)"
    )
    batching.add_argument(
        "--context", type=int, metavar="N", help="positions of a sequence (default: the model's)"
    )
    batching.add_argument(
        "--chunk",
        type=int,
        default=64,
        metavar="N",
        help="positions of a prompt that are read between two steps (default: 64)",
    )
    batching.add_argument(
        "--queue", type=int, default=64, metavar="N", help="requests that may wait (default: 64)"
    )
    parser.add_argument(
        "--drain",
        type=float,
        default=120.0,
        metavar="S",
        help="seconds that running requests may take after SIGTERM (default: 120)",
    )
    add_device_arguments(parser)
    add_trusted_argument(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Serve until a signal ends it."""
    from causal_onnx.runtime.text.extras import import_extra

    for package in ("starlette", "uvicorn"):
        import_extra(package, extra="serve", purpose="serving")
    from causal_onnx.serve import EngineOptions, ServeOptions, Server, create_app, open_models
    from causal_onnx.serve.server import bound_socket

    engines = EngineOptions(
        sequences=args.sequences, context=args.context, chunk=args.chunk, queue=args.queue
    )
    options = ServeOptions(drain_s=args.drain)
    with contextlib.closing(bound_socket(args.host, args.port)) as socket:
        models = open_models(
            args.models,
            device=args.device,
            threads=args.threads,
            trusted=args.trusted,
            engine_options=engines,
        )
        with contextlib.closing(models):
            host = f"[{args.host}]" if ":" in args.host else args.host
            address = f"http://{host}:{socket.getsockname()[1]}"
            for served in models.values():
                console.print(_described(served))
            console.print(f"listening on {address}")
            console.print(_curl(address, next(iter(models.values()))))
            Server(create_app(models, options)).run(sockets=[socket])
    return 0


def _described(served: ServedModel) -> str:
    """What a model is, and where it really runs."""
    runner, engine = served.model.runner, served.engine
    where = f"{served.model.device}, {runner.threads} thread{'s' * (runner.threads != 1)}"
    if engine is None:
        return f"{served.name}: tensors, on {where}"
    most = engine.batch_sizes[-1]
    batching = f"up to {most} together" if most > 1 else "one after the other"
    kinds = "chat and text" if served.template else "text" if served.tokenizer else "token ids"
    return f"{served.name}: {kinds}, {engine.context} positions, on {where}, {batching}"


def _curl(address: str, served: ServedModel) -> str:
    """A command that works."""
    if served.engine is None:
        return f"try: curl {address}/v1/models"
    if served.tokenizer is None:
        prompt: object = [0]
    else:
        prompt = "Once upon a time"
    body = json.dumps({"model": served.name, "prompt": prompt, "max_tokens": 32})
    return f"try: curl {address}/v1/completions -H 'Content-Type: application/json' -d '{body}'"
