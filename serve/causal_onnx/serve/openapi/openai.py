"""OpenAI's endpoints, described: the same limits as those by which requests are read."""

from __future__ import annotations

from typing import Any

from causal_onnx.serve.openai import chat, completions, tools
from causal_onnx.serve.openai.embeddings import hidden_states
from causal_onnx.serve.openai.messages import ROLES
from causal_onnx.serve.openapi.schemas import (
    Schema,
    array,
    described,
    either,
    event_of,
    integer,
    json_answer,
    nullable,
    number,
    object_of,
    of_type,
    operation,
    path_parameter,
    text,
)
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.requests import sampling
from causal_onnx.serve.service import Service

__all__ = ["choosing_schemas", "id_schema", "paths"]

BOOL = of_type("boolean")
ANY_OBJECT = of_type("object")
ID = integer(0)

ERROR = object_of(
    {
        "error": object_of(
            {
                "message": text(),
                "type": text(),
                "param": nullable(text()),
                "code": nullable(text()),
            }
        )
    }
)
ERRORS = {
    400: "A field is not known, not supported, or has a value that cannot be taken.",
    401: "A key is needed.",
    404: "There is no such model or path.",
    413: "The body is too long.",
    429: "The queue is full, or a limit of the key is reached.",
    503: "The server ends, or the model has failed.",
}

USAGE = object_of(
    {
        "prompt_tokens": ID,
        "completion_tokens": ID,
        "total_tokens": ID,
        "prompt_tokens_details": object_of({"cached_tokens": ID}),
        "completion_tokens_details": described(
            object_of({"accepted_prediction_tokens": ID, "rejected_prediction_tokens": ID}),
            "Where the request has a prediction.",
        ),
    },
    required=["prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details"],
)
FINISH = nullable(text(["stop", "length", "tool_calls"]))
CALL = object_of(
    {
        "id": text(),
        "type": text(["function"]),
        "function": object_of({"name": text(), "arguments": text()}),
    }
)
NAMED = {
    "token": text(),
    "logprob": number(most=0),
    "bytes": nullable(array(integer(0, 255))),
}
CHAT_LOGPROBS = object_of(
    {
        "content": array(object_of({**NAMED, "top_logprobs": array(object_of(NAMED))})),
        "refusal": of_type("null"),
    }
)
COMPLETION_LOGPROBS = object_of(
    {
        "tokens": array(text()),
        "token_logprobs": array(nullable(number(most=0))),
        "top_logprobs": array(
            nullable(of_type("object", additionalProperties=nullable(number(most=0))))
        ),
        "text_offset": array(ID),
    }
)
MODEL = object_of(
    {
        "id": text(),
        "object": text(["model"]),
        "created": ID,
        "owned_by": text(),
        "max_model_len": integer(1),
        "parent": text(),
    },
    required=["id", "object", "created", "owned_by"],
)


