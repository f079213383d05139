"""The command line as a whole: every command with its options, and what is said of a wrong one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from causal_onnx.cli.commands import (
    adopt,
    attest,
    bench,
    bundle,
    chat,
    completion,
    doctor,
    export,
    generate,
    inspect,
    profile,
    report,
    run,
    selftest,
    serve,
    verify_bundle,
)
from causal_onnx.cli.errors import UsageError, did_you_mean

__all__ = ["COMMANDS", "build_parser"]

COMMANDS = (
    export,
    run,
    generate,
    chat,
    serve,
    inspect,
    selftest,
    report,
    bench,
    profile,
    bundle,
    verify_bundle,
    attest,
    adopt,
    doctor,
    completion,
)
EPILOG = """\
examples:
  causal-onnx export ./checkpoint -o model/
  causal-onnx export mypackage.model:build -o model.onnx
  causal-onnx run model.onnx x.npy -o y.npy
  causal-onnx report model.onnx -o report.html

exit codes: 0 done, 1 failed, 2 wrong usage; those of attest are in its own --help
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `args.run` of its result is the command.

    What it cannot parse is a `UsageError`.
    """
    # Accepted before and after the command; SUPPRESS, so that the one does not reset the other.
    shared = _Parser(add_help=False)
    shared.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of an error",
    )
    parser = _Parser(
        prog="causal-onnx",
        description="Any PyTorch causal attention module in, one proven ONNX file out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        name = module.__name__.rpartition(".")[2].replace("_", "-")
        summary, _, description = (module.__doc__ or "").partition("\n\n")
        sub = commands.add_parser(
            name,
            help=summary.rstrip("."),
            description=f"{summary}\n\n{description}".strip(),
            epilog=module.EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[shared],
        )
        module.add_arguments(sub)
        sub.set_defaults(
            run=module.run, failed=getattr(module, "FAILED", 1), command=sub, parser=parser
        )
    return parser


class _Parser(argparse.ArgumentParser):
    """Complains in one line, and takes no abbreviated options: they would change their meaning."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")

    def parse_args(  # type: ignore[override]  # the namespace is always a new one
        self, args: Sequence[str] | None = None, namespace: None = None
    ) -> argparse.Namespace:
        found, unknown = self.parse_known_args(args)
        if unknown:
            # Those of the command, which knows its options; argparse hands them to the whole.
            command: _Parser = getattr(found, "command", self)
            known = list(command._option_string_actions)
            near = "".join(did_you_mean(word.partition("=")[0], known) for word in unknown[:1])
            command.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        choices = None if action.choices is None else [str(one) for one in action.choices]
        if choices is not None and str(value) not in choices:
            raise argparse.ArgumentError(
                action,
                f"invalid choice: {value!r}{did_you_mean(str(value), choices)} "
                f"(choose from {', '.join(choices)})",
            )


class _Version(argparse.Action):
    """Prints the version; imports the runtime only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from causal_onnx.runtime import __version__  # only when asked for

        print(f"causal-onnx {__version__}")
        parser.exit()
