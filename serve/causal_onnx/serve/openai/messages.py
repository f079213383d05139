"""The messages of a chat, as its template takes them."""

from __future__ import annotations

from typing import Any

from causal_onnx.runtime.generation.chat import PromptWriter
from causal_onnx.runtime.json_text import read_json
from causal_onnx.runtime.text.chat_template import plain_message
from causal_onnx.serve.errors import BadRequestError
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.requests.fields import Fields

__all__ = ["read_messages", "read_part", "writer_of"]

ROLES = ("system", "developer", "user", "assistant", "tool")

LISTS = ("tool_calls", "annotations")

UNSUPPORTED = {
    "audio": "messages are texts",
    "function_call": "use tool_calls",
    "annotations": "messages are texts",
}


def writer_of(
    served: ServedModel,
    *,
    tools: list[dict[str, Any]] | None = None,
    documents: list[Any] | None = None,
    variables: dict[str, Any] | None = None,
) -> PromptWriter:
    """What writes conversations as prompts.

    Raises:
        BadRequestError: The model has no chat template.
    """
    if served.template is None or served.tokenizer is None:
        raise BadRequestError(
            f"the model {served.name!r} has no chat template; use /v1/completions instead",
            param="model",
        )
    return PromptWriter(
        served.tokenizer, served.template, tools=tools, documents=documents, variables=variables
    )


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """The messages.

    Raises:
        BadRequestError: There are none, or one is no message.
    """
    given = fields.list("messages")
    if not given:
        raise fields.error("messages", "must be a list of at least one message")
    return [_message(item, f"messages[{place}].") for place, item in enumerate(given)]


def _message(given: object, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise BadRequestError(f"{where[:-1]} must be an object, got {str(given)[:60]!r}")
    # Clients send back what they got, with empty lists for what there is none of.
    fields = Fields(
        {name: value for name, value in given.items() if name not in LISTS or value != []},
        where=where,
    )
    role = fields.choice("role", *ROLES)
    if role is None:
        raise fields.error("role", f"must be one of {', '.join(ROLES)}")
    found: dict[str, Any] = {"role": "system" if role == "developer" else role}
    content = fields.any("content")
    if isinstance(content, list):
        found["content"] = [
            read_part(part, f"{where}content[{i}].") for i, part in enumerate(content)
        ]
    elif content is None or isinstance(content, str):
        found["content"] = content or ""
    else:
        raise fields.error("content", "must be a string, or a list of parts")
    for name in ("name", "tool_call_id", "reasoning_content", "refusal"):
        value = fields.text(name)
        if value is not None:
            found[name] = value
    calls = fields.list("tool_calls")
    if calls is not None:
        if role != "assistant":
            raise fields.error("tool_calls", "are the assistant's")
        found["tool_calls"] = [
            _call(call, f"{where}tool_calls[{place}].") for place, call in enumerate(calls)
        ]
    fields.end(UNSUPPORTED)
    return plain_message(found)


def read_part(given: object, where: str) -> dict[str, str]:
    """A part of a content, which must be a text.

    Raises:
        BadRequestError: It is something else.
    """
    if not isinstance(given, dict):
        raise BadRequestError(f"{where[:-1]} must be an object, got {str(given)[:60]!r}")
    fields = Fields(given, where=where)
    kind = fields.any("type")
    if kind != "text":
        raise fields.error("type", f"must be 'text', this server takes texts alone; got {kind!r}")
    text = fields.required_text("text")
    fields.end({})
    return {"type": "text", "text": text}


def _call(given: object, where: str) -> dict[str, Any]:
    """A call that the assistant made: templates want its arguments as data, clients send a text."""
    if not isinstance(given, dict):
        raise BadRequestError(f"{where[:-1]} must be an object, got {str(given)[:60]!r}")
    fields = Fields(given, where=where)
    fields.choice("type", "function")
    fields.any("index")
    found: dict[str, Any] = {"type": "function"}
    identity = fields.text("id")
    if identity is not None:
        found["id"] = identity
    function = Fields(fields.object("function") or {}, where=f"{where}function.")
    fields.end({})
    name, text = function.required_text("name"), function.text("arguments") or "{}"
    function.end({})
    try:
        arguments = read_json(text)
    except ValueError:
        arguments = text  # what a model wrote need not be JSON
    found["function"] = {"name": name, "arguments": arguments}
    return found
