"""Conversations become the text that transformers' `apply_chat_template` makes of them.

The templates in `chat_templates/` are laid out like those of well-known families.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers import PreTrainedTokenizerFast

from causal_onnx.runtime import Tokenizer
from causal_onnx.runtime.text.chat_template import ChatTemplate
from causal_onnx.runtime.text.tool_calls import form_of, names_of, read_calls
from tests.runtime.language import write_llama_tokenizer

FOLDER = Path(__file__).with_name("chat_templates")
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place, <now> & later; élan.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "A town"},
                "days": {"type": "array", "items": {"type": "integer"}},
            },
            "required": ["place"],
        },
    },
}
CALL = {"name": "get_weather", "arguments": {"place": "Zürich", "days": [1, 2]}}
CALLS = [{"id": "abcdefghi", "type": "function", "function": CALL}]


def said(*turns: str, **first: Any) -> list[dict[str, Any]]:
    """Messages of roles and contents such as "user: Hello"."""
    messages = [dict(zip(("role", "content"), turn.split(": ", 1), strict=True)) for turn in turns]
    return [messages[0] | first, *messages[1:]]


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one question": said("user: Hello"),
    "a system message": said("system: Be brief.", "user: Hello"),
    "several turns": said("user: Hello", "assistant:  Hi! ", "user:  How are you?\n"),
    "system and turns": said(
        "system:  You are a pirate.\n", "user: Hi", "assistant: Arr", "user: ?", "assistant: Arr!"
    ),
    "other scripts": said("system: Répondez 😀", "user: 世界 <b>&amp;</b> {{ x }} {% y %}"),
    "nothing": said("user: ", "assistant: ", "user: "),
    "a reply that is empty": [{"role": "user", "content": "Hi"}, {"role": "assistant"}],
    "thoughts": [
        *said("user: 1 + 1?", "assistant: <think>\nTwo.\n</think>\n\n2", "user: And 2 + 2?"),
        {"role": "assistant", "content": "4", "reasoning_content": "Four."},
        *said("user: Thanks", reasoning=None),
    ],
    "a call and its result": [
        *said("user: The weather in Zürich?"),
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "tool", "content": '{"sun": "☀"}', "tool_call_id": "abcdefghi"},
        *said("assistant: It shines.", "user: Thank you"),
    ],
    "results that wait": [
        *said("user: The weather?"),
        {"role": "assistant", "content": "I look.", "tool_calls": CALLS},
        {"role": "tool", "content": "12", "tool_call_id": "abcdefghi"},
        {"role": "tool", "content": "13", "tool_call_id": "abcdefghi"},
    ],
    "a call without an id": [
        *said("user: The weather?"),
        {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}] * 2},
    ],
    "two in a row": said("user: a", "user: b"),
    "an assistant begins": said("assistant: a", "user: b"),
    "a system message later": said("user: a", "assistant: b", "system: c", "user: d"),
    "a role that nobody knows": said("narrator: Once upon a time"),
    "parts": [{"role": "user", "content": [{"type": "text", "text": " a "}]}],
}

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reply": {"add_generation_prompt": True},
    "tools": {"add_generation_prompt": True, "tools": [WEATHER, WEATHER]},
    "documents": {"documents": [{"title": "T", "text": "Sun < rain"}], "tools": [WEATHER]},
}
VARIABLES = {
    "enable_thinking": False,
    "builtin_tools": ["code_interpreter", "brave_search", "get_weather"],
    "date_string": "1 May 2025",
    "controls": {"length": "short"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer's folder with special tokens, one of them written as an object."""
    write_llama_tokenizer(tmp_path)
    return configured(tmp_path)


def configured(folder: Path, **more: object) -> Path:
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        "unk_token": "<unk>",
        "add_bos_token": True,
        "model_max_length": 100,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | more), encoding="utf-8")
    return folder


def use(folder: Path, name: str) -> Path:
    text = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return folder


def theirs(
    folder: Path | PreTrainedTokenizerFast, messages: Any, **options: Any
) -> str | Exception:
    is_folder = isinstance(folder, Path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder) if is_folder else folder
    variables = options.pop("variables", {})
    try:
        found = tokenizer.apply_chat_template(messages, tokenize=False, **options, **variables)
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        return error
    return str(found)


def ours(folder: Path, messages: Any, **options: Any) -> str | Exception:
    template = ChatTemplate.of_folder(folder)
    assert template is not None
    try:
        return template.render(messages, **options)
    except ValueError as error:
        return error


def agree(mine: str | Exception, other: str | Exception) -> bool:
    """The same text, or errors with the same words."""
    if isinstance(mine, Exception) and isinstance(other, Exception):
        return str(other) in str(mine)
    return mine == other


