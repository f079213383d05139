"""Read the command line, run one command, and turn what it raises into one line and an exit code.

argparse and not a framework, because these commands must work where only numpy and onnxruntime are
installed. For the same reason every command imports what it needs when it runs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from causal_onnx.cli.console import Console, printable
from causal_onnx.cli.errors import UsageError
from causal_onnx.cli.parser import build_parser

__all__ = ["main"]

DONE, FAILED, WRONG_USAGE, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


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
    console = Console()
    words = sys.argv[1:] if argv is None else list(argv)
    as_json = "--json" in words
    try:
        args = build_parser().parse_args(words)
    except SystemExit as exit_:  # argparse has printed its help
        return int(exit_.code or 0)
    except UsageError as error:
        return _failed(error, WRONG_USAGE, console, as_json=as_json)
    debug = getattr(args, "debug", False)
    with _library_warnings_on_stderr(), _ending_in_order():
        try:
            code: int = args.run(args, console)
            sys.stdout.flush()
        except UsageError as error:
            return _failed(error, WRONG_USAGE, console, as_json=as_json)
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
            return _failed(error, int(args.failed), console, as_json=as_json)
    return code


SPELLED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"\b(\w+)=True \((--[\w-]+)\)", r"\2"),  # the library has named both
    (r"\bload the model with cast=True", "convert it with --cast"),
    (r"\b(trusted|cast|replace|cache)=True", r"--\1"),
    (r"\btrust_remote_code=True", "--trust-remote-code"),
    (
        r"\bwrite_bundle\('([^']+)', '([^']+)', device='(\w+)'\)",
        r"causal-onnx bundle \1 -o \2 --device \3",
    ),
    (r"\bpath='([^']+)'", r"-o \1"),
    (r"\badapter='([^']*)'", r"--adapter '\1'"),
    (r"\b(precision|target|device)='([\w:]+)'", r"--\1 \2"),
    (r"\bkeep=(?=$|[\s.])", "--keep PATTERN=PRECISION"),
    (r"\btemplate=Path\('([^']+)'\)\.read_text\(\)", r"--template \1"),
    (
        r"^(sequences|context|chunk|queue|prefix_positions|temperature|top_k|top_p|min_p"
        r"|repetition_penalty|max_new_tokens|seed|threads)(?= must be )",
        lambda found: f"--{found[1].replace('_', '-')}",
    ),
    (r"^drain_s(?= must be )", "--drain"),
    (r"\bmodel\.generate\b", "causal-onnx generate"),
    (r"\bwithout prepared\b", "without --prepared"),
    (r"\bload\(path, tokenizer='tokenizer\.json'\)", "--tokenizer tokenizer.json"),
    (
        r"\bisolated_trial=TrialLimits\((\w+)=\.\.\.\)",
        lambda found: f"--{found[1].replace('_', '-')}",
    ),
    (r"\bexport\(module, path, example=torch\.randn\(2, 8, embed_dim\)\)", "--example 2,8,WIDTH"),
    (r"\bexport\(module, path, example=torch\.randint\(\d+, \(2, 8\)\)\)", "--example 2,8:int64"),
    (r"\bexample=torch\.zeros\(\((\d+), (\d+)\), dtype=torch\.int64\)", r"--example \1,\2:int64"),
    (r"\baxes=\[\{0: 'batch', 1: 'seq'\}\]", "--axes 0=batch,1=seq"),
    (r"\baxes=\{'(\w+)': \{1: 'seq'\}\}", r"--axes \1:1=seq"),
)
"""How the remedies that the library names in Python are spelled on the command line."""


def _failed(error: Exception, code: int, console: Console, *, as_json: bool) -> int:
    """Say what went wrong on stderr, and with `--json` on stdout, unless a result is there."""
    message = printable(_message(error))
    if as_json and not console.has_json:
        kind = type(error).__name__
        console.json({"error": {"type": kind, "message": message}, "exit_code": code})
    console.note(f"error: {message}")
    return code


def _message(error: Exception) -> str:
    """What `error` says, on one line, with remedies as the command line spells them."""
    # Only this project's errors explain themselves; of others the class is half of the message.
    known = isinstance(error, OSError | ValueError | ImportError | UsageError) or type(
        error
    ).__module__.startswith("causal_onnx.")
    said = str(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        said = f"{error.filename}: {error.strerror}"
    text = " ".join(said.split()) if known else ""
    if not text:
        notes = "".join(f", {note}" for note in getattr(error, "__notes__", ()))
        said = " ".join(f"{error}{notes}".split())
        text = f"{type(error).__name__}: {said}; --debug shows where"
    for python, spelled in SPELLED:
        text = re.sub(python, spelled, text)
    return text


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
