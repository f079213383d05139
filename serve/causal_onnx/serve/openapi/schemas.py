"""JSON schemas, and the parts of an OpenAPI document that are made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

__all__ = [
    "Schema",
    "array",
    "described",
    "either",
    "event_of",
    "integer",
    "json_answer",
    "nullable",
    "number",
    "object_of",
    "of_type",
    "operation",
    "path_parameter",
    "text",
]

Schema = dict[str, Any]


def of_type(name: str, **more: Any) -> Schema:
    """A value of one JSON type."""
    return {"type": name, **more}


def text(choices: Collection[str] = (), **more: Any) -> Schema:
    """A text, or one of some texts."""
    return of_type("string", **({"enum": [*choices]} if choices else {}), **more)


def integer(least: int | None = None, most: int | None = None) -> Schema:
    """A whole number in a range."""
    return of_type("integer", **_range(least, most))


def number(least: float | None = None, most: float | None = None) -> Schema:
    """A number in a range."""
    return of_type("number", **_range(least, most))


def _range(least: float | None, most: float | None) -> Schema:
    bounds = {"minimum": least, "maximum": most}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def array(items: Schema, **more: Any) -> Schema:
    """A list of values of one kind."""
    return of_type("array", items=items, **more)


def object_of(
    properties: Mapping[str, Schema],
    *,
    required: Collection[str] | None = None,
    is_open: bool = False,
) -> Schema:
    """An object.

    Args:
        properties: Its fields.
        required: Those that are always there; None: all.
        is_open: Whether it may have others.
    """
    found = of_type("object", properties=dict(properties))
    names = [*properties] if required is None else [*required]
    if names:
        found["required"] = names
    if not is_open:
        found["additionalProperties"] = False
    return found


def either(*schemas: Schema) -> Schema:
    """A value of one of several kinds."""
    return {"anyOf": [*schemas]}


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    kind = schema.get("type")
    if isinstance(kind, str) and "enum" not in schema:
        return {**schema, "type": [kind, "null"]}
    return either(schema, of_type("null"))


def described(schema: Schema, description: str) -> Schema:
    """A schema with a sentence for its reader."""
    return {**schema, "description": description}


def json_answer(schema: Schema, description: str) -> Schema:
    """An answer that is JSON."""
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def path_parameter(name: str, schema: Schema) -> Schema:
    """A part of a path."""
    return {"name": name, "in": "path", "required": True, "schema": schema}


def event_of(description: str) -> Schema:
    """An event of a stream."""
    return object_of({"data": described(text(), description)}, is_open=True)


def operation(
    name: str,
    summary: str,
    *,
    answers: Mapping[int, Schema],
    errors: Mapping[int, Schema],
    body: Schema | None = None,
    body_is_required: bool = True,
    parameters: Sequence[Schema] = (),
    is_open: bool = False,
) -> Schema:
    """What one method of a path does.

    Args:
        name: Its `operationId`.
        summary: A sentence.
        answers: Status -> answer, where it went well.
        errors: Status -> answer, where it did not.
        body: The schema of a JSON body.
        body_is_required: Whether there must be one.
        parameters: Of the path.
        is_open: Whether it never needs a key.
    """
    found: Schema = {
        "operationId": name,
        "summary": summary,
        "responses": {
            str(status): answer
            for status, answer in sorted({**errors, **answers}.items(), key=lambda pair: pair[0])
        },
    }
    if parameters:
        found["parameters"] = [*parameters]
    if body is not None:
        found["requestBody"] = {
            "required": body_is_required,
            "content": {"application/json": {"schema": body}},
        }
    if is_open:
        found["security"] = []
    return found
