"""Judge whether any ONNX file is causal: a proof from its graph, and a check by running it.

Exit code 0: causal. 1: not causal, as a run showed. 2: undecided, or wrong usage. 3: an error,
which says nothing about the file. With --strict, 1 also for what is causal but not proved for every
length, or not prefix-stable. Of several files the worst counts: an error, then not causal, then
undecided.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_onnx.cli.annotations import (
    Annotation,
    Level,
    github_commands,
    github_commands_off,
    github_summary,
)
from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import CommandError, UsageError, did_you_mean
from causal_onnx.cli.options import parse_axes, parse_lengths

if TYPE_CHECKING:
    from causal_onnx.export.proof.certificate import Certificate

__all__ = ["EPILOG", "FAILED", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx attest model.onnx
  causal-onnx attest other.onnx --axes x:0=batch,1=seq --lengths 1,2,7,16
  causal-onnx attest --github models/*.onnx
"""

FAILED = 3
"""An error is no verdict."""

EXIT_CODES = {"causal": 0, "not_causal": 1, "undecided": 2}
WORST_FIRST = (FAILED, 1, 2, 0)

AXES = ("batch", "seq", "past_seq", "total_seq")
"""The names with a meaning; any other is a free axis."""

LFS_POINTER = b"version https://git-lfs.github.com/"
"""How a file begins that Git LFS has not fetched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """One file, and what was found: a certificate, or why there is none."""

    path: Path
    certificate: Certificate | None = None
    error: Exception | None = None
    is_strict: bool = False

    @property
    def shortcomings(self) -> tuple[str, ...]:
        """What --strict does not accept."""
        found = self.certificate
        return (
            found.shortcomings if self.is_strict and found is not None and found.is_causal else ()
        )

    @property
    def exit_code(self) -> int:
        if self.certificate is None:
            return FAILED
        return 1 if self.shortcomings else EXIT_CODES[self.certificate.verdict]

    def to_dict(self) -> dict[str, Any]:
        if self.certificate is not None:
            return self.certificate.to_dict()
        return {"error": {"type": type(self.error).__name__, "message": str(self.error)}}

    def annotation(self) -> Annotation:
        """The finding as a line of a table, and of a job's log."""
        found = self.certificate
        if found is None:
            return Annotation(
                path=str(self.path), level="error", title="error", text=str(self.error)
            )
        level: Level = (
            "notice" if not self.exit_code else "warning" if self.exit_code == 2 else "error"
        )
        where = "" if found.offence is None else str(found.offence)
        text = "; ".join((found.reason, *self.shortcomings))
        title = found.verdict.replace("_", " ")
        if self.shortcomings:
            title += ", but not strictly"
        return Annotation(path=str(self.path), level=level, title=title, text=text, where=where)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "models",
        type=Path,
        nargs="+",
        metavar="MODEL",
        help="an .onnx file of any origin, or the folder of a model",
    )
    parser.add_argument(
        "--axes",
        action="append",
        default=[],
        metavar="INPUT:AXIS=NAME,...",
        help="the axes of an input: batch, seq, past_seq, total_seq, or a name of your own for an "
        "axis of something else (repeatable; default: as the file says)",
    )
    parser.add_argument(
        "--lengths", metavar="N,N,...", help="sequence lengths at which every element is followed"
    )
    parser.add_argument("--static", action="store_true", help="skip the check that runs the file")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="also fail (exit code 1) if the proof is not for every length, or if early "
        "outputs change as the sequence grows",
    )
    parser.add_argument(
        "--github",
        action="store_true",
        help="annotate the files in a GitHub Actions job, and write its summary",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the certificate as JSON; for several files, an object of them by path",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Attest, and print the certificates."""
    if args.json and args.github:
        raise UsageError("--json and --github both write to stdout; choose one")
    axes = dict(_input_axes(text) for text in args.axes)
    for label in {label for named in axes.values() for label in named.values()} - {*AXES}:
        if meant := did_you_mean(label, AXES, likeness=0.8):
            console.note(f"--axes: {label} is taken for an axis of something else{meant}")
    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    try:
        from causal_onnx.export.attestation import attest
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("causal_onnx"):
            raise
        raise CommandError(
            f"attest needs onnx, onnx-ir and onnxruntime ({error.name} is missing): "
            "pip install 'causal-onnx[attest]'"
        ) from error

    def judge(path: Path) -> _Judged:
        if not path.exists():
            raise CommandError(f"there is no file {path}")
        if path.is_file() and _begins_with(path, LFS_POINTER):
            raise CommandError(f"{path} is a pointer of Git LFS, not the model: git lfs pull")
        with console.progress() as tell:
            try:
                certificate = attest(
                    path,
                    axes=axes or None,
                    lengths=lengths,
                    dynamic=not args.static,
                    progress=lambda stage, done, total: tell(stage, done / max(total, 1)),
                )
            except FileNotFoundError as error:
                raise CommandError(
                    f"{path} keeps weights in a file that is not there: {error.filename}. Put it "
                    "beside the model, under this name"
                ) from error
        return _Judged(path=path, certificate=certificate, is_strict=args.strict)

    if len(args.models) == 1 and not args.github:
        judged = [judge(args.models[0])]
    else:
        judged = []
        for path in args.models:
            try:
                judged.append(judge(path))
            # An error of one file is a finding among the others, and fails the whole.
            except Exception as error:
                if getattr(args, "debug", False):
                    raise
                judged.append(_Judged(path=path, error=error))
    with github_commands_off() if args.github else contextlib.nullcontext():
        _show(judged, args, console)
    if args.github:
        _annotate(judged)
    for one in judged:
        for text in one.shortcomings:
            console.note(f"strict: {text}")
    return min((one.exit_code for one in judged), key=WORST_FIRST.index)


def _show(judged: list[_Judged], args: argparse.Namespace, console: Console) -> None:
    if args.json:
        several = {str(one.path): one.to_dict() for one in judged}
        console.json(judged[0].to_dict() if len(judged) == 1 else several)
        return
    for one in judged:
        if len(judged) > 1:
            console.heading(str(one.path))
        console.print(f"error: {one.error}" if one.certificate is None else str(one.certificate))


def _annotate(judged: list[_Judged]) -> None:
    notes = [one.annotation() for one in judged]
    for line in github_commands(notes):
        print(line)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(github_summary(notes))


def _begins_with(path: Path, prefix: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(prefix)) == prefix


def _input_axes(text: str) -> tuple[str, dict[int, str]]:
    name, colon, axes = text.partition(":")
    if not colon or not name:
        raise UsageError(f"--axes takes INPUT:0=batch,1=seq here, got {text!r}")
    return name, parse_axes(axes)
