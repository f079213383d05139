"""Functions that a model may call: how they are shown, forced, and found in what it writes."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from causal_onnx.runtime import Constraint
from causal_onnx.runtime.json_text import read_json
from causal_onnx.serve.requests.fields import Fields

__all__ = ["CallReader", "Tools", "read_tools"]

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

OPEN, CLOSE = "<tool_call>", "</tool_call>"
"""Around a call, as Hermes, Qwen and others write it."""


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
    text: between `<tool_call>` tags, or as JSON that is all of the text.

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


class CallReader:
    """Finds calls in a text that comes piece by piece, and holds back what may be one."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._is_quiet = not tools.names
        """Whether nothing is held back, as there is nothing to call."""
        self._held = ""
        self._has_given = False

    def push(self, text: str) -> str:
        """What of the text is certainly no call."""
        if self._is_quiet:
            return text
        self._held += text
        start = self._held.lstrip()
        if self._tools.constraint is not None or (
            not self._has_given and (not start or start[0] in "{[")
        ):
            return ""
        place = self._held.find(OPEN)
        if place < 0:
            place = len(self._held) - _overlap(self._held, OPEN)
        given, self._held = self._held[:place], self._held[place:]
        self._has_given = self._has_given or bool(given)
        return given

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls, as `tool_calls` has them."""
        held, self._held = self._held, ""
        if OPEN in held:
            calls, rest = self._tagged(held)
        else:
            calls, rest = self._parsed(held), ""
        return ("", calls) if calls and not rest.strip() else (rest if calls else held, calls)

    def _tagged(self, text: str) -> tuple[list[dict[str, Any]], str]:
        """The calls between tags, and what else there is."""
        before, *parts = text.split(OPEN)
        calls, rest = [], [before]
        for part in parts:
            inside, _, behind = part.partition(CLOSE)
            found = self._parsed(inside)
            calls += found
            rest += [behind] if found else [OPEN + part]
        return calls, "".join(rest)

    def _parsed(self, text: str) -> list[dict[str, Any]]:
        """The calls that a text is, as a whole; none where it is something else."""
        try:
            data = read_json(text.strip()) if text.strip() else None
        except ValueError:
            return []
        items = data if isinstance(data, list) else [data]
        found = []
        for item in items:
            if not isinstance(item, dict) or item.get("name") not in self._tools.names:
                return []
            arguments = item.get("arguments", item.get("parameters"))
            if not isinstance(arguments, dict):
                return []
            found.append(_call(str(item["name"]), arguments))
        return found


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)},
    }


def _overlap(text: str, mark: str) -> int:
    """How much of the end of a text may be the beginning of a mark."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(mark[:size])), 0)