@pytest.mark.parametrize("name", NAMES)
def test_conversations_are_written_as_transformers_writes_them(folder: Path, name: str) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(use(folder, name))
    differ, texts = [], set()
    for conversation, messages in CONVERSATIONS.items():
        for kind, options in OPTIONS.items():
            for variables in ({}, VARIABLES):
                given = {"messages": messages, **options, "variables": variables}
                mine, other = ours(folder, **given), theirs(tokenizer, **given)
                texts |= {mine} if isinstance(mine, str) else set()
                if not agree(mine, other):
                    differ.append((conversation, kind, mine, other))
    assert differ == []
    assert len(texts) >= 4


def test_families_refuse_what_their_templates_do(folder: Path) -> None:
    """Or the errors that agree above would be of our making."""
    refused = {
        name: sorted(
            conversation
            for conversation, messages in CONVERSATIONS.items()
            if isinstance(ours(use(folder, name), messages), ValueError)
        )
        for name in ("gemma", "mistral_v3_tools", "chatml")
    }
    assert {"a system message", "two in a row", "an assistant begins"} <= set(refused["gemma"])
    assert {"a call without an id", "two in a row"} <= set(refused["mistral_v3_tools"])
    assert "a role that nobody knows" not in refused["chatml"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("content", ["Arr, I", " Arr  ", "é\n"])
def test_a_reply_that_was_begun_goes_on(folder: Path, name: str, content: str) -> None:
    messages = [*said("user: Hi"), {"role": "assistant", "content": content}]
    use(folder, name)
    mine = ours(folder, messages, continue_final_message=True)
    other = theirs(folder, messages, continue_final_message=True)
    assert isinstance(mine, Exception) == isinstance(other, Exception)
    assert isinstance(mine, Exception) or mine == other


@pytest.mark.parametrize("has_file", [True, False])
@pytest.mark.parametrize("tools", [None, [WEATHER]])
def test_of_several_templates_the_same_one_is_taken(
    folder: Path, has_file: bool, tools: list[object] | None
) -> None:
    named = [{"name": name, "template": f"{name} of the list"} for name in ("default", "tool_use")]
    configured(folder, chat_template=named)
    if has_file:
        (folder / "chat_template.jinja").write_text("a file")
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("a file for tools")
    expected = theirs(folder, said("user: a"), tools=tools)
    assert ours(folder, said("user: a"), tools=tools) == expected
    assert ("file" in str(expected), "tool" in str(expected)) == (has_file, tools is not None)


def test_special_tokens_are_those_of_all_files(folder: Path) -> None:
    configured(folder, image_token="<image>", extra_special_tokens={"boi_token": "<boi>"})
    tokens = {
        "pad_token": {"content": "<pad>", "lstrip": False, "special": True},
        "cls_token": "<c>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens))
    names = ["bos", "eos", "unk", "pad", "cls", "image", "boi", "sep"]
    template = "|".join(f"{{{{ {name}_token }}}}" for name in names)
    (folder / "chat_template.jinja").write_text(template)
    mine = ours(folder, said("user: a"))
    assert mine == theirs(folder, said("user: a"))
    assert mine == "<s>|</s>|<unk>|<pad>|<c>|<image>|<boi>|"


@pytest.mark.parametrize("name", ["chatml", "llama2", "qwen25"])
def test_the_ids_are_those_of_transformers(folder: Path, name: str) -> None:
    """The tokens of the template are special, and no other one is put before them."""
    use(folder, name)
    messages = CONVERSATIONS["several turns"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    text = ours(folder, messages, add_generation_prompt=True)
    assert Tokenizer(folder).encode(str(text), add_special_tokens=False) == expected


LANGUAGE = [
    "{% for m in messages recursive %}{{ loop.depth }}{{ m.role }}{{ loop([]) }}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role }}<{{ loop.nextitem.role }}"
    "{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{{ loop.revindex }}{% endfor %}",
    "{% for a, b in {'x': 1, 'y': none}.items() %}{{ a ~ b ~ missing ~ 1.5 ~ true }}{% endfor %}",
    "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{{ m }}{% endfor %}",
    "{% for x in missing %}{{ x }}{% else %}empty{% endfor %}",
    "{% macro f(a, b='c') %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{{ caller() }}{% endmacro %}"
    "{% call f(1, 2, 3, d=4) %}inside{% endcall %}",
    "{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(9) | upper }}",
    "{% set x %} a {{ messages[0].content }} {% endset %}[{{ x | trim }}]{{ x | length }}",
    "{% filter upper %}a{{ messages[0].role }}{% endfilter %}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a is defined }}",
    "{% set ns = namespace(n=0, self=1) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% endfor %}{{ ns.n }}{{ ns.self }}",
    "{{ messages | map(attribute='role') | join(', ') }}{{ messages | map('length') | list }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
    "{{ messages | rejectattr('role', 'in', ['user']) | first | tojson }}",
    "{{ messages | groupby('role') | list | length }}{{ [3, 1, 2] | sort | reverse | list }}",
    "{{ messages[::-1][0].content[1:-1] }}{{ messages[-1]['role'] }}{{ messages[0].nothing }}",
    "{{ messages | tojson(indent=2) }}{{ {'b': 1, 'a': 'é'} | tojson(sort_keys=true) }}",
    "{{ messages | string }}{{ messages[0] | items | list }}"
    "{{ dict(a=1) }}{{ dict.fromkeys('a') }}",
    "{{ 'a' in messages[0].content }}{{ 'a' not in messages[0] }}{{ 1 not in [1] }}",
    "{{ 7 // 2 }}{{ 7 % 4 }}{{ 2 ** 5 }}{{ 'a' * 3 }}{{ 3 * [1] }}{{ '%s-%d' % ('a', 2) }}{{ -1 }}",
    "{{ '{}:{:>4}'.format('a', 2) }}{{ '%s' | format('a') }}{{ 'a b' | title }}"
    "{{ 1.25 | round(1) }}",
    "{{ 'yes' if messages[1] is mapping else 'no' }}{{ none is none }}{{ 'a' is string }}"
    "{{ 5 is divisibleby 5 }}{{ [] is iterable }}{{ missing is undefined }}",
    "{{ 'a' ~ (messages | length) ~ 'b' if true }}{{ ('a' if false) }}{{ missing or 'default' }}",
    "{{ '<&>' }}{{ '<&>' | e }}{{ '<&>' | safe }}{{ 'a\\nb' | indent(2) }}{{ 'x' | default('y') }}",
    "  {% if true %}\n    a  \n  {% endif %}\n  {#- c -#}  \n{{- 'b' -}}\n\n",
    "{% set a, b = 1, 2 %}{{ [a, b] }}{{ (1, 2) }}{{ {'a': [1, {'b': none}]} }}",
    "{{ messages[0].content.split(' ') | last }}{{ 'a,b'.partition(',') }}{{ 'A'.lower() }}",
    "{{ raise_exception('x' ~ 1) }}",
    "{{ missing.attribute }}",
    "{{ messages.missing() }}",
    "{{ messages[0].content + 1 }}",
    "{{ 1 / 0 }}",
    "{{ messages.append(1) }}",
    "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}",
    "{{ joiner(', ') is callable }}{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}",
    "{{ range(5) | list }}{{ range(3) | sum }}{{ [[1, 2], [3]] | sum(start=[]) }}"
    "{{ range(99) | length }}",
    "{{ strftime_now('%Y') | int > 2000 }}{{ 'é' | urlencode }}{{ 'abc' | batch(2) | list }}",
]


@pytest.mark.parametrize("source", LANGUAGE)
def test_the_language_of_templates_is_the_same(folder: Path, source: str) -> None:
    """Counting changes nothing of it."""
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    messages = CONVERSATIONS["several turns"]
    mine, other = ours(folder, messages), theirs_or_error(folder, messages)
    assert agree(mine, other), (mine, other)


def theirs_or_error(folder: Path, messages: Any) -> str | Exception:
    try:
        return theirs(folder, messages)
    except Exception as error:
        return error


FORMS = {
    "command_r_tools": None,
    "deepseek_r1": None,
    "granite": None,
    "llama31_tools": "llama3",
    "mistral_v3_tools": "mistral",
    "phi4_mini": None,
    "qwen25": "hermes",
    "qwen3": "hermes",
    "smollm3": "hermes",
}
"""Templates that show tools -> in which form their models call them."""


@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_calls_is_known_by_the_template(name: str) -> None:
    assert form_of((FOLDER / f"{name}.jinja").read_text(encoding="utf-8")) == FORMS[name]


@pytest.mark.parametrize("name", ["llama31_tools", "mistral_v3_tools", "qwen25", "qwen3"])
def test_calls_that_a_template_writes_are_read_again(name: str, folder: Path) -> None:
    use(folder, name)
    shown: dict[str, Any] = {"tools": [WEATHER], "variables": {"date_string": "1 May 2025"}}
    asked = said("user: The weather in Zürich?")
    count = 1 if name == "llama31_tools" else 2
    called = {"role": "assistant", "content": "", "tool_calls": CALLS * count}
    prompt = str(ours(folder, asked, add_generation_prompt=True, **shown))
    whole = str(ours(folder, [*asked, called], **shown))
    assert whole.startswith(prompt)
    form = FORMS[name]
    assert form is not None
    content, found = read_calls(whole[len(prompt) :], form, names_of([WEATHER]))
    assert [(call.name, call.arguments) for call in found] == [tuple(CALL.values())] * count
    assert content in ("", "<think>\n\n</think>")
