"""Read JSON from untrusted files: bounded in size and depth, with numbers that fit."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

from causal_onnx.runtime.errors import ArtifactError

__all__ = [
    "MAX_DEPTH",
    "depth_of",
    "read_json",
    "read_json_file",
    "read_json_object",
    "read_optional_json_object",
]

MAX_BYTES = 64 << 20
"""As much as a file's whole metadata may hold."""

MAX_DEPTH = 64
"""Objects and arrays in one another. What is written here is 6 deep; schemas of people, 20."""

MAX_ITEMS = 1 << 20
"""Commas and opening brackets, those in texts included: each is an object of Python's of about 60
bytes. A tokenizer's configuration with 100,000 entries has 500,000."""


def read_json(text: str | bytes, *, max_bytes: int = MAX_BYTES, wide_integers: bool = False) -> Any:
    """Parse JSON that somebody else wrote.

    Args:
        text: The JSON; bytes are UTF-8.
        max_bytes: How long it may be.
        wide_integers: Give an integer of more than 64 bits as the nearest float.

    Raises:
        ValueError: It is no JSON, too long, too deep, holds too much, or has a number that is not
            finite, or an integer of more than 64 bits without `wide_integers`.
    """
    if len(text) > max_bytes:
        raise ValueError(f"it is longer than {max_bytes} bytes")
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    items = text.count(",") + text.count("[") + text.count("{")
    if items > MAX_ITEMS:
        raise ValueError(f"it holds more than {MAX_ITEMS} values")
    try:
        data = json.loads(
            text,
            parse_int=_wide if wide_integers else _integer,
            parse_float=_float,
            parse_constant=_constant,
        )
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    if depth_of(data) > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
    return data


def read_json_file(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Any:
    """Parse a configuration file, of which no more than `max_bytes` are read.

    Hugging Face writes 10^30 for "no limit" (`model_max_length`), which comes as a float.

    Raises:
        OSError: It cannot be read.
        ValueError: As for `read_json`.
    """
    with Path(path).open("rb") as file:
        return read_json(file.read(max_bytes + 1), max_bytes=max_bytes, wide_integers=True)


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a configuration file that holds one object, as those of Hugging Face do.

    Raises:
        OSError: It cannot be read.
        ArtifactError: It is no JSON, or holds something else.
    """
    try:
        document = read_json_file(path)
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ArtifactError(f"{path} must hold a JSON object, got {type(document).__name__}")
    return document


def read_optional_json_object(path: Path) -> dict[str, Any]:
    """As `read_json_object`; empty where there is no file.

    Raises:
        OSError: It cannot be read.
        ArtifactError: It is no JSON, or holds something else.
    """
    return read_json_object(path) if path.is_file() else {}


def depth_of(data: object) -> int:
    """How many objects and arrays are in one another."""
    depth, level = 0, [data]
    while level := [item for item in level if isinstance(item, dict | list | tuple)]:
        depth += 1
        if depth > 2000:  # one that holds itself has no end
            return depth
        level = [
            inner for item in level for inner in (item.values() if isinstance(item, dict) else item)
        ]
    return depth


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 20 else 1 << 64
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"the number {text[:30]} takes more than 64 bits")
    return value


def _wide(text: str) -> int | float:
    value = int(text) if len(text) <= 20 else 1 << 64
    return value if -(1 << 63) <= value < 1 << 64 else _float(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:30]} is not finite")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON's")
