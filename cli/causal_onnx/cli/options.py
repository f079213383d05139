"""Options that several commands share."""

from __future__ import annotations

import argparse

__all__ = ["add_device_arguments"]


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--device` and `--threads`."""
    parser.add_argument(
        "--device", default="cpu", help="cpu (default), cuda, cuda:N, or auto: CUDA where it works"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads of one call (default: physical cores)"
    )
