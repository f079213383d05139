"""Read the command line, run one command, and turn what it raises into one line and an exit code.

argparse and not a framework, because these commands must work where only numpy and onnxruntime are
installed. For the same reason every command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from causal_onnx.cli.commands import (
    adopt,
    attest,
    bench,
    bundle,
    chat,
    doctor,
    export,
    generate,
    inspect,
    profile,
    report,
    run,
    selftest,
    verify_bundle,
)
from causal_onnx.cli.console import Console, printable
from causal_onnx.cli.errors import UsageError

__all__ = ["main"]

COMMANDS = (
    export,
    run,
    generate,
    chat,
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
)
DONE, FAILED, WRONG_USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

EPILOG = """\
examples:
  causal-onnx export ./checkpoint -o model/
  causal-onnx export mypackage.model:build -o model.onnx
  causal-onnx run model.onnx x.npy -o y.npy
  causal-onnx report model.onnx -o report.html

exit codes: 0 done, 1 failed, 2 wrong usage; those of attest are in its own --help
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: What follows the program's name; None: what the process was called with.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted; `attest` fails with 3, as
        its 1 is a verdict.

    Raises:
        SystemExit: 143, where SIGTERM ends it (`docker stop`); drafts are removed then, too.
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as exit_:  # argparse has printed its help or its complaint
        return int(exit_.code or 0)
    debug = getattr(args, "debug", False)
    console = Console()
    with _library_warnings_on_stderr(), _ending_in_order():
        try:
            code: int = args.run(args, console)
            sys.stdout.flush()
        except UsageError as error:
            _tell(error)
            return WRONG_USAGE
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except BrokenPipeError:
            # The reader, such as `head`, has enough. Python would complain once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return FAILED
        except Exception as error:
            if debug and args.failed == FAILED:
                raise
            if debug:
                traceback.print_exc()
            else:
                _tell(error)
            return int(args.failed)
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; `args.run` of its result is the command."""
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
        sub.set_defaults(run=module.run, failed=getattr(module, "FAILED", FAILED))
    return parser


class _Parser(argparse.ArgumentParser):
    """Complains in one line, and takes no abbreviated options: they would change their meaning."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_USAGE, f"error: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Prints the version; imports the runtime only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from causal_onnx.runtime import __version__  # only when asked for

        print(f"causal-onnx {__version__}")
        parser.exit()


HINTS = {
    "TrialLimits(memory_bytes=": "--memory-bytes",
    "TrialLimits(processor_s=": "--processor-s",
    "TrialLimits(wall_s=": "--wall-s",
    "trusted=True": "--trusted",
    "cast=True": "--cast",
    "replace=True": "--replace",
    "trust_remote_code=True": "--trust-remote-code",
    "adapter=": "--adapter DIR",
    "tokenizer=": "--tokenizer tokenizer.json, or token ids for generate: --ids",
    "template=": "--template chat_template.jinja, or causal-onnx generate",
    "example=": "--example 2,16,64, or 2,16:int64 for ids",
    "axes=": "--axes 0=batch,1=seq",
}
"""How the remedies that the library names in Python are spelled on the command line."""


def _tell(error: Exception) -> None:
    """Print `error` on one line of stderr."""
    # Only this project's errors explain themselves; of others the class is half of the message.
    known = isinstance(error, OSError | ValueError | ImportError | UsageError) or type(
        error
    ).__module__.startswith("causal_onnx.")
    text = " ".join(str(error).split()) if known else ""
    if not text:
        notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
        said = " ".join(f"{error}{notes}".split())
        text = f"{type(error).__name__}: {said}; --debug shows where"
    hints = [hint for spelling, hint in HINTS.items() if spelling in text]
    if hints:
        text = f"{text.rstrip('.')}. On the command line: {'; '.join(hints)}"
    print(f"error: {printable(text)}", file=sys.stderr)


class _library_warnings_on_stderr:  # noqa: N801 - used like a function
    """Shows what the library logs as warnings, one line each, while a command runs."""

    def __enter__(self) -> None:
        self._handler = logging.StreamHandler(sys.stderr)
        self._handler.setLevel(logging.WARNING)
        self._handler.setFormatter(logging.Formatter("warning: %(message)s"))
        logging.getLogger("causal_onnx").addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("causal_onnx").removeHandler(self._handler)


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Lets SIGTERM run what stands behind `finally`; only a main thread may say so."""

    def end(number: int, frame: object) -> NoReturn:
        raise SystemExit(TERMINATED)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
