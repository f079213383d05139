"""Calls in what a model writes, in the forms of its family."""

from __future__ import annotations

import json

import pytest

from causal_onnx.serve.openai.tools import CallReader, read_tools
from causal_onnx.serve.requests.fields import Fields

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("add", "mul")
]
ADD = '{"name": "add", "arguments": {"x": 1}}'


def read(text: str, *, size: int = 1) -> tuple[str, str, list[tuple[str, dict]]]:
    """What came before the end, what came at it, and the calls."""
    reader = CallReader(read_tools(Fields({"tools": TOOLS})))
    before = "".join(reader.push(text[i : i + size]) for i in range(0, len(text), size))
    rest, calls = reader.end()
    named = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
    return before, rest, named


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (ADD, "", [("add", {"x": 1})]),
        ('{"name": "mul", "parameters": {}}', "", [("mul", {})]),
        (f"[{ADD}, {ADD}]", "", [("add", {"x": 1})] * 2),
        (f"<tool_call>\n{ADD}\n</tool_call>", "", [("add", {"x": 1})]),
        (f"I add. <tool_call>{ADD}</tool_call>", "I add. ", [("add", {"x": 1})]),
        (
            f"<tool_call>{ADD}</tool_call>\n<tool_call>{ADD}</tool_call>",
            "",
            [("add", {"x": 1})] * 2,
        ),
        ("1 < 2 <tool", "1 < 2 <tool", []),
        ('{"name": "sub", "arguments": {}}', '{"name": "sub", "arguments": {}}', []),
        ('{"x": 1}', '{"x": 1}', []),
        ('{"name": "add", "argum', '{"name": "add", "argum', []),
        ("<tool_call>{broken</tool_call>", "<tool_call>{broken</tool_call>", []),
        ("", "", []),
    ],
)
def test_calls_are_found_and_the_rest_is_content(text, content, calls, size) -> None:
    before, rest, found = read(text, size=size)
    assert found == calls
    assert before + rest == content


def test_what_is_no_call_is_not_held_back() -> None:
    before, rest, _ = read("Hello <b>there</b>.")
    assert (before, rest) == ("Hello <b>there</b>.", "")
