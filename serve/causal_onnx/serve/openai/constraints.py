"""What an answer must be: `response_format`, and `structured_outputs` as vLLM has it."""

from __future__ import annotations

import re
from typing import Any

from causal_onnx.runtime import Constraint
from causal_onnx.serve.requests.fields import Fields

__all__ = ["read_constraint"]

KINDS = ("json", "regex", "grammar", "choice")


def read_constraint(fields: Fields) -> Constraint | None:
    """The constraint that a request asks for; None where it asks for none.

    It is compiled later, and what cannot be compiled is an error: no answer comes without it.

    Raises:
        BadRequestError: It cannot be read, or there are two.
    """
    by_format, structured = _response_format(fields), _structured(fields)
    if by_format is not None and structured is not None:
        raise fields.error("structured_outputs", "and response_format cannot both be given")
    return by_format or structured


def _response_format(fields: Fields) -> Constraint | None:
    given = fields.object("response_format")
    if given is None:
        return None
    inner = Fields(given, where="response_format.")
    kind = inner.choice("type", "text", "json_object", "json_schema")
    if kind is None:
        raise inner.error("type", "is needed: 'text', 'json_object' or 'json_schema'")
    constraint = None
    if kind == "json_object":
        constraint = Constraint.json_schema({"type": "object"})
    elif kind == "json_schema":
        constraint = Constraint.json_schema(_schema(inner))
    inner.end({})
    return constraint


def _schema(inner: Fields) -> dict[str, Any]:
    """In `json_schema`, or, as some clients write it, beside the type."""
    given = inner.object("json_schema")
    schema = inner.object("schema")
    if given is not None:
        if schema is not None:
            raise inner.error("schema", "stands in json_schema already")
        named = Fields(given, where="response_format.json_schema.")
        named.text("name")
        named.text("description")
        named.flag("strict")  # it is kept to in any case
        schema = named.object("schema")
        named.end({})
    if schema is None:
        raise inner.error("json_schema", "is needed, with a schema in it")
    return schema


def _structured(fields: Fields) -> Constraint | None:
    given = fields.object("structured_outputs")
    if given is None:
        return None
    inner = Fields(given, where="structured_outputs.")
    found: list[Constraint] = []
    schema = inner.any("json")
    if schema is not None:
        if not isinstance(schema, dict | str):
            raise inner.error("json", "must be a JSON schema, as an object or a string")
        found.append(Constraint.json_schema(schema))
    regex, grammar, choice = inner.text("regex"), inner.text("grammar"), inner.list("choice")
    if regex is not None:
        found.append(Constraint.regex(regex))
    if grammar is not None:
        found.append(Constraint.lark(grammar))
    if choice is not None:
        if not choice or not all(isinstance(item, str) and item for item in choice):
            raise inner.error("choice", "must be a list of texts that are not empty")
        found.append(Constraint.regex("|".join(f"({re.escape(item)})" for item in choice)))
    inner.end({})
    if len(found) != 1:
        raise fields.error("structured_outputs", f"must hold one of {', '.join(KINDS)}")
    return found[0]
