"""Functions that a model may call: how they are shown, forced, and found in what it writes."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from causal_onnx.runtime import Constraint
from causal_onnx.runtime.text.tool_calls import HERMES, LLAMA, MARKS, ToolCall, read_calls
from causal_onnx.serve.openai.tokens import text_of
from causal_onnx.serve.requests.fields import Fields

if TYPE_CHECKING:
    from causal_onnx.runtime import Tokenizer

__all__ = ["CallReader", "Tools", "read_tools", "text_with_marks"]

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tools:
    """What a request says of tools."""

    shown: list[dict[str, Any]] | None
    """As the template takes them; None: none are shown."""
    names: frozenset[str]
    """Of those that may be called."""
    constraint: Constraint | None
    """Where a call must come: what the model may write."""
    is_parallel: bool
    """Whether several calls may come at once."""


def read_tools(fields: Fields) -> Tools:
    """Read `tools`, `tool_choice` and `parallel_tool_calls`.

    A call that must come is one JSON object, by a constraint. One that may come is found in the
    text, in the form in which the template shows calls.

    Raises:
        BadRequestError: One does not fit.
    """
    given = fields.list("tools")
    is_parallel = fields.flag("parallel_tool_calls", default=True)
    choice = fields.any("tool_choice")
    if not given:
        if choice not in (None, "none", "auto"):
            raise fields.error("tool_choice", f"asks for a tool, and there are none: {choice!r}")
        return Tools(shown=None, names=frozenset(), constraint=None, is_parallel=is_parallel)
    parameters: dict[str, dict[str, Any]] = {}
    strict = []
    for place, tool in enumerate(given):
        name, schema, is_strict = _tool(fields, tool, f"tools[{place}].")
        if name in parameters:
            raise fields.error("tools", f"name {name!r} twice")
        parameters[name] = schema
        strict += [name] if is_strict else []
    wanted = _wanted(fields, choice, list(parameters))
    if wanted is None and strict and choice != "none":
        raise fields.error(
            "tools",
            f"ask for strict arguments of {strict[0]!r}, which are kept to where a call must come: "
            "say tool_choice='required', or name the function",
        )
    if choice == "none":
        return Tools(shown=None, names=frozenset(), constraint=None, is_parallel=is_parallel)
    return Tools(
        shown=given,
        names=frozenset(parameters if wanted is None else wanted),
        constraint=None if wanted is None else _constraint(wanted, parameters),
        is_parallel=is_parallel,
    )


def _tool(fields: Fields, tool: object, where: str) -> tuple[str, dict[str, Any], bool]:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        raise fields.error("tools", "must be a list of objects with type 'function'")
    outer = Fields(tool, where=where)
    outer.any("type")
    inner = Fields(outer.object("function") or {}, where=f"{where}function.")
    outer.end({})
    name = inner.required_text("name")
    if not NAME.fullmatch(name):
        raise inner.error("name", f"must be letters, digits, '_', '.' or '-', got {name[:80]!r}")
    inner.text("description")
    is_strict = inner.flag("strict")
    schema = inner.object("parameters") or {"type": "object"}
    inner.end({})
    return name, schema, is_strict


def _wanted(fields: Fields, choice: object, names: Sequence[str]) -> list[str] | None:
    """The functions of which one must be called; None: none must."""
    if choice in (None, "auto", "none"):
        return None
    if choice == "required":
        return list(names)
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    # Compared as a whole, because other fields would ask for something that is not done.
    whole = {"type": "function", "function": {"name": name}}
    if choice != whole or name not in names:
        raise fields.error(
            "tool_choice",
            "must be 'none', 'auto', 'required', or {'type': 'function', 'function': {'name': "
            f"...}}}} with one of {', '.join(names)}; got {str(choice)[:80]}",
        )
    return [str(name)]


def _constraint(names: Sequence[str], parameters: dict[str, dict[str, Any]]) -> Constraint:
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "arguments": parameters[name]},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for name in names
    ]
    return Constraint.json_schema(calls[0] if len(calls) == 1 else {"anyOf": calls})


def text_with_marks(pieces: Sequence[tuple[int, str]], tokenizer: Tokenizer | None) -> str:
    """A text of ids and what each added to it, with the marks of calls that are special tokens.

    Texts leave special tokens out, so a mark is one that added nothing.
    """
    marks = MARKS.values()

    def written(token: int, text: str) -> str:
        name = "" if text else text_of(token, tokenizer)
        return name if name in marks else text

    return "".join(written(token, text) for token, text in pieces)


class CallReader:
    """Finds calls in a text that comes piece by piece, and holds back what may be one."""

    def __init__(self, tools: Tools, form: str | None) -> None:
        """Begin with nothing.

        Args:
            tools: What may be called.
            form: How the model writes calls, one of the runtime's `FORMS`; None: its template does
                not show it, and both between `<tool_call>` tags and as all of the text they count.
        """
        self._tools, self._form = tools, form
        self._marks = tuple(MARKS.values()) if form is None else (MARKS[form],)
        self._is_bare = form in (LLAMA, None)
        """Whether calls may come without a mark, as all of the text."""
        self._held = ""
        self._has_given = False

    def push(self, text: str) -> str:
        """What of the text is certainly no call.

        Args:
            text: The next piece, with the marks of calls written out where they are special tokens.
        """
        if not self._tools.names:  # there is nothing to call
            return text
        self._held += text
        start = self._held.lstrip()
        may_be_bare = self._is_bare and not self._has_given and (not start or start[0] in "{[")
        if self._tools.constraint is not None or may_be_bare:
            return ""
        place = min(_place_of(mark, self._held) for mark in self._marks)
        given, self._held = self._held[:place], self._held[place:]
        self._has_given = self._has_given or bool(given)
        return given

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls, as `tool_calls` has them.

        What is begun as a call and is none, or one of a function that was not shown, is text.
        """
        held, self._held = self._held, ""
        form = self._form
        if self._tools.constraint is not None:
            form = LLAMA  # the object alone, as it was constrained
        elif form is None:
            form = HERMES if MARKS[HERMES] in held else LLAMA
        try:
            content, calls = read_calls(held, form, self._tools.names)
        except ValueError:
            return held, []
        if not calls or any(call.name not in self._tools.names for call in calls):
            return held, []
        return content, [_written(call) for call in calls]


def _written(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(dict(call.arguments), ensure_ascii=False)
    return {
        "id": call.id or f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }


def _place_of(mark: str, text: str) -> int:
    """Where a mark begins, or may begin at the end of the text; else the text's length."""
    place = text.find(mark)
    if place >= 0:
        return place
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return len(text) - next((size for size in sizes if text.endswith(mark[:size])), 0)
