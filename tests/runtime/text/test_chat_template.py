"""Chat templates as programs of other people: what they are given, and where they end."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from causal_onnx.runtime import ArtifactError
from causal_onnx.runtime.text import sandbox
from causal_onnx.runtime.text.chat_template import ChatTemplate

jinja2 = pytest.importorskip("jinja2", reason="chat templates need the extra `text`")

HELLO = [{"role": "user", "content": "Hello"}]


def test_a_conversation_becomes_text() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}",
        tokens={"eos_token": "</s>"},
    )
    assert template.render(HELLO) == "user: Hello</s>\n"
    assert template.render(HELLO, add_generation_prompt=True) == "user: Hello</s>\nassistant:"


def test_loops_count_as_they_do_elsewhere() -> None:
    source = "{% for m in messages if m.content %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}"
    source += "{% else %}none{% endfor %}"
    messages = [*HELLO, {"role": "user", "content": ""}, *HELLO]
    assert ChatTemplate(source).render(messages) == "1/2False2/2True"
    assert ChatTemplate(source).render([{"role": "user"}]) == "none"


def test_a_template_changes_nothing_that_it_is_given() -> None:
    messages = [{"role": "user", "content": ["a"]}]
    with pytest.raises(ValueError, match=r"does not take this conversation: .*append.* is unsafe"):
        ChatTemplate("{{ messages[0].content.append('b') }}").render(messages)
    assert messages == [{"role": "user", "content": ["a"]}]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{% set ns = namespace(__class__=1) %}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_template_does_not_leave_its_sandbox(source: str) -> None:
    with pytest.raises(ValueError, match="does not take this conversation"):
        ChatTemplate(source).render(HELLO)


@pytest.mark.parametrize(
    "hidden", ["'{0.__class__}'.format(1)", "raise_exception.__globals__", "dict.__mro__"]
)
def test_what_a_template_may_not_see_is_not_there(hidden: str) -> None:
    assert ChatTemplate(f"<{{{{ {hidden} }}}}>").render(HELLO) == "<>"


DOUBLING = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}"

ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "filtered loops": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}"
    "{% endfor %}",
    "recursive loops": "{% for a in range(99999) recursive %}{% if loop.depth < 5 %}"
    "{{ loop(range(99999)) }}{% endif %}{% endfor %}",
    "ranges": "{% for a in range(99999) %}{% set x = range(99999)|list %}{% endfor %}",
    "searches": "{% set x = range(99999)|list %}{% for a in x %}{{ 0.5 in x }}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(99) }}",
    "sums of texts": DOUBLING + "{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "joined texts": DOUBLING + "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "captured texts": DOUBLING + "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
    "replacements": DOUBLING + "{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
    "nested lists": DOUBLING + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "JSON": DOUBLING + "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x|tojson }}",
    "products": "{{ 'a' * 10**12 }}",
    "powers": "{{ 10 ** 999999999 }}",
    "widths": "{{ 'a'.ljust(10**11) }}",
    "filters' widths": "{{ 'a'|center(10**11) }}",
    "formats": "{{ '%99999999999d' % 1 }}",
    "filters' formats": "{{ '%99999999999d'|format(1) }}",
    "texts' formats": "{{ '{:99999999999}'.format(1) }}",
    "constants": "{{ 'a'|center(99999999999)|length }}",
    "output": "{% for a in range(99999) %}{{ messages[0].content * 1000 }}{% endfor %}",
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_a_template_that_never_ends_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causal_onnx.runtime.text.sandbox.MOST_WORK", 2_000_000)
    with pytest.raises(ValueError, match="handles more than 2000000 characters and items"):
        ChatTemplate(ENDLESS[kind]).render(HELLO)


def test_a_long_conversation_is_far_from_the_bound() -> None:
    source = "{% for m in messages %}{{ '<' + m.role + '>\n' + m.content | trim + '</s>' }}"
    source += "{% if loop.last and messages|length > 1 %}!{% endif %}{% endfor %}"
    messages = [{"role": "user", "content": "word " * 200}] * 1000
    template = ChatTemplate(source)
    assert len(template.render(messages)) > 1_000_000
    assert sandbox._LEFT.work > 90_000_000
    looking_back = "{% for m in messages %}{% for j in range(loop.index0 - 1, -1, -1) %}"
    looking_back += "{% if messages[j].role == 'tool' %}x{% endif %}{% endfor %}{% endfor %}"
    assert ChatTemplate(looking_back).render(messages) == ""
    assert sandbox._LEFT.work > 80_000_000


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ x | default(1700000000) }}", "1700000000"),
        ("{{ dict(a=1700000000).a + 1 }}", "1700000001"),
        ("{{ 'Call %s, 18005551234: 100%%' % 'me' }}", "Call me, 18005551234: 100%"),
        ("{{ '{:,}'.format(123456789) }}", "123,456,789"),
        ("{{ '18005551234'.split('0', 99999999) | length }}", "3"),
        ("{{ [3] | tojson(indent=1) }}{{ 'a'.ljust(2) }}{{ 'b' | center(3) }}", "[\n 3\n]a  b "),
    ],
)
def test_large_numbers_that_are_no_sizes_are_let_alone(source: str, text: str) -> None:
    assert ChatTemplate(source).render(HELLO) == text


def test_every_rendering_has_the_whole_bound() -> None:
    template = ChatTemplate("{% for a in range(9999) %}{% endfor %}{{ messages[0].content }}")
    assert {template.render(HELLO) for _ in range(60)} == {"Hello"}


def test_each_thread_has_a_bound_of_its_own() -> None:
    template = ChatTemplate("{% for a in range(99999) %}{% endfor %}{{ messages[0].content }}")
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda _: template.render(HELLO), range(16)))
    assert texts == ["Hello"] * 16


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (
            ["Hello"],
            "a message must be a dict such as {'role': 'user', 'content': 'Hello'}, got Hello",
        ),
        ([{"content": "a"}], "a message must be a dict such as"),
        ([{"role": "user", "content": b"a"}], "takes texts, numbers, lists and dicts, got bytes"),
    ],
)
def test_what_is_no_message_is_refused(messages: list[object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        ChatTemplate("{{ messages }}").render(messages)  # type: ignore[arg-type]


def test_what_a_template_says_of_a_conversation_is_passed_on() -> None:
    template = ChatTemplate("{{ raise_exception('Roles must alternate!') }}", where="that of x")
    with pytest.raises(ValueError, match="that of x does not take this conversation: Roles must"):
        template.render(HELLO)
    with pytest.raises(ValueError, match="at least one message"):
        template.render([])
    both = {"continue_final_message": True, "add_generation_prompt": True}
    with pytest.raises(ValueError, match="either begins a reply or continues its last message"):
        template.render(HELLO, **both)


def test_a_message_that_is_left_out_cannot_be_continued() -> None:
    with pytest.raises(ValueError, match="changes the last message, so it cannot be"):
        ChatTemplate("Hello").render(HELLO, continue_final_message=True)
    with pytest.raises(ValueError, match="the last message has no text to continue"):
        ChatTemplate("Hello").render([{"role": "assistant"}], continue_final_message=True)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("chat_template.jinja", b"{% if %}", r"cannot be read in line 1: Expected an expression"),
        ("chat_template.jinja", b"{{ x | nothing }}", "cannot be read in line 1: No filter named"),
        ("chat_template.jinja", b"\xff", "is not text in UTF-8"),
        ("chat_template.jinja", b"{{ " + b"(" * 9999, "cannot be read"),
        ("chat_template.jinja", b"x" * (1 << 21), "is larger than 1048576 bytes"),
        ("tokenizer_config.json", b"{", "is not JSON"),
        ("tokenizer_config.json", b"[]", "must hold a JSON object, got list"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "is 3, expected a text, or a list"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": "a"}]}', "expected a text, or a"),
    ],
)
def test_a_damaged_folder_is_a_clear_error(
    tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        (ChatTemplate.of_folder(tmp_path) or ChatTemplate("")).render(HELLO)


def test_a_folder_without_a_template_has_none(tmp_path: Path) -> None:
    assert ChatTemplate.of_folder(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    assert ChatTemplate.of_folder(tmp_path) is None
    given = ChatTemplate.of_folder(tmp_path, "{{ bos_token }}{{ messages[0].content }}")
    assert given is not None
    assert given.render(HELLO) == "<s>Hello"


def test_several_templates_need_a_default() -> None:
    template = ChatTemplate({"rag": "a", "tool_use": "b"})
    assert template.render(HELLO, tools=[]) == "b"
    with pytest.raises(
        ValueError, match="several templates and none is the default: rag, tool_use"
    ):
        template.render(HELLO)


def test_jinja2_is_asked_for_where_it_is_missing_or_too_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jinja2, "__version__", "3.1.5")
    with pytest.raises(
        ImportError, match=r"needs jinja2 3\.1\.6 or later, .* this is 3\.1\.5: pip"
    ):
        ChatTemplate("not seen before").render(HELLO)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"a chat template needs the package jinja2: pip .*text"):
        ChatTemplate("nor this").render(HELLO)
