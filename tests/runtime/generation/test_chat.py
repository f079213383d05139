"""Conversations with a tiny model, whose replies are those of one prompt with all of them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import (
    ArtifactError,
    Chat,
    Constraint,
    Continuation,
    Model,
    PrefixCache,
    Reply,
    Sampling,
    Stream,
    ToolCall,
    load,
)
from causal_onnx.runtime.generation import chat as chatting
from causal_onnx.runtime.generation.continuation import GrowingSequence
from causal_onnx.runtime.text.chat_template import ChatTemplate
from tests.runtime.artifacts import fixture
from tests.runtime.language import CONTEXT, language_model, write_llama_tokenizer, write_tokenizer

pytest.importorskip("tokenizers", reason="text needs the extra `text`")
pytest.importorskip("jinja2", reason="chat templates need the extra `text`")

TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% for m in messages %}{{ bos_token + m.role + ': ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ bos_token + 'assistant: ' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "héllo"}]
HOT = Sampling(temperature=2.0)


def write_folder(folder: Path, *, template: str = TEMPLATE) -> Path:
    shutil.copy(fixture("language"), folder / "model.onnx")
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return load(folder / "model.onnx", threads=1)


def rendered(model: Model, messages: list[dict[str, Any]], **options: Any) -> list[int]:
    template = ChatTemplate.of_folder(model.tokenizer.path.parent)
    text = template.render(messages, **{"add_generation_prompt": True, **options})
    return model.tokenizer.encode(text, add_special_tokens=False)


def continuation(reply: Reply) -> Continuation:
    """What a reply has of any continuation."""
    return Continuation(**{item.name: getattr(reply, item.name) for item in fields(Continuation)})


def test_a_reply_is_the_continuation_of_the_rendered_conversation(model: Model) -> None:
    options = {"max_new_tokens": 20, "sampling": HOT, "seed": 1}
    found = model.chat(HELLO, **options)
    assert continuation(found) == model.generate(rendered(model, HELLO), **options)
    assert found.text == model.tokenizer.decode(found.ids)
    assert (len(found.ids), found.finish) == (20, "length")


def test_the_prompt_has_the_special_tokens_of_the_template_alone(model: Model) -> None:
    ids = rendered(model, HELLO)
    assert (ids.count(0), ids.count(1), ids[0]) == (2, 1, 0)


def test_turns_are_those_of_a_fresh_conversation_and_nothing_is_read_twice(model: Model) -> None:
    options = {"max_new_tokens": 12, "sampling": HOT, "seed": 3}
    talk, messages, computed = Chat(model, system="ab", **options), [], 0
    messages.append({"role": "system", "content": "ab"})
    before: list[int] = []
    for text in ("héllo", "世界", "and?"):
        messages.append({"role": "user", "content": text})
        prompt = rendered(model, messages)
        reply = talk.send(text)
        assert reply == model.chat(messages, **options)
        messages.append({"role": "assistant", "content": reply.text})
        same = np.cumprod([a == b for a, b in zip(before, prompt, strict=False)]).sum()
        computed += len(prompt) - int(same)
        before = [*prompt, *reply.ids[:-1]]
    assert talk.messages == messages
    assert talk.positions_read == computed < len(rendered(model, messages))


def test_pieces_joined_are_the_reply(model: Model) -> None:
    options = {"max_new_tokens": 40, "sampling": HOT, "seed": 2}
    talk = Chat(model, **options)
    pieces = list(talk.stream("héllo"))
    assert "".join(pieces) == talk.reply.text == model.chat(HELLO, **options).text
    assert len(pieces) > 9
    assert all(pieces)


@pytest.mark.parametrize("stop", ["close", "next call", "reset"])
def test_a_reply_that_nobody_wants_to_its_end_stays_as_far_as_it_came(
    model: Model, stop: str
) -> None:
    options = {"max_new_tokens": 60, "sampling": HOT, "seed": 2}
    talk = Chat(model, **options)
    pieces = talk.stream("héllo")
    text = "".join(next(pieces) for _ in range(5))
    if stop == "close":
        pieces.close()
    if stop == "reset":
        talk.reset()
        assert (talk.messages, talk.reply) == ([], None)
        return
    begun = [*HELLO, {"role": "assistant", "content": text}]
    messages = [*begun, {"role": "user", "content": "and?"}]
    assert talk.send("and?") == model.chat(messages, **options)
    assert talk.messages[:3] == messages


def failing(call: int, error: type[BaseException]) -> Callable[..., Any]:
    """`Stream.run`, which the user interrupts in one call, after it has run."""
    run, calls = Stream.run, iter(range(9999))

    def interrupted(stream: Stream, *args: Any, **options: Any) -> Any:
        found = run(stream, *args, **options)
        if next(calls) == call:
            raise error
        return found

    return interrupted


@pytest.mark.parametrize("call", [0, 1, 5])
def test_an_interrupt_ends_the_reply_and_not_the_conversation(
    model: Model, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    options = {"max_new_tokens": 30, "sampling": HOT, "seed": 2}
    talk = Chat(model, **options)
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "run", failing(call, KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            talk.send("héllo")
    # Before the first token nothing was said.
    assert [m["role"] for m in talk.messages] == (["user", "assistant"] if call else [])
    if call:
        assert (talk.reply.finish, len(talk.reply.ids)) == ("interrupted", call)
    messages = [*talk.messages, {"role": "user", "content": "and?"}]
    assert talk.send("and?") == model.chat(messages, **options)


def test_a_stream_that_cannot_be_trusted_after_an_interrupt_is_not_used(model: Model) -> None:
    options = {"max_new_tokens": 9, "sampling": HOT, "seed": 2}
    talk = Chat(model, **options)
    talk.send("héllo")
    talk._kept._stream._is_in_use = True
    messages = [*talk.messages, {"role": "user", "content": "and?"}]
    assert talk.send("and?") == model.chat(messages, **options)


def test_the_conversation_may_be_changed_between_turns(model: Model) -> None:
    talk = Chat(model, max_new_tokens=9)
    talk.send("héllo")
    talk.messages[0] = {"role": "user", "content": "other"}
    del talk.messages[1]
    found = talk.send([{"role": "tool", "content": "12"}, {"role": "user", "content": "so?"}])
    assert found == model.chat(talk.messages[:-1], max_new_tokens=9)
    assert [m["role"] for m in talk.messages] == ["user", "tool", "user", "assistant"]


def test_replies_end_where_the_template_ends_them(model: Model) -> None:
    """No file but the template's tokens names an end: `Tokenizer.end_ids` has another."""
    found = model.chat(HELLO, sampling=Sampling(logit_bias={1: 99.0}))
    assert (found.ids, found.text, found.finish) == ((1,), "", "stop")


