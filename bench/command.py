"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Sequence
from typing import Protocol

from bench.agreement import DisagreementError
from bench.client import WorkerError

__all__ = ["one_line_errors", "positive"]


class Main(Protocol):
    """Takes the arguments, or those of the process, and gives the exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def positive(text: str) -> int:
    """A positive integer, for `argparse`."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return value


def one_line_errors(main: Main) -> Main:
    """Let a command end with a line on stderr and 1 where it failed, or 130 where it was stopped.

    Only what a run raises is meant: a command writes its files after it.
    """

    @functools.wraps(main)
    def checked(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except (DisagreementError, WorkerError, RuntimeError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("stopped; nothing was written", file=sys.stderr)
            return 130

    return checked
