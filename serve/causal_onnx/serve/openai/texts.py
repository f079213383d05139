"""Texts to ids and back, and conversations to prompts: `/tokenize`, `/detokenize` and others.

Two servers have these paths, and other fields: llama.cpp `content`, vLLM `prompt` or `messages`.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from causal_onnx.runtime import Tokenizer
from causal_onnx.serve.errors import BadRequestError
from causal_onnx.serve.openai.answers import answer
from causal_onnx.serve.openai.messages import read_messages, writer_of
from causal_onnx.serve.openai.tokens import text_of
from causal_onnx.serve.openai.tools import read_tools
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.requests.fields import Fields
from causal_onnx.serve.requests.running import prepare_aside, read_request
from causal_onnx.serve.service import Service

__all__ = ["apply_template", "detokenize", "tokenize"]


async def tokenize(request: Request) -> Response:
    """The ids of a text, or of a conversation."""
    service, fields = await read_request(request)
    served = _model(service, fields)
    tokenizer = _tokenizer(served)
    content = fields.text("content")
    if content is not None:
        special, pieces = fields.flag("add_special"), fields.flag("with_pieces")
        fields.end({"parse_special": "special tokens that are written out always become ids"})
        ids = await prepare_aside(lambda: tokenizer.encode(content, add_special_tokens=special))
        if pieces:
            return answer({"tokens": [{"id": i, "piece": text_of(i, tokenizer)} for i in ids]})
        return answer({"tokens": ids})
    prompt = fields.text("prompt")
    with_texts = fields.flag("return_token_strs")
    if prompt is not None:
        special = fields.flag("add_special_tokens", default=True)
        fields.end({})
        ids = await prepare_aside(lambda: tokenizer.encode(prompt, add_special_tokens=special))
    else:
        writer, messages = _conversation(served, fields)
        ids = await prepare_aside(lambda: writer.ids(messages))
    found: dict[str, Any] = {"count": len(ids), "tokens": ids}
    if served.engine is not None:
        found["max_model_len"] = served.engine.context
    if with_texts:
        found["token_strs"] = [text_of(token, tokenizer) for token in ids]
    return answer(found)


async def detokenize(request: Request) -> Response:
    """The text of ids, under both names."""
    service, fields = await read_request(request)
    tokenizer = _tokenizer(_model(service, fields))
    ids = fields.list("tokens")
    if ids is None or not all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids):
        raise fields.error("tokens", f"must be a list of ids below {tokenizer.vocab_size}")
    fields.end({})
    text = await prepare_aside(lambda: tokenizer.decode(ids))
    return answer({"prompt": text, "content": text})


async def apply_template(request: Request) -> Response:
    """A conversation as the model reads it."""
    service, fields = await read_request(request)
    writer, messages = _conversation(_model(service, fields), fields)
    return answer({"prompt": await prepare_aside(lambda: writer.text(messages))})


def _conversation(served: ServedModel, fields: Fields) -> tuple[Any, list[dict[str, Any]]]:
    tools, messages = read_tools(fields), read_messages(fields)
    writer = writer_of(
        served,
        tools=tools.shown,
        documents=fields.list("documents"),
        variables=fields.object("chat_template_kwargs"),
    )
    fields.end({})
    return writer, messages


def _model(service: Service, fields: Fields) -> ServedModel:
    """The named model; where it is left out, as llama.cpp's clients do, the only one of texts."""
    name = fields.text("model")
    if name is not None:
        return service.models.find(name)
    with_texts = [served for served in service.models.values() if served.tokenizer is not None]
    if len(with_texts) != 1:
        raise fields.error("model", f"is needed: one of {', '.join(service.models)}")
    return with_texts[0]


def _tokenizer(served: ServedModel) -> Tokenizer:
    if served.tokenizer is None:
        raise BadRequestError(f"{served.name} has no tokenizer on this server", param="model")
    return served.tokenizer