def paths(service: Service) -> dict[str, Schema]:
    """All paths of this protocol, for the models that are served now."""
    models = list(service.models.values())
    speaking = [item for item in models if item.engine is not None]
    chatting = [item for item in speaking if item.template is not None]
    embedding = [item for item in models if hidden_states(item.contract) is not None]
    with_texts = [item for item in models if item.tokenizer is not None]
    errors = {status: json_answer(ERROR, why) for status, why in ERRORS.items()}
    name = path_parameter("name", _model(models))

    def post(named: str, summary: str, body: Schema, answer: Schema) -> Schema:
        answers = {200: answer}
        return {"post": operation(named, summary, answers=answers, errors=errors, body=body)}

    return {
        "/v1/models": {
            "get": operation(
                "listModels",
                "The models that are served.",
                answers={
                    200: json_answer(
                        object_of({"object": text(["list"]), "data": array(MODEL)}), "All of them."
                    )
                },
                errors=_only(errors, 401, 429),
            )
        },
        "/v1/models/{name}": {
            "get": operation(
                "retrieveModel",
                "One of the models.",
                answers={200: json_answer(MODEL, "The model.")},
                errors=_only(errors, 401, 404, 429),
                parameters=[name],
            )
        },
        "/v1/completions": post(
            "createCompletion",
            "Continue texts or ids.",
            _completion(service, speaking),
            _events(json_answer(_completion_answer(), "The continuations.")),
        ),
        "/v1/chat/completions": post(
            "createChatCompletion",
            "Reply to a conversation.",
            _chat(chatting),
            _events(json_answer(_chat_answer(), "The replies.")),
        ),
        "/v1/embeddings": post(
            "createEmbedding",
            "The hidden state after the last token, of length 1.",
            _embedding(service, embedding),
            json_answer(_embedding_answer(), "One embedding a text."),
        ),
        "/tokenize": post(
            "tokenize",
            "The ids of a text or of a conversation.",
            _tokenize(with_texts, chatting),
            json_answer(_tokenize_answer(), "The ids."),
        ),
        "/detokenize": post(
            "detokenize",
            "The text of ids.",
            object_of(
                {
                    "model": nullable(_model(with_texts)),
                    "tokens": array(_id_of_tokenizer(with_texts)),
                },
                required=["tokens"],
            ),
            json_answer(object_of({"prompt": text(), "content": text()}), "The text, twice."),
        ),
        "/apply-template": post(
            "applyTemplate",
            "A conversation as the model reads it.",
            object_of(
                {"model": nullable(_model(chatting)), **_conversation()}, required=["messages"]
            ),
            json_answer(object_of({"prompt": text()}), "The prompt."),
        ),
    }


def id_schema(speaking: list[ServedModel]) -> Schema:
    """The ids that some model continues; each refuses those that are not its own."""
    vocabs = [item.engine.vocab_size for item in speaking if item.engine is not None]
    return integer(0, max(vocabs) - 1 if vocabs else None)


def choosing_schemas() -> dict[str, Schema]:
    """The fields by which `read_choosing` knows how tokens are chosen."""
    stop = text(minLength=1, maxLength=sampling.MOST_STOP_TEXT)
    bias = of_type(
        "object",
        patternProperties={"^[0-9]{1,9}$": number(-100, 100)},
        additionalProperties=False,
        maxProperties=sampling.MOST_BIASES,
    )
    found = {
        "temperature": number(0, 100),
        "top_p": number(0, 1),
        "top_k": integer(-1, 1 << 31),
        "min_p": number(0, 1),
        "frequency_penalty": number(-2, 2),
        "presence_penalty": number(-2, 2),
        "repetition_penalty": number(0.01, 100),
        "logit_bias": bias,
        "seed": integer(-(1 << 63), (1 << 63) - 1),
        "stop": either(stop, array(stop, maxItems=sampling.MOST_STOPS)),
        "n": integer(1, 128),
        "priority": integer(1 - (1 << 31), 1 << 31),
    }
    return {name: nullable(schema) for name, schema in found.items()}


def _only(errors: dict[int, Schema], *statuses: int) -> dict[int, Schema]:
    return {status: errors[status] for status in statuses}


def _events(answer: Schema) -> Schema:
    """The same, or a stream of events."""
    streamed = event_of("With stream=true: a part of the answer; at the end [DONE].")
    return {**answer, "content": {**answer["content"], "text/event-stream": {"schema": streamed}}}


def _model(models: list[ServedModel]) -> Schema:
    return text([item.name for item in models])


def _id_of_tokenizer(models: list[ServedModel]) -> Schema:
    sizes = [item.tokenizer.vocab_size for item in models if item.tokenizer is not None]
    return integer(0, max(sizes) - 1 if sizes else None)


def _prompts(item: Schema, most: int) -> Schema:
    ids = array(item, minItems=1)
    return either(
        text(),
        ids,
        array(text(), minItems=1, maxItems=most),
        array(ids, minItems=1, maxItems=most),
    )


def _streaming() -> dict[str, Schema]:
    return {
        "stream": nullable(BOOL),
        "stream_options": described(
            nullable(object_of({"include_usage": nullable(BOOL)}, required=[])),
            "Only with stream=true.",
        ),
    }


