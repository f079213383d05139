"""Run the demo: python -m examples.demo."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from causal_onnx.runtime import CausalOnnxError
from examples.demo.demo import Settings, run_demo
from examples.demo.screen import Screen


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command line and run; 0 when all went well."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="Export, prove, train, stream without PyTorch, and write a report.",
    )
    defaults = Settings(folder=Path("build/demo"))
    parser.add_argument("--folder", type=Path, default=defaults.folder)
    parser.add_argument("--prompt", default=defaults.prompt, help="text to continue")
    parser.add_argument(
        "--steps", type=int, default=defaults.train_steps, help="of the training (%(default)s)"
    )
    parser.add_argument(
        "--bytes", type=int, default=defaults.max_bytes, help="length of the text (%(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=defaults.temperature)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument(
        "--threads",
        type=int,
        default=None,
        help="default: whichever is faster now, one or one per core",
    )
    args = parser.parse_args(argv)
    try:
        settings = Settings(
            folder=args.folder,
            prompt=args.prompt,
            train_steps=args.steps,
            max_bytes=args.bytes,
            temperature=args.temperature,
            seed=args.seed,
            threads=args.threads,
        )
        run_demo(settings, Screen())
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    except (CausalOnnxError, ValueError, RuntimeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
