"""Continue a text with a language model, as it is written; needs no PyTorch.

It prints the continuation, without the prompt. The file must have a KV cache. A model with an
encoder reads a source, and writes a text of its own. Text needs a tokenizer.json, beside the file
or named by --tokenizer, and the extra `text`; without one, pass --ids, and ids are printed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import CommandError, UsageError
from causal_onnx.cli.options import (
    adapters_of,
    add_adapter_argument,
    add_device_arguments,
    add_draft_arguments,
    add_model_argument,
    add_prepared_argument,
    add_sampling_arguments,
    add_trusted_argument,
    sampling_of,
)

if TYPE_CHECKING:
    from causal_onnx.runtime import Constraint, DraftHeads, Model, PromptLookup
    from causal_onnx.runtime.generation.source import Source

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx generate model.onnx --prompt "Once upon a time" --max-new-tokens 100
  causal-onnx generate model.onnx --prompt-file - --temperature 0.8 --top-p 0.95 --seed 1 < text
  causal-onnx generate model.onnx --ids 5,3,8 --json
  causal-onnx generate model.onnx --prompt "A person: " --json-schema person.json
  causal-onnx generate t5/ --source "translate English to German: Good morning"
  causal-onnx generate vlm/ --input image=features.npy --prompt "<image><image> What is this?"
  causal-onnx generate whisper/ --input input_features=features.npy --prompt "<|en|><|transcribe|>"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_argument(parser)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", metavar="TEXT", help="the text to continue")
    prompt.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="a file that holds the text; - reads stdin"
    )
    prompt.add_argument("--ids", metavar="N,N,...", help="the token ids to continue")
    parser.add_argument("--source", metavar="TEXT", help="the text that a model's encoder reads")
    parser.add_argument(
        "--source-file", type=Path, metavar="FILE", help="a file that holds it; - reads stdin"
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="the .npy file of what else the model takes, such as features of sound, or embeddings "
        "for the first positions of the prompt (repeatable)",
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="PATH", help="a tokenizer.json, or the folder of one"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="tokens at most (default: 1024, or what the context has left)",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="a text that ends the continuation (repeatable)",
    )
    parser.add_argument(
        "--stop-id",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="a token id that ends the continuation (repeatable)",
    )
    add_sampling_arguments(parser, default="always the most likely token")
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument(
        "--json-schema", type=Path, metavar="FILE", help="write JSON that this schema allows"
    )
    shape.add_argument("--regex", metavar="PATTERN", help="write what this pattern matches")
    shape.add_argument("--lark", type=Path, metavar="FILE", help="write what this grammar allows")
    add_draft_arguments(parser, heads=True)
    add_adapter_argument(parser)
    add_device_arguments(parser)
    add_prepared_argument(parser)
    add_trusted_argument(parser)
    parser.add_argument(
        "--json", action="store_true", help="print ids, log-probabilities and text as JSON"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Continue the prompt, writing each piece as it comes."""
    from causal_onnx.cli.arrays import read_named
    from causal_onnx.runtime import Sampling, load

    prompt, source = _read_prompt(args), _read_source(args)
    given = dict(read_named(text) for text in args.input)
    constraint = _constraint(args)
    model = load(
        args.model,
        device=args.device,
        threads=args.threads,
        tokenizer=args.tokenizer,
        trusted=args.trusted,
        prepared=args.prepared,
        adapters=adapters_of(args),
    )
    inputs: dict[str, Source] = {**given, **_source_of(model, source)}
    sampling = sampling_of(args, model.greedy if inputs else Sampling())
    stop = [*args.stop, *args.stop_id]
    draft = _draft(args)
    if args.json:
        found = model.generate(
            prompt,
            max_new_tokens=args.max_new_tokens,
            sampling=sampling,
            stop=stop,
            seed=args.seed,
            constraint=constraint,
            draft=draft,
            inputs=inputs,
            adapter=args.adapter,
        )
        console.json(
            {
                "text": found.text,
                "ids": list(found.ids),
                "logprobs": list(found.logprobs),
                "finish": found.finish,
                "speculation": found.speculation and asdict(found.speculation),
                "device": model.device,
            }
        )
        return 0
    choices = model.tokens(
        prompt,
        max_new_tokens=args.max_new_tokens,
        sampling=sampling,
        stop=stop,
        seed=args.seed,
        constraint=constraint,
        draft=draft,
        inputs=inputs,
        adapter=args.adapter,
    )
    for place, choice in enumerate(choices):
        if choice.text is not None:
            console.write(choice.text)
        else:
            console.write(f"{',' if place else ''}{choice.id}")
    console.print()
    return 0


def _read_prompt(args: argparse.Namespace) -> str | list[int] | None:
    if args.prompt is not None:
        return str(args.prompt)
    if args.prompt_file is not None:
        return _read_text(args.prompt_file)
    if args.ids is None:
        if args.source is None and args.source_file is None and not args.input:
            raise UsageError("one of --prompt, --prompt-file, --ids and --source is required")
        return None
    try:
        return [int(item) for item in args.ids.split(",")]
    except ValueError as error:
        raise UsageError(f"--ids takes numbers such as 5,3,8, got {args.ids!r}") from error


def _read_source(args: argparse.Namespace) -> str | None:
    if args.source is not None and args.source_file is not None:
        raise UsageError("--source and --source-file do not go together")
    if args.source_file is None:
        return None if args.source is None else str(args.source)
    if str(args.source_file) == "-" and str(args.prompt_file) == "-":
        raise UsageError("--source-file and --prompt-file cannot both read stdin")
    return _read_text(args.source_file)


def _read_text(path: Path) -> str:
    return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")


def _source_of(model: Model, source: str | None) -> dict[str, str]:
    """The source text, by the name of the input that takes it."""
    from causal_onnx.runtime.generation.source import text_input

    if source is None:
        return {}
    spec = text_input(model.contract)
    if spec is None:
        takes = "; ".join(spec.describe() for spec in model.contract.without_cache().inputs)
        raise CommandError(
            f"{model.runner.artifact.name} reads no source text; it takes {takes}. Give an input "
            "as --input NAME=FILE.npy"
        )
    return {spec.name: source}


def _constraint(args: argparse.Namespace) -> Constraint | None:
    from causal_onnx.runtime import Constraint

    if args.json_schema is not None:
        return Constraint.json_schema(args.json_schema.read_text(encoding="utf-8"))
    if args.regex is not None:
        return Constraint.regex(args.regex)
    if args.lark is not None:
        return Constraint.lark(args.lark.read_text(encoding="utf-8"))
    return None


def _draft(args: argparse.Namespace) -> PromptLookup | DraftHeads | Model | None:
    from causal_onnx.runtime import DraftHeads, PromptLookup, load

    if args.draft is not None:
        return load(args.draft, device=args.device, threads=args.threads)
    if args.heads:
        return DraftHeads()
    return PromptLookup() if args.lookup else None