def test_stops_seeds_and_constraints_are_those_of_generate(model: Model) -> None:
    pytest.importorskip("llguidance", reason="a constraint needs the extra `text`")
    assert model.chat(HELLO, constraint=Constraint.regex("yes|no")).text in ("yes", "no")
    free = model.chat(HELLO, max_new_tokens=30, sampling=HOT, seed=1)
    stop = free.text[3:5]
    found = model.chat(HELLO, max_new_tokens=30, sampling=HOT, seed=1, stop=stop)
    assert (found.text, found.finish) == (free.text[: free.text.index(stop)], "stop")


def test_the_settings_of_the_folder_are_used_unless_others_are_given(tmp_path: Path) -> None:
    write_folder(tmp_path)
    settings = {"do_sample": True, "temperature": 2.0, "top_k": 0, "eos_token_id": 7}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    model = load(tmp_path / "model.onnx", threads=1)
    options = {"max_new_tokens": 20, "seed": 1}
    assert model.chat(HELLO, **options) == model.chat(HELLO, sampling=HOT, **options)
    assert model.chat(HELLO, sampling=Sampling(), **options) != model.chat(HELLO, **options)
    for end in (1, 7):  # that of the template, and that of the settings
        assert model.chat(HELLO, sampling=Sampling(logit_bias={end: 99.0})).ids == (end,)


def test_tools_documents_and_variables_reach_the_template(model: Model) -> None:
    tools = [{"name": "é"}]
    assert model.chat(HELLO, tools=tools, max_new_tokens=5).ids == (
        model.generate(rendered(model, HELLO, tools=tools), max_new_tokens=5).ids
    )
    template = "{{ documents[0].text }}{{ mood }}{{ messages[0].content }}"
    options = {"documents": [{"text": "d"}], "variables": {"mood": "m"}, "max_new_tokens": 5}
    found = model.chat(HELLO, template=template, **options)
    ids = model.tokenizer.encode("dmhéllo", add_special_tokens=False)
    assert found.ids == model.generate(ids, max_new_tokens=5).ids


