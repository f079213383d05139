"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from causal_onnx.cli.errors import UsageError

if TYPE_CHECKING:
    from causal_onnx.runtime import Sampling

__all__ = [
    "adapters_of",
    "add_adapter_argument",
    "add_device_arguments",
    "add_draft_arguments",
    "add_model_argument",
    "add_prepared_argument",
    "add_sampling_arguments",
    "add_trusted_argument",
    "parse_axes",
    "parse_inputs",
    "parse_lengths",
    "sampling_of",
]


def add_model_argument(
    parser: argparse.ArgumentParser, meaning: str = "the .onnx file, or the folder of a model"
) -> None:
    """Declare `MODEL`."""
    parser.add_argument("model", type=Path, metavar="MODEL", help=meaning)


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare `--device` and `--threads`."""
    parser.add_argument(
        "--device", default="cpu", help="cpu (default), cuda, cuda:N, or auto: CUDA where it works"
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads of one call (default: physical cores)"
    )


def add_sampling_arguments(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Declare how tokens are chosen, and `--seed`; `default` says how without them."""
    sampling = parser.add_argument_group(f"how tokens are chosen (default: {default})")
    sampling.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="below 1 makes likely tokens more likely; 0: always the most likely token",
    )
    sampling.add_argument(
        "--top-k", type=int, metavar="K", help="choose among the K most likely tokens"
    )
    sampling.add_argument(
        "--top-p",
        type=float,
        metavar="P",
        help="choose among the most likely tokens that have the probability P together",
    )
    sampling.add_argument(
        "--min-p",
        type=float,
        metavar="P",
        help="choose among tokens at least P times as likely as the most likely one",
    )
    sampling.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="above 1: make tokens that were there before less likely",
    )
    sampling.add_argument(
        "--seed", type=int, metavar="N", help="the seed; the same seed gives the same tokens"
    )


def sampling_of(args: argparse.Namespace, default: Sampling) -> Sampling:
    """What the command line asks for; what it leaves out is as in `default`."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    given = {name: value for name in names if (value := getattr(args, name)) is not None}
    return replace(default, **given)


def add_trusted_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--trusted`."""
    parser.add_argument(
        "--trusted",
        action="store_true",
        help="load the file without the scan for harmful content (docs/safety.md)",
    )


def add_prepared_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--prepared`."""
    parser.add_argument(
        "--prepared",
        type=Path,
        metavar="FOLDER",
        help="keep there what onnxruntime makes of the file for this processor, and start from it "
        "the next time (twice the size of the weights; only you may write there)",
    )


def add_adapter_argument(parser: argparse.ArgumentParser) -> None:
    """Declare `--adapter`; `adapters_of` and `args.adapter` are what `load` and a call take."""
    parser.add_argument(
        "--adapter",
        metavar="DIR",
        help="a LoRA adapter of the model, which must be exported with --adaptable",
    )


def adapters_of(args: argparse.Namespace) -> dict[str, str]:
    """The adapter to load, under its own path as the name; empty: none."""
    return {} if args.adapter is None else {args.adapter: args.adapter}


def add_draft_arguments(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, *, heads: bool = False
) -> None:
    """Declare `--lookup` and `--draft`, and with `heads` also `--heads`; one may be given."""
    draft = parser.add_mutually_exclusive_group()
    draft.add_argument(
        "--lookup",
        action="store_true",
        help="guess that what followed the last tokens earlier follows again",
    )
    draft.add_argument(
        "--draft", type=Path, metavar="MODEL", help="let a smaller model guess several tokens ahead"
    )
    if heads:
        draft.add_argument(
            "--heads",
            action="store_true",
            help="let the model's own further outputs guess the tokens after the next",
        )


def parse_axes(text: str) -> dict[int, str]:
    """Read `0=batch,1=seq`; `fixed` stands for an input without such axes.

    Raises:
        UsageError: It cannot be read.
    """
    if text == "fixed":
        return {}
    axes: dict[int, str] = {}
    for item in text.split(","):
        number, equals, label = item.partition("=")
        try:
            axis = int(number)
        except ValueError:
            equals = ""
        if not equals or not label:
            raise UsageError(
                f"--axes takes axis=name pairs such as 0=batch,1=seq, or fixed; got {text!r}"
            )
        if axis in axes:
            raise UsageError(f"--axes names axis {axis} twice in {text!r}")
        axes[axis] = label
    return axes


def parse_inputs(texts: Sequence[str]) -> dict[str, tuple[str, tuple[float, float] | None]]:
    """Read every `name=kind` or `name=kind:low:high`, a range that ends before `high`.

    Returns:
        Name of the input -> (kind, range).

    Raises:
        UsageError: One cannot be read, or an input is named twice.
    """
    found: dict[str, tuple[str, tuple[float, float] | None]] = {}
    for text in texts:
        name, equals, rest = text.partition("=")
        kind, *numbers = rest.split(":")
        try:
            bounds = [float(number) if "." in number else int(number) for number in numbers]
        except ValueError:
            bounds = [0]
        if not equals or not name or not kind or len(bounds) not in (0, 2):
            raise UsageError(
                "--input takes name=kind or name=kind:low:high, such as labels=ids or "
                f"times=values:0:1000; got {text!r}"
            )
        if name in found:
            raise UsageError(f"--input names {name} twice")
        found[name] = kind, (bounds[0], bounds[1]) if bounds else None
    return found


def parse_lengths(text: str) -> list[int]:
    """Read `1,16,256`.

    Raises:
        UsageError: It is no list of positive numbers.
    """
    try:
        lengths = [int(item) for item in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise UsageError(f"--lengths takes positive numbers such as 1,16,256, got {text!r}")
    return lengths
