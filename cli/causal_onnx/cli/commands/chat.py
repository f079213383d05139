"""Talk with a language model, turn by turn; needs no PyTorch.

The model's folder must hold a tokenizer and a chat template, as an export of a chat model does. It
needs the extra `text`. If the input is not a terminal, each line is a turn. The conversation stays
in the model's cache, so that each turn prefills only what is new.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from causal_onnx.cli.console import Console
from causal_onnx.cli.options import (
    adapters_of,
    add_adapter_argument,
    add_device_arguments,
    add_model_argument,
    add_prepared_argument,
    add_sampling_arguments,
    add_trusted_argument,
    sampling_of,
)

if TYPE_CHECKING:
    from causal_onnx.runtime import Chat

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
in a chat:
  /reset       start a new conversation
  /save FILE   write the conversation as JSON
  /help        show these
  /quit        end the chat, like the end of the input
  Ctrl-C       stop an answer; twice in a row, end the chat

examples:
  causal-onnx chat model/
  causal-onnx chat model/ --system "Answer in one sentence." --temperature 0.7 --seed 1
  echo "Why is the sky blue?" | causal-onnx chat model/ --max-new-tokens 200
"""

COMMANDS = "\n".join(EPILOG.splitlines()[1:6])

ENDINGS = {
    "length": "(ended by --max-new-tokens)",
    "limit": "(the model's context is full; /reset starts a new conversation)",
}
"""What is said of a reply that the model did not end itself."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_argument(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system message before all others")
    parser.add_argument(
        "--template",
        type=Path,
        metavar="FILE",
        help="a chat template in jinja2's language (default: the one in the model's folder)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="a tokenizer.json, or the folder of one"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="tokens of a reply at most (default: 1024, or what the context has left)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text that ends a reply (repeatable)",
    )
    add_sampling_arguments(parser, default="as generation_config.json says")
    add_adapter_argument(parser)
    add_device_arguments(parser)
    add_prepared_argument(parser)
    add_trusted_argument(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Reply to each turn until the input ends."""
    from causal_onnx.runtime import Chat, load

    template = None if args.template is None else args.template.read_text(encoding="utf-8")
    model = load(
        args.model,
        device=args.device,
        threads=args.threads,
        tokenizer=args.tokenizer,
        trusted=args.trusted,
        prepared=args.prepared,
        adapters=adapters_of(args),
    )
    talk = Chat(
        model,
        system=args.system,
        template=template,
        max_new_tokens=args.max_new_tokens,
        sampling=sampling_of(args, model.default_sampling),
        stop=args.stop,
        seed=args.seed,
        adapter=args.adapter,
    )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        while line := sys.stdin.readline():
            if line.strip() and not _turn(line.strip(), talk, console):
                break
        return 0
    console.note(f"{args.model} on {model.device}; /help lists commands, Ctrl-C stops an answer")
    _converse(talk, console)
    return 0


def _converse(talk: Chat, console: Console) -> None:
    """Ask for turns at a terminal."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - lines can be edited, and come back by the arrow keys

    interrupts = 0
    while interrupts < 2:
        try:
            line = input("> ").strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            interrupts += 1
            console.print()
            if interrupts < 2:
                console.note("(Ctrl-C again ends the chat, like /quit)")
            continue
        interrupts = 0
        try:
            if line and not _turn(line, talk, console):
                return
        except KeyboardInterrupt:
            talk.interrupt()
            interrupts = 1
            console.print()
            console.note("(stopped)")
        except (ValueError, OSError) as error:
            console.note(f"error: {error}")


def _turn(line: str, talk: Chat, console: Console) -> bool:
    """Do what a line asks for; whether the chat goes on."""
    command, _, argument = line.partition(" ")
    if not command.startswith("/"):
        _answer(line, talk, console)
    elif command == "/quit":
        return False
    elif command == "/reset":
        talk.reset()
        console.note("(a new conversation)")
    elif command == "/save" and argument.strip():
        _save(talk, Path(argument.strip()).expanduser(), console)
    elif command == "/help":
        console.note(COMMANDS)
    elif command == "/save":
        raise ValueError("/save takes the name of a file: /save conversation.json")
    else:
        raise ValueError(f"there is no command {command}; /help lists them")
    return True


def _answer(text: str, talk: Chat, console: Console) -> None:
    """Write a reply as it comes."""
    try:
        pieces = talk.stream(text)
    except ValueError as error:
        raise ValueError(f"{error}; /reset starts a new conversation") from error
    for piece in pieces:
        console.write(piece)
    console.print()
    finish = "" if talk.reply is None else talk.reply.finish
    if finish in ENDINGS:
        console.note(ENDINGS[finish])


def _save(talk: Chat, path: Path, console: Console) -> None:
    from causal_onnx.runtime.artifact.drafts import write_whole

    text = json.dumps(talk.messages, ensure_ascii=False, indent=2) + "\n"
    write_whole(path, text.encode("utf-8"))
    console.note(f"({len(talk.messages)} messages in {path})")