def test_a_reply_that_was_begun_goes_on(model: Model) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Well"}]
    found = model.chat(messages, max_new_tokens=9)
    prompt = rendered(model, messages, add_generation_prompt=False, continue_final_message=True)
    assert model.tokenizer.decode(prompt).endswith("assistant: Well")
    assert continuation(found) == model.generate(prompt, max_new_tokens=9)


def test_a_conversation_has_a_reply_that_was_begun_as_one_message(model: Model) -> None:
    talk = Chat(model, max_new_tokens=9)
    begun = {"role": "assistant", "content": [{"type": "text", "text": "Well"}]}
    found = talk.send([*HELLO, begun])
    assert talk.messages == [*HELLO, {"role": "assistant", "content": f"Well{found.text}"}]


def test_a_reply_begins_a_text_and_one_that_goes_on_does_not(tmp_path: Path) -> None:
    write_folder(tmp_path)
    path = write_llama_tokenizer(tmp_path)
    model = language_model(tokenizer=path)
    was = model.tokenizer.encode("was")[-1]
    options = {"max_new_tokens": 2, "sampling": Sampling(logit_bias={was: 99.0})}
    assert model.chat(HELLO, **options).text == "was was"
    begun = [*HELLO, {"role": "assistant", "content": "The"}]
    assert model.chat(begun, **options).text == " was was"


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE,
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}",
    ],
    ids=["fails on parts", "writes them as Python", "knows parts"],
)
def test_a_content_in_parts_is_its_text(model: Model, template: str) -> None:
    parts = [{"type": "text", "text": "hé"}, {"type": "text", "text": "llo"}]
    messages = [{"role": "user", "content": parts}]
    options = {"template": template, "max_new_tokens": 5}
    assert model.chat(messages, **options) == model.chat(HELLO, **options)


def test_a_prefix_cache_serves_conversations_that_begin_alike(model: Model) -> None:
    cache = PrefixCache(model, capacity_positions=999, block=4)
    first, second = (model.chat(HELLO, prefix_cache=cache, max_new_tokens=5) for _ in range(2))
    assert first.ids == second.ids
    assert cache.stats.hits == 1


@pytest.mark.parametrize(
    ("messages", "kind", "message"),
    [
        ([], ValueError, "at least one message"),
        ("hello", TypeError, r"messages must be a list such as \[{.*}\], got 'hello'"),
        ({"role": "user"}, TypeError, "messages must be a list such as"),
        (["hello"], TypeError, "a message must be a dict such as {'role': 'user', .*}, got hello"),
        ([{"role": "user", "content": [{"type": "image"}]}], ValueError, "a part of type 'image'"),
        ([{"role": "user", "content": ["a"]}], ValueError, "a part of type 'str'"),
        ([{"role": "user"}], ValueError, "does not take this conversation"),
    ],
)
def test_what_is_no_conversation_is_refused(
    model: Model, messages: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        model.chat(messages)


def test_a_conversation_beyond_the_context_says_what_to_leave_out(model: Model) -> None:
    talk = Chat(model, system="Be brief.", max_new_tokens=9)
    for _ in range(3):
        talk.send("x" * 50)
    with pytest.raises(ValueError, match="the model takes 400; without messages") as caught:
        talk.send("x" * 150)
    place = str(caught.value).partition("messages[")[2].partition("]")[0]
    first, last = (int(number) for number in place.split(":"))
    kept = len(talk.messages)
    assert (first, talk.messages[last]["role"], talk.messages[-1]["role"]) == (
        1,
        "user",
        "assistant",
    )
    del talk.messages[first:last]
    talk.send("x" * 150)
    assert len(talk.messages) == kept - (last - first) + 2
    with pytest.raises(
        ValueError, match=f"has .* ids, and the model takes {CONTEXT}; its last mes"
    ):
        model.chat([{"role": "user", "content": "x" * 500}])


def test_what_a_chat_lacks_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="text needs a tokenizer, and none is beside the model"):
        language_model().chat(HELLO)
    write_tokenizer(tmp_path)
    model = language_model(tokenizer=tmp_path)
    with pytest.raises(
        ValueError, match=r"needs a chat template, and .* has none: pass .*generate"
    ):
        Chat(model)
    assert model.chat(HELLO, template="{{ messages[0].content }}", max_new_tokens=2).ids
    with pytest.raises(ArtifactError, match="the chat template cannot be read in line 1"):
        model.chat(HELLO, template="{{")
    with pytest.raises(ValueError, match="generating needs a language model"):
        load(fixture("one_head")).chat(HELLO)


