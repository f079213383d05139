"""Find the functions that a model calls in what it wrote, in the form that its template shows it.

Sources: the chat templates of Hermes 2 Pro and Qwen 2.5, of Llama 3.1, and of Mistral 7B v0.3 and
Mistral Small 3.1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causal_onnx.runtime.json_text import MAX_DEPTH, depth_of

__all__ = ["FORMS", "HERMES", "LLAMA", "MARKS", "ToolCall", "form_of", "names_of", "read_calls"]

HERMES, LLAMA, MISTRAL = "hermes", "llama3", "mistral"

FORMS: Mapping[str, str] = {
    HERMES: '<tool_call>{"name": ..., "arguments": {...}}</tool_call>',
    LLAMA: '{"name": ..., "parameters": {...}}',
    MISTRAL: '[TOOL_CALLS] [{"name": ..., "arguments": {...}}]',
}
"""Name -> how a call is written."""

OPEN, CLOSE, THOUGHT = "<tool_call>", "</tool_call>", "</think>"
LIST, ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
TAG = "<|python_tag|>"

MARKS: Mapping[str, str] = {HERMES: OPEN, LLAMA: TAG, MISTRAL: LIST}
"""Name -> what stands before a call; Llama 3.1 writes calls without it, too."""

_END = re.compile(r"(\s|<[^<>\s]*>)*")
"""What may stand behind the last call: special tokens that end a reply."""
_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"\s*([\w.-]+)\s*")

_decoder = json.JSONDecoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolCall:
    """A function that a model calls."""

    name: str
    arguments: Mapping[str, Any]
    """By name, as JSON has them; whether they fit the function's schema is not checked."""
    id: str | None = None
    """As the model wrote it; most write none."""


def form_of(template: str) -> str | None:
    """In which of `FORMS` a model writes calls; None where its template shows another.

    Args:
        template: The chat template that shows the tools, in jinja2's language.
    """
    if LIST in template:
        return MISTRAL
    if OPEN in template and "<function=" not in template:  # Qwen3-Coder writes XML inside
        return HERMES
    if TAG in template and '"parameters"' in template:
        return LLAMA
    return None


def names_of(tools: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """The names of functions, each as a JSON schema, or wrapped as `{"function": {...}}`."""
    inner = (tool.get("function", tool) for tool in tools)
    return frozenset(
        str(tool["name"]) for tool in inner if isinstance(tool, Mapping) and "name" in tool
    )


def read_calls(text: str, form: str, names: Collection[str]) -> tuple[str, tuple[ToolCall, ...]]:
    """The text before the calls in a reply, and the calls.

    Args:
        text: What the model wrote, special tokens included.
        form: One of `FORMS`.
        names: Of the functions that may be called. Llama 3.1 marks calls by nothing: an object
            that names none of these is no call.

    Raises:
        ValueError: A call is begun, and is not complete or not of the form.
    """
    if form == LLAMA:
        return _bare(text, names)
    marker = OPEN if form == HERMES else LIST
    # What a reasoning model only thinks of calling, it does not call.
    start = text.find(marker, text.rfind(THOUGHT) + 1)
    if start < 0:
        return text, ()
    calls = _tagged(text, start) if form == HERMES else _listed(text, start)
    return text[:start].rstrip(), tuple(calls)


def _tagged(text: str, start: int) -> Iterator[ToolCall]:
    """Hermes: each call in tags of its own."""
    while True:
        value, end = _object(text, start + len(OPEN))
        yield _call(value)
        end = _skip(text, end)
        if text.startswith(CLOSE, end):
            end = _skip(text, end + len(CLOSE))
        if not text.startswith(OPEN, end):
            _refuse_rest(text, end)
            return
        start = end


def _listed(text: str, start: int) -> Iterator[ToolCall]:
    """Mistral: a list of all calls, or, in later models, a name and arguments behind each mark."""
    while True:
        place = _skip(text, start + len(LIST))
        if text.startswith("[", place):
            value, end = _object(text, place)
            for item in value:
                yield _call(item)
        else:
            name = _NAME.match(text, place)
            if name is None:
                raise ValueError(f"no function is named at {text[place : place + 40]!r}")
            end = name.end()
            end += len(ARGUMENTS) if text.startswith(ARGUMENTS, end) else 0
            value, end = _object(text, end)
            yield _call({"name": name[1], "arguments": value})
        end = _skip(text, end)
        if not text.startswith(LIST, end):
            _refuse_rest(text, end)
            return
        start = end


def _bare(text: str, names: Collection[str]) -> tuple[str, tuple[ToolCall, ...]]:
    """Llama 3.1: the reply is the object, a list of them, or several with ";" between them."""
    is_marked = text.lstrip().startswith(TAG)
    place = _skip(text, text.index(TAG) + len(TAG) if is_marked else 0)
    if not text.startswith(("{", "["), place):
        return text, ()
    calls: list[ToolCall] = []
    while True:
        try:
            value, end = _object(text, place)
            calls += [_call(item) for item in (value if isinstance(value, list) else [value])]
        except ValueError:
            if calls or is_marked or any(f'"{name}"' in text for name in names):
                raise
            return text, ()
        if not calls or any(call.name not in names for call in calls):
            return text, ()
        end = _skip(text, end)
        if not text.startswith(";", end):
            _refuse_rest(text, end)
            return "", tuple(calls)
        place = _skip(text, end + 1)


def _skip(text: str, place: int) -> int:
    """The first place from here on that is no white space."""
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def _object(text: str, place: int) -> tuple[Any, int]:
    """The JSON value at a place, and where it ends."""
    place = _skip(text, place)
    try:
        value, end = _decoder.raw_decode(text, place)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"a call is no JSON: {error}") from error
    if depth_of(value) > MAX_DEPTH:
        raise ValueError(f"a call is nested more than {MAX_DEPTH} deep")
    return value, end


def _call(value: object) -> ToolCall:
    given = value if isinstance(value, dict) else {}
    name = given.get("name")
    arguments = given.get("arguments", given.get("parameters", {}))
    if isinstance(arguments, str):  # some write the object as a text
        arguments, _ = _object(arguments, 0)
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        raise ValueError(f"a call has a name and an object of arguments, got {str(value)[:80]}")
    own = given.get("id")
    return ToolCall(name=name, arguments=arguments, id=own if isinstance(own, str) else None)


def _refuse_rest(text: str, end: int) -> None:
    if _END.fullmatch(text, end) is None:
        raise ValueError(f"something follows the last call: {text[end : end + 40]!r}")
