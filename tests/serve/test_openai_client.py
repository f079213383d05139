"""OpenAI's own client, blocking and not, against a server with a trained model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

openai = pytest.importorskip("openai", reason="the client that judges the server")
pytest.importorskip("llguidance", reason="constraints need the extra `text`")

MODELS = ["stories", "chatty", "talker", "language", "small", "decoder"]
HELLO = [{"role": "user", "content": "Once upon a time"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "maxLength": 5}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Tim", "Lily"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [item.id for item in client.models.list()] == MODELS
    assert client.models.retrieve("chatty").owned_by == "causal-onnx"


def test_a_completion_streams_what_it_gives_at_once(client: openai.OpenAI) -> None:
    asked = {"model": "stories", "prompt": "Once upon", "max_tokens": 30, "seed": 5, "n": 2}
    whole = client.completions.create(**asked, temperature=1)
    texts = ["", ""]
    for event in client.completions.create(**asked, temperature=1, stream=True):
        texts[event.choices[0].index] += event.choices[0].text
    assert [choice.text for choice in whole.choices] == texts
    assert texts[0] != texts[1]


def test_prompts_of_all_kinds_are_answered_in_order(client: openai.OpenAI) -> None:
    texts = ["Once upon", "One day, "]
    asked = {"model": "stories", "max_tokens": 10, "temperature": 0}
    by_text = client.completions.create(prompt=texts, **asked)
    alone = [client.completions.create(prompt=text, **asked).choices[0].text for text in texts]
    ids = [
        client.post("/../tokenize", body={"model": "stories", "prompt": text}, cast_to=object)
        for text in texts
    ]
    by_ids = client.completions.create(prompt=[found["tokens"] for found in ids], **asked)
    assert [choice.text for choice in by_text.choices] == alone
    assert [choice.text for choice in by_ids.choices] == alone
    assert [choice.index for choice in by_text.choices] == [0, 1]


def test_echo_and_logprobs_score_a_prompt(client: openai.OpenAI) -> None:
    asked = {"model": "stories", "prompt": "Once upon a time", "echo": True, "logprobs": 2}
    (found,) = client.completions.create(**asked, max_tokens=0).choices
    (more,) = client.completions.create(**asked, max_tokens=3, temperature=0).choices
    scores = found.logprobs
    assert (found.text, found.finish_reason) == ("Once upon a time", "length")
    assert scores.token_logprobs[0] is None
    assert "".join(scores.tokens) == "<s> Once upon a time"
    assert all(
        token in top for token, top in zip(scores.tokens[1:], scores.top_logprobs[1:], strict=True)
    )
    assert more.logprobs.token_logprobs[:18] == scores.token_logprobs
    assert len(more.logprobs.tokens) == 21


def test_a_stop_text_ends_a_completion(client: openai.OpenAI) -> None:
    asked = {"model": "stories", "prompt": "Once upon a time", "max_tokens": 30, "temperature": 0}
    (found,) = client.completions.create(**asked, stop=["little"]).choices
    assert (found.text, found.finish_reason) == (", there was a ", "stop")


def test_a_bias_forbids_a_token(client: openai.OpenAI) -> None:
    asked = {"model": "language", "prompt": [5, 3], "max_tokens": 1, "temperature": 0}
    (first,) = client.completions.create(**asked).choices[0].token_ids
    (other,) = client.completions.create(**asked, logit_bias={first: -100}).choices[0].token_ids
    assert first != other


def test_a_chat_is_answered_as_the_library_answers(client: openai.OpenAI, chatty) -> None:
    from causal_onnx.runtime import load

    asked = {"model": "chatty", "messages": HELLO, "max_completion_tokens": 20, "temperature": 0}
    found = client.chat.completions.create(**asked)
    expected = load(chatty, threads=1).chat(HELLO, max_new_tokens=20)
    assert found.choices[0].message.content == expected.text
    assert (found.choices[0].finish_reason, found.choices[0].message.role) == (
        "length",
        "assistant",
    )


def test_a_chat_streams_with_role_finish_and_usage(client: openai.OpenAI) -> None:
    asked = {"model": "chatty", "messages": HELLO, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    events = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    first, *middle, last, usage = events
    assert first.choices[0].delta.role == "assistant"
    text = "".join(event.choices[0].delta.content for event in middle)
    assert text == whole.choices[0].message.content
    assert (last.choices[0].finish_reason, last.choices[0].delta.content) == ("length", None)
    assert (usage.choices, usage.usage) == ([], whole.usage) or (
        usage.usage.completion_tokens == whole.usage.completion_tokens
    )


def test_log_probabilities_of_a_chat_name_the_tokens(client: openai.OpenAI) -> None:
    asked = {"model": "chatty", "messages": HELLO, "max_tokens": 8, "temperature": 0}
    (found,) = client.chat.completions.create(**asked, logprobs=True, top_logprobs=3).choices
    tokens = found.logprobs.content
    assert "".join(token.token for token in tokens).lstrip() == found.message.content.lstrip()
    assert all(token.top_logprobs[0].token == token.token for token in tokens)
    assert bytes(tokens[0].bytes).decode() == tokens[0].token


def test_json_comes_by_its_schema(client: openai.OpenAI) -> None:
    asked = {"model": "talker", "messages": HELLO, "max_tokens": 60, "n": 3, "seed": 1}
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    found = client.chat.completions.create(**asked, temperature=1, response_format=schema)
    for choice in found.choices:
        assert choice.finish_reason == "stop"
        data = json.loads(choice.message.content)
        assert data["name"] in ("Tim", "Lily")
        assert isinstance(data["old"], bool)


def test_a_pydantic_class_is_parsed(client: openai.OpenAI) -> None:
    from typing import Literal

    from pydantic import BaseModel

    class Answer(BaseModel):
        word: Literal["yes", "no"]

    found = client.chat.completions.parse(
        model="talker", messages=HELLO, response_format=Answer, max_tokens=40
    )
    assert found.choices[0].message.parsed.word in ("yes", "no")


def test_a_schema_that_cannot_be_kept_to_is_refused(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"x": {"$ref": "http://example.org/s"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="the JSON schema cannot be used"):
        client.chat.completions.create(model="talker", messages=HELLO, response_format=wanted)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_that_must_come_comes(client: openai.OpenAI, choice) -> None:
    asked = {"model": "talker", "messages": HELLO, "tools": [TOOL], "max_tokens": 80}
    (found,) = client.chat.completions.create(**asked, tool_choice=choice).choices
    (call,) = found.message.tool_calls
    assert (found.finish_reason, found.message.content) == ("tool_calls", None)
    assert call.function.name == "weather"
    assert set(json.loads(call.function.arguments)) == {"place"}


def test_a_call_streams_as_a_delta(client: openai.OpenAI) -> None:
    asked = {"model": "talker", "messages": HELLO, "tools": [TOOL], "max_tokens": 80}
    events = list(client.chat.completions.create(**asked, tool_choice="required", stream=True))
    (call,) = [c for e in events for c in e.choices[0].delta.tool_calls or []]
    assert (call.index, call.function.name) == (0, "weather")
    assert not any(event.choices[0].delta.content for event in events)
    assert events[-1].choices[0].finish_reason == "tool_calls"


def test_a_conversation_with_a_tools_result_goes_on(client: openai.OpenAI) -> None:
    asked = {"model": "talker", "tools": [TOOL], "max_tokens": 80, "tool_choice": "required"}
    message = client.chat.completions.create(messages=HELLO, **asked).choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}
    messages = [*HELLO, message.model_dump(), result]
    found = client.chat.completions.create(model="talker", messages=messages, max_tokens=5)
    assert found.usage.completion_tokens == 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"messages": []}, "messages must be a list of at least one message"),
        ({"messages": [{"role": "king", "content": "x"}]}, r"messages\[0\].role must be 'system'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r"messages\[0\].content\[0\].type must be 'text'",
        ),
        ({"top_logprobs": 3}, "top_logprobs needs logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be a whole number from 0"),
        ({"response_format": {"type": "yaml"}}, "response_format.type must be 'text' or"),
        ({"tool_choice": "required"}, "tool_choice asks for a tool, and there are none"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice must be 'none', 'auto'"),
        (
            {
                "tools": [TOOL],
                "tool_choice": "required",
                "response_format": {"type": "json_object"},
            },
            "exclude each other",
        ),
        ({"extra_body": {"unheard_of": 1}}, "unheard_of is not supported"),
        ({"reasoning_effort": "low"}, "reasoning_effort is not supported"),
        (
            {"extra_body": {"max_token": 3}},
            r"max_token is .* did you mean max_tokens\?",
        ),
        ({"model": "stories"}, "the model 'stories' has no chat template"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens is 3, and"),
    ],
)
def test_what_does_not_fit_a_chat_is_refused(client: openai.OpenAI, changed, message: str) -> None:
    asked = {"model": "chatty", "messages": HELLO, **changed}
    with pytest.raises(openai.BadRequestError, match=message):
        client.chat.completions.create(**asked)


def test_many_chats_at_once_from_an_event_loop(address: str) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            asked = {"model": "chatty", "messages": HELLO, "max_tokens": 20, "temperature": 1}
            begun = [client.chat.completions.create(**asked, seed=i % 4) for i in range(12)]
            return [found.choices[0].message.content for found in await asyncio.gather(*begun)]

    texts = asyncio.run(ask())
    assert texts[:4] == texts[4:8] == texts[8:]
    assert len(set(texts)) > 1


def test_unknown_models_and_paths_are_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'"):
        client.chat.completions.create(model="gpt", messages=HELLO)
    with pytest.raises(openai.NotFoundError, match="there is no GET /v1/files here"):
        client.files.list()
