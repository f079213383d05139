"""What both streaming processes do with their model: stream, measure, write the figures down."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from causal_onnx.cli.resident import peak_bytes

__all__ = ["Run", "parse_arguments", "play"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one process streamed, and what it took."""

    text: str
    """The continuation, without the prompt."""
    tokens: int
    """Bytes drawn."""
    startup_s: float
    """From just before the process was started to its first character."""
    tokens_per_s: float
    """Over all tokens after the first character; 0 if there were none."""
    peak_memory_bytes: int
    """Largest resident set of the process."""
    packages: list[str] = field(default_factory=list)
    """Distributions outside the standard library that the process had imported at its end."""
    refused: dict[str, str] = field(default_factory=dict)
    """Package -> the error that an attempt to import it raised."""

    @classmethod
    def read(cls, path: Path) -> Run:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def parse_arguments(description: str) -> argparse.Namespace:
    """Read the command line that both processes have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, required=True, help="what to load")
    parser.add_argument("--prompt", required=True, help="text to continue")
    parser.add_argument("--max-bytes", type=int, default=400, help="length of the continuation")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--started", type=float, default=None, help="time.monotonic() before this process started"
    )
    parser.add_argument("--figures", type=Path, default=None, help="JSON file for what it took")
    return parser.parse_args()


def play(
    args: argparse.Namespace,
    load: Callable[[Path, int], Any],
    *,
    refused: dict[str, str] | None = None,
) -> None:
    """Stream a continuation to stdout, and write the figures to `args.figures`.

    Args:
        args: From `parse_arguments`.
        load: Gives the context (see `bytestream.Context`) of a file, computing on so many threads.
        refused: For the figures.
    """
    # Here, because it imports numpy: in a process that bars packages, after they are barred.
    from examples.demo.bytestream import stream_text  # noqa: PLC0415

    started = time.monotonic() if args.started is None else args.started
    context = load(args.model, args.threads)
    characters: list[str] = []
    first = last = started
    try:
        for character in stream_text(
            context,
            args.prompt.encode(),
            max_bytes=args.max_bytes,
            temperature=args.temperature,
            seed=args.seed,
        ):
            sys.stdout.write(character)
            sys.stdout.flush()
            last = time.monotonic()
            if not characters:
                first = last
            characters.append(character)
    except KeyboardInterrupt:
        sys.exit(130)
    text = "".join(characters)
    after_first = len(text.encode()) - len(characters[0].encode())
    run = Run(
        text=text,
        tokens=len(text.encode()),
        startup_s=first - started,
        tokens_per_s=after_first / (last - first) if after_first else 0.0,
        peak_memory_bytes=_peak_memory_bytes(),
        packages=_imported_packages(),
        refused=refused or {},
    )
    if args.figures is not None:
        args.figures.write_text(json.dumps(asdict(run), indent=2), encoding="utf-8")


def _peak_memory_bytes() -> int:
    peak = peak_bytes()
    if peak is None:
        raise RuntimeError(f"{sys.platform} does not tell how much memory a process held")
    return peak


def _imported_packages() -> list[str]:
    """Distributions of which a module is loaded.

    Modules whose name begins with an underscore are not counted: an environment's start-up hooks,
    such as setuptools', have such names.
    """
    tops = {name.partition(".")[0] for name in sys.modules if not name.startswith("_")}
    owners = importlib.metadata.packages_distributions()
    found = {owner for top in tops for owner in owners.get(top, ())}
    return sorted(found)