def _constraints() -> dict[str, Schema]:
    named = object_of(
        {
            "name": nullable(text()),
            "description": nullable(text()),
            "strict": nullable(BOOL),
            "schema": ANY_OBJECT,
        },
        required=["schema"],
    )
    kind = "type"
    response_format = {
        "anyOf": [
            object_of({kind: text(["text", "json_object"])}),
            object_of({kind: text(["json_schema"]), "json_schema": named}),
            object_of({kind: text(["json_schema"]), "schema": ANY_OBJECT}),
        ]
    }
    structured = either(
        object_of({"json": either(ANY_OBJECT, text())}),
        object_of({"regex": text()}),
        object_of({"grammar": text()}),
        object_of({"choice": array(text(minLength=1), minItems=1)}),
    )
    return {
        "response_format": nullable(response_format),
        "structured_outputs": nullable(structured),
    }


def _completion(service: Service, speaking: list[ServedModel]) -> Schema:
    prompt = _prompts(id_schema(speaking), service.options.most_prompts)
    return object_of(
        {
            "model": _model(speaking),
            "prompt": prompt,
            "max_tokens": described(nullable(integer(0, 1 << 31)), "0 only with echo."),
            "logprobs": nullable(integer(0, completions.MOST_LOGPROBS)),
            "echo": nullable(BOOL),
            "best_of": described(nullable(integer(1, 128)), "The same as n."),
            "user": nullable(text()),
            "return_token_ids": nullable(BOOL),
            **choosing_schemas(),
            **_constraints(),
            **_streaming(),
        },
        required=["model", "prompt"],
    )


def _completion_answer() -> Schema:
    choice = {
        "index": ID,
        "text": text(),
        "logprobs": nullable(COMPLETION_LOGPROBS),
        "finish_reason": FINISH,
    }
    more = {"token_ids": array(ID), "prompt_token_ids": array(ID)}
    return object_of(
        {
            "id": text(),
            "object": text(["text_completion"]),
            "created": ID,
            "model": text(),
            "choices": array(object_of({**choice, **more}, required=choice)),
            "usage": USAGE,
        }
    )


PART = object_of({"type": text(["text"]), "text": text()})


def _messages() -> Schema:
    function = object_of({"name": text(), "arguments": nullable(text())}, required=["name"])
    call = object_of(
        {
            "id": nullable(text()),
            "type": nullable(text(["function"])),
            "index": {},
            "function": function,
        },
        required=["function"],
    )
    texts = ("name", "tool_call_id", "reasoning_content", "refusal")
    fields = {
        "content": nullable(either(text(), array(PART))),
        **{name: nullable(text()) for name in texts},
        "annotations": described(nullable(array({}, maxItems=0)), "Empty, as it came."),
    }
    others = [role for role in ROLES if role != "assistant"]
    return array(
        either(
            object_of(
                {
                    "role": text(others),
                    **fields,
                    "tool_calls": nullable(array({}, maxItems=0)),
                },
                required=["role"],
            ),
            object_of(
                {
                    "role": text(["assistant"]),
                    **fields,
                    "tool_calls": nullable(array(call)),
                },
                required=["role"],
            ),
        ),
        minItems=1,
    )


def _tools() -> dict[str, Schema]:
    function = object_of(
        {
            "name": text(pattern=f"^{tools.NAME.pattern}$"),
            "description": nullable(text()),
            "strict": nullable(BOOL),
            "parameters": nullable(ANY_OBJECT),
        },
        required=["name"],
    )
    named = object_of({"type": text(["function"]), "function": object_of({"name": text()})})
    return {
        "tools": nullable(array(object_of({"type": text(["function"]), "function": function}))),
        "tool_choice": nullable(either(text(["none", "auto", "required"]), named)),
        "parallel_tool_calls": nullable(BOOL),
    }


def _conversation() -> dict[str, Schema]:
    return {
        "messages": _messages(),
        **_tools(),
        "documents": nullable(of_type("array")),
        "chat_template_kwargs": nullable(ANY_OBJECT),
    }