def test_the_extra_is_asked_for(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ImportError, match=r"a chat template needs the package jinja2: pip .*text"):
        model.chat(HELLO, template="{{ messages[0].content }} and something new")


WITH_CALLS = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }}{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function | tojson }}#{{ call.id }}{% endfor %}\n{% endfor %}"
)
TOOLS = [{"type": "function", "function": {"name": "age"}}]
OF_ANN = '<tool_call>{"name": "age", "arguments": {"x": "é"}}</tool_call>'


def saying(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let replies be this text."""
    make = chatting.make_plan
    forced = {"constraint": Constraint.regex(re.escape(text)), "sampling": Sampling()}
    monkeypatch.setattr(chatting, "make_plan", lambda *a, **k: make(*a, **{**k, **forced}))


def test_calls_of_tools_are_found_and_kept_as_calls(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance", reason="constraints need the extra `text`")
    saying(f"x\n{OF_ANN}", monkeypatch)
    talk = Chat(model, template=WITH_CALLS, tools=TOOLS)
    for number in range(2):
        reply = talk.send("how old?")
        assert (reply.content, reply.text) == ("x", f"x\n{OF_ANN}")
        assert reply.tool_calls == (ToolCall(name="age", arguments={"x": "é"}),)
        assert (reply.tool_format, reply.tool_problem) == ("hermes", None)
        called = {"name": "age", "arguments": {"x": "é"}}
        call = {"type": "function", "id": f"call0000{number}", "function": called}
        said = {"role": "assistant", "content": "x", "tool_calls": [call]}
        assert talk.messages[-1] == said
        talk.messages.append({"role": "tool", "content": "7"})


@pytest.mark.parametrize(
    ("template", "text", "problem"),
    [
        (TEMPLATE, OF_ANN, "shows calls in none of the known forms, .* known are <tool_call>"),
        (WITH_CALLS, OF_ANN[:-14], "a call is no JSON"),
    ],
)
def test_a_call_that_cannot_be_read_stays_in_the_text_and_is_said(
    template: str, text: str, problem: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance", reason="constraints need the extra `text`")
    saying(text, monkeypatch)
    talk = Chat(model, template=template, tools=TOOLS)
    reply = talk.send("how old?")
    assert reply.tool_calls == ()
    assert re.search(problem, reply.tool_problem)
    assert (reply.content, talk.messages[-1]) == (text, {"role": "assistant", "content": text})


def test_without_tools_nothing_is_taken_for_a_call(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance", reason="constraints need the extra `text`")
    saying(OF_ANN, monkeypatch)
    reply = model.chat(HELLO, template=WITH_CALLS)
    assert (reply.content, reply.tool_calls, reply.tool_problem) == (OF_ANN, (), None)


def test_a_template_that_does_not_write_the_calls_gets_them_as_text(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance", reason="constraints need the extra `text`")
    saying(OF_ANN, monkeypatch)
    forgetful = "{% for m in messages %}{{ m.content }}{# <tool_call> #}{% endfor %}"
    talk = Chat(model, template=forgetful, tools=TOOLS)
    assert talk.send("how old?").tool_calls
    assert talk.messages[-1] == {"role": "assistant", "content": OF_ANN}


def test_marks_that_are_special_tokens_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer

    folder = write_folder(tmp_path, template=WITH_CALLS.replace("<tool_call>", "[TOOL_CALLS]"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[TOOL_CALLS]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    mark = tokenizer.token_to_id("[TOOL_CALLS]")
    text = ' [{"name": "age", "arguments": {}, "id": "123456789"}]'
    ids = (mark, *tokenizer.encode(text, add_special_tokens=False).ids, 1)
    said = Continuation(ids=ids, logprobs=(0.0,) * len(ids), finish="stop", text=text)
    monkeypatch.setattr(GrowingSequence, "continuation", lambda _: said)
    reply = load(folder).chat(HELLO, tools=TOOLS, max_new_tokens=1)
    assert reply.tool_calls == (ToolCall(name="age", arguments={}, id="123456789"),)
    assert (reply.content, reply.tool_format) == ("", "mistral")
    assert reply.message()["tool_calls"][0]["id"] == "123456789"
