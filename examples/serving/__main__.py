"""Run it: python -m examples.serving."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from causal_onnx.runtime import CausalOnnxError
from examples.demo.screen import Screen
from examples.serving.demo import run_serve_demo


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and run; 0 when all went well."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.serving",
        description="Serve a trained model without PyTorch, and let OpenAI's client use it.",
    )
    parser.add_argument("--folder", type=Path, default=Path("build/demo"))
    parser.add_argument("--port", type=int, default=8000, help="0: a free one (%(default)s)")
    parser.add_argument(
        "--no-maps", action="store_true", help="leave out the file with attention weights"
    )
    parser.add_argument(
        "--ends", action="store_true", help="end when all is shown, on a terminal too"
    )
    args = parser.parse_args(argv)
    screen = Screen()
    args.folder.mkdir(parents=True, exist_ok=True)
    try:
        found = run_serve_demo(
            args.folder,
            screen,
            port=args.port,
            stays=screen.is_terminal and not args.ends,
            maps=not args.no_maps,
        )
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (CausalOnnxError, ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0 if found.is_as_in_process and found.are_as_alone else 1


if __name__ == "__main__":
    sys.exit(main())
