"""Calls in what a model writes, in the forms of its family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from causal_onnx.runtime import Tokenizer
from causal_onnx.serve.openai.tools import CallReader, read_tools, text_with_marks
from causal_onnx.serve.requests.fields import Fields
from tests.runtime.language import write_tokenizer

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("add", "mul")
]
ADD = '{"name": "add", "arguments": {"x": 1}}'


def read(
    text: str, *, size: int = 1, form: str | None = None
) -> tuple[str, str, list[tuple[str, dict]]]:
    """What came before the end, what came at it, and the calls."""
    reader = CallReader(read_tools(Fields({"tools": TOOLS})), form)
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


LISTED = f"[TOOL_CALLS] [{ADD}]"


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    ("form", "text", "content", "count"),
    [
        ("mistral", LISTED, "", 1),
        ("mistral", f"I add.{LISTED}", "I add.", 1),
        ("mistral", '[TOOL_CALLS]add[ARGS]{"x": 1}', "", 1),
        ("mistral", ADD, ADD, 0),
        ("hermes", f"Hm.<tool_call>{ADD}</tool_call>", "Hm.", 1),
        ("hermes", ADD, ADD, 0),
        ("hermes", f"<think><tool_call>{ADD}</tool_call></think>No.", None, 0),
        ("llama3", f"<|python_tag|>{ADD}", "", 1),
        ("llama3", f"{ADD}; {ADD}", "", 2),
        ("llama3", f"<tool_call>{ADD}</tool_call>", f"<tool_call>{ADD}</tool_call>", 0),
        ("hermes", '<tool_call>{"name": "sub", "arguments": {}}</tool_call>', None, 0),
    ],
)
def test_the_form_of_the_template_alone_counts(form, text, content, count, size) -> None:
    before, rest, found = read(text, size=size, form=form)
    assert len(found) == count
    assert before + rest == (text if content is None else content)


def test_a_mark_that_is_a_special_token_is_seen(tmp_path: Path) -> None:
    """Texts leave special tokens out; the ids have them."""
    library = pytest.importorskip("tokenizers", reason="text needs the extra `text`")
    path = write_tokenizer(tmp_path)
    raw = library.Tokenizer.from_file(str(path))
    raw.add_special_tokens(["[TOOL_CALLS]", "[OTHER]"])
    raw.save(str(path))
    tokenizer = Tokenizer(path)
    ids = tokenizer.encode(f"{LISTED}[OTHER]", add_special_tokens=False)
    stream = tokenizer.stream()
    pieces = [(token, stream.push(token)) for token in ids]
    assert "[TOOL_CALLS]" not in "".join(text for _, text in pieces)
    assert text_with_marks(pieces, tokenizer) == LISTED
