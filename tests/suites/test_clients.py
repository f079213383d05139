"""Libraries by which applications talk to models: litellm and langchain-openai."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from causal_onnx.runtime import load

MESSAGES = [{"role": "user", "content": "Tell me a story."}]
PERSON = {
    "title": "person",
    "description": "Somebody.",
    "type": "object",
    "properties": {"name": {"enum": ["Ann", "Bo"]}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

    litellm.telemetry = False
    return litellm


@pytest.fixture(scope="module")
def expected(stories: Path) -> str:
    """What the model writes in process."""
    return load(stories, threads=1).generate("Once upon a time", max_new_tokens=30).text


def test_litellm_completes_a_text(litellm: Any, address: str, expected: str) -> None:
    answer = litellm.text_completion(
        model="text-completion-openai/stories",
        prompt="Once upon a time",
        max_tokens=30,
        temperature=0,
        api_base=f"{address}/v1",
        api_key="none",
    )
    assert answer.choices[0].text == expected
    assert answer.usage.completion_tokens == 30


def test_litellm_streams_a_chat_as_it_answers_it_whole(litellm: Any, address: str) -> None:
    options = {
        "model": "openai/chatty",
        "messages": MESSAGES,
        "max_tokens": 40,
        "temperature": 0,
        "api_base": f"{address}/v1",
        "api_key": "none",
    }
    whole = litellm.completion(**options)
    pieces = list(
        litellm.completion(**options, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(item.choices[0].delta.content or "" for item in pieces if item.choices)
    assert text == whole.choices[0].message.content
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_litellm_says_what_the_server_refuses(litellm: Any, address: str) -> None:
    with pytest.raises(litellm.BadRequestError, match="top_p"):
        litellm.completion(
            model="openai/chatty",
            messages=MESSAGES,
            top_p=2,
            api_base=f"{address}/v1",
            api_key="none",
        )
    with pytest.raises(litellm.NotFoundError, match="no model"):
        litellm.completion(
            model="openai/none", messages=MESSAGES, api_base=f"{address}/v1", api_key="none"
        )


def chat(address: str, model: str, **more: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(base_url=f"{address}/v1", api_key="none", model=model, max_retries=0, **more)


def test_langchain_streams_a_chat_as_it_answers_it_whole(address: str) -> None:
    found = chat(address, "chatty", max_tokens=40, temperature=0)
    whole = found.invoke("Tell me a story.")
    assert "".join(piece.content for piece in found.stream("Tell me a story.")) == whole.content
    assert whole.usage_metadata["output_tokens"] == 40


def test_langchain_gets_what_a_schema_says(address: str) -> None:
    found = chat(address, "talker").with_structured_output(PERSON, method="json_schema")
    answer = found.invoke("Who?")
    assert answer["name"] in ("Ann", "Bo")
    assert isinstance(answer["old"], bool)


def test_langchain_calls_a_tool(address: str) -> None:
    tool = {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bonn", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    found = chat(address, "talker").bind_tools([tool], tool_choice="weather")
    (call,) = found.invoke("How is the weather?").tool_calls
    assert (call["name"], call["args"]["city"] in ("Bonn", "Rome")) == ("weather", True)


def test_langchain_completes_many_texts(address: str, expected: str) -> None:
    from langchain_openai import OpenAI

    found = OpenAI(
        base_url=f"{address}/v1", api_key="none", model="stories", max_tokens=30, temperature=0
    )
    prompts = ["Once upon a time"] * 3
    assert [item[0].text for item in found.generate(prompts).generations] == [expected] * 3
