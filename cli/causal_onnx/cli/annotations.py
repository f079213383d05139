"""Findings about files, as a job of GitHub Actions shows them.

Source: docs.github.com, "Workflow commands for GitHub Actions" (annotations, their escaping, job
summaries).
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Annotation", "Level", "github_commands", "github_commands_off", "github_summary"]


Level = Literal["notice", "warning", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """One finding about one file."""

    path: str
    level: Level
    title: str
    text: str
    where: str = ""
    """The node that it is about; empty: the whole file."""


def github_commands(annotations: Iterable[Annotation]) -> list[str]:
    """The lines that make GitHub show each finding beside its file."""
    return [
        f"::{one.level} file={_property(one.path)},title={_property(one.title)}::"
        f"{_data(_with_place(one))}"
        for one in annotations
    ]


@contextlib.contextmanager
def github_commands_off() -> Iterator[None]:
    """While it lasts, nothing that is printed is a command: names come from untrusted files."""
    token = secrets.token_hex(16)
    print(f"::stop-commands::{token}")
    try:
        yield
    finally:
        print(f"::{token}::")


def github_summary(annotations: Iterable[Annotation]) -> str:
    """A table in Markdown: file, verdict, why, node."""
    rows = [
        f"| {_cell(one.path)} | {_cell(one.title)} | {_cell(one.text)} | {_cell(one.where)} |"
        for one in annotations
    ]
    head = ["### causal-onnx attest", "", "| file | verdict | why | node |", "|---|---|---|---|"]
    return "\n".join([*head, *rows, "", ""])


def _with_place(one: Annotation) -> str:
    """The text and the node, which the text may name already: then where the node comes from."""
    node, bracket, place = one.where.partition(" (")
    if node and node in one.text:
        return one.text + bracket + place
    return f"{one.text}: {one.where}" if one.where else one.text


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _cell(text: str) -> str:
    """Text that neither ends its cell nor is read as markup."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace("`", "&#96;")
    return " ".join(safe.replace("|", "\\|").split())
