"""Print what lets a shell complete commands, options and files.

Its output goes where the shell looks for completions; a new shell then has them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from causal_onnx.cli.console import Console

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx completion bash > ~/.local/share/bash-completion/completions/causal-onnx
  causal-onnx completion zsh > ~/.zfunc/_causal-onnx
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("shell", metavar="SHELL", choices=("bash", "zsh"), help="bash or zsh")


def run(args: argparse.Namespace, console: Console) -> int:
    """Print the script of a shell."""
    from causal_onnx.runtime.text.extras import import_extra

    shtab = import_extra("shtab", extra="completion", purpose="shell completion")
    for action in _actions(args.parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]  # where shtab looks for it
    console.print(shtab.complete(args.parser, shell=args.shell).rstrip("\n"))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
