"""Calls of functions in what models write; needs nothing but the text."""

from __future__ import annotations

import random

import pytest

from causal_onnx.runtime.text.tool_calls import ToolCall, form_of, names_of, read_calls

NAMES = {"weather", "time"}
ROME = ToolCall(name="weather", arguments={"city": "Rome"})
IN_ROME = '{"name": "weather", "arguments": {"city": "Rome"}}'
NOW = ToolCall(name="time", arguments={})


@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        (
            "hermes",
            f"<tool_call>\n{IN_ROME}\n</tool_call><|im_end|>",
            "",
            [ROME],
        ),
        (
            "hermes",
            f"I look.\n<tool_call>\n{IN_ROME}\n</tool_call>\n"
            '<tool_call>\n{"arguments": {}, "name": "time"}\n</tool_call>',
            "I look.",
            [ROME, NOW],
        ),
        ("hermes", '<tool_call>{"name": "time", "arguments": {}}', "", [NOW]),
        ("hermes", '<tool_call>{"name": "time", "arguments": "{}"}</tool_call>', "", [NOW]),
        (
            "hermes",
            '<think><tool_call> helps</think>\n\n<tool_call>{"name": "time"}</tool_call>',
            "<think><tool_call> helps</think>",
            [NOW],
        ),
        (
            "hermes",
            '<tool_call>{"name": "weather", "arguments": {"city": "</tool_call>"}}</tool_call>',
            "",
            [ToolCall(name="weather", arguments={"city": "</tool_call>"})],
        ),
        ("llama3", '{"name": "weather", "parameters": {"city": "Rome"}}<|eom_id|>', "", [ROME]),
        ("llama3", '<|python_tag|>{"name": "time", "parameters": {}}<|eom_id|>', "", [NOW]),
        (
            "llama3",
            f'\n{IN_ROME}; {{"name": "time", "parameters":{{}}}}',
            "",
            [ROME, NOW],
        ),
        (
            "mistral",
            f'[TOOL_CALLS] [{IN_ROME[:-1]}, "id": "abc123XYZ"}}]</s>',
            "",
            [ToolCall(name="weather", arguments={"city": "Rome"}, id="abc123XYZ")],
        ),
        (
            "mistral",
            f'Both.[TOOL_CALLS][{IN_ROME}, {{"name": "time"}}]',
            "Both.",
            [ROME, NOW],
        ),
        (
            "mistral",
            '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}[TOOL_CALLS]time{}</s>',
            "",
            [ROME, NOW],
        ),
    ],
)
def test_calls_are_read(form: str, text: str, content: str, calls: list[ToolCall]) -> None:
    assert read_calls(text, form, NAMES) == (content, tuple(calls))


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", "Rome is sunny."),
        ("hermes", '{"name": "weather", "arguments": {}}'),
        ("llama3", "Rome is sunny."),
        ("llama3", '{"name": "Ada", "parameters": {}}'),
        ("llama3", '{"city": "Rome"}'),
        ("llama3", "{ is a brace"),
        ("mistral", '[{"name": "weather", "arguments": {}}]'),
    ],
)
def test_a_text_without_calls_stays(form: str, text: str) -> None:
    assert read_calls(text, form, NAMES) == (text, ())


@pytest.mark.parametrize(
    ("form", "text", "message"),
    [
        ("hermes", '<tool_call>{"name": "weather", "argum', "a call is no JSON"),
        ("hermes", '<tool_call>{"arguments": {}}</tool_call>', "has a name and an object of argum"),
        ("hermes", '<tool_call>{"name": "time", "arguments": [1]}', "an object of arguments, got"),
        ("hermes", '<tool_call>{"name": "time"}</tool_call> done', "something follows the last"),
        ("hermes", "<tool_call><function=time></function></tool_call>", "a call is no JSON"),
        ("hermes", "<tool_call>" + "[" * 5000, "a call is no JSON|nested more than"),
        ("hermes", '<tool_call>{"name": "x", "arguments": ' + '{"a":' * 70 + "1" + "}" * 71, "64"),
        ("llama3", '{"name": "weather", "parameters": {"ci', "a call is no JSON"),
        ("llama3", '{"name": "time", "parameters": {}} now', "something follows the last call"),
        ("mistral", '[TOOL_CALLS] [{"name": "weather"', "a call is no JSON"),
        ("mistral", "[TOOL_CALLS]", "no function is named"),
        ("mistral", '[TOOL_CALLS] ["weather"]', "has a name and an object"),
    ],
)
def test_a_damaged_call_is_an_error(form: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_calls(text, form, NAMES)


def test_no_text_takes_long_or_fails_otherwise() -> None:
    chooser = random.Random(0)
    parts = ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "</think>"]
    parts += ['{"name": "time"', ', "arguments": {}', "}", "[", "]", ";", " ", "time", "<|x|>"]
    for _ in range(3000):
        text = "".join(chooser.choices(parts, k=chooser.randrange(12)))
        for form in ("hermes", "llama3", "mistral"):
            try:
                content, calls = read_calls(text, form, NAMES)
            except ValueError:
                continue
            assert text.startswith(content) or not content
            assert all(call.name for call in calls)


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "mistral"),
        ("""{{ '<|python_tag|>' }} {"name": x, "parameters": y}""", "llama3"),
        ("<tool_call><function=x><parameter=y>", None),
        ("{{ messages }}", None),
    ],
)
def test_the_form_is_that_of_the_template(template: str, form: str | None) -> None:
    assert form_of(template) == form


def test_names_come_with_and_without_a_wrapping() -> None:
    plain, wrapped = {"name": "a"}, {"type": "function", "function": {"name": "b"}}
    assert names_of([plain, wrapped, {"type": "other"}]) == {"a", "b"}