def _chat(chatting: list[ServedModel]) -> Schema:
    constraints = _constraints()
    prediction = object_of({"type": text(["content"]), "content": either(text(), array(PART))})
    guessing = [item for item in chatting if item.engine and item.engine.no_guesses is None]
    return object_of(
        {
            "model": _model(chatting),
            **_conversation(),
            **({"prediction": nullable(prediction)} if guessing else {}),
            "max_tokens": nullable(integer(1, 1 << 31)),
            "max_completion_tokens": nullable(integer(1, 1 << 31)),
            "logprobs": nullable(BOOL),
            "top_logprobs": described(
                nullable(integer(0, chat.MOST_TOP_LOGPROBS)), "Only with logprobs=true."
            ),
            "modalities": nullable(array(text(["text"]), minItems=1, maxItems=1)),
            "store": nullable(of_type("boolean", enum=[False])),
            "user": nullable(text()),
            "safety_identifier": nullable(text()),
            "prompt_cache_key": nullable(text()),
            "metadata": nullable(ANY_OBJECT),
            "service_tier": nullable(text(["auto", "default"])),
            **choosing_schemas(),
            **constraints,
            **_streaming(),
        },
        required=["model", "messages"],
    )


def _chat_answer() -> Schema:
    message = {
        "role": text(["assistant"]),
        "content": nullable(text()),
        "refusal": of_type("null"),
        "annotations": array({}, maxItems=0),
    }
    choice = object_of(
        {
            "index": ID,
            "message": object_of({**message, "tool_calls": array(CALL)}, required=message),
            "logprobs": nullable(CHAT_LOGPROBS),
            "finish_reason": FINISH,
        }
    )
    return object_of(
        {
            "id": text(),
            "object": text(["chat.completion"]),
            "created": ID,
            "model": text(),
            "choices": array(choice),
            "usage": USAGE,
        }
    )


def _embedding(service: Service, embedding: list[ServedModel]) -> Schema:
    vocabs = [spec.vocab_size for item in embedding for spec in _ids_inputs(item)]
    item = integer(0, max(vocabs) - 1 if vocabs else None)
    return object_of(
        {
            "model": _model(embedding),
            "input": _prompts(item, service.options.most_prompts),
            "encoding_format": nullable(text(["float", "base64"])),
            "dimensions": nullable(integer(1, 1 << 31)),
            "user": nullable(text()),
        },
        required=["model", "input"],
    )


def _ids_inputs(item: ServedModel) -> list[Any]:
    found = hidden_states(item.contract)
    return [] if found is None or found[0].vocab_size is None else [found[0]]


def _embedding_answer() -> Schema:
    one = object_of(
        {
            "object": text(["embedding"]),
            "index": ID,
            "embedding": either(array(number()), text()),
        }
    )
    return object_of(
        {
            "object": text(["list"]),
            "data": array(one),
            "model": text(),
            "usage": object_of({"prompt_tokens": ID, "total_tokens": ID}),
        }
    )


def _tokenize(with_texts: list[ServedModel], chatting: list[ServedModel]) -> Schema:
    model = nullable(_model(with_texts))
    return either(
        object_of(
            {
                "model": model,
                "content": text(),
                "add_special": nullable(BOOL),
                "with_pieces": nullable(BOOL),
            },
            required=["content"],
        ),
        object_of(
            {
                "model": model,
                "prompt": text(),
                "add_special_tokens": nullable(BOOL),
                "return_token_strs": nullable(BOOL),
            },
            required=["prompt"],
        ),
        object_of(
            {
                "model": nullable(_model(chatting)),
                **_conversation(),
                "return_token_strs": nullable(BOOL),
            },
            required=["messages"],
        ),
    )


def _tokenize_answer() -> Schema:
    pieces = array(object_of({"id": ID, "piece": text()}))
    counted = {"count": ID, "tokens": array(ID)}
    return either(
        object_of({"tokens": either(array(ID), pieces)}),
        object_of(
            {**counted, "max_model_len": integer(1), "token_strs": array(text())},
            required=counted,
        ),
    )
