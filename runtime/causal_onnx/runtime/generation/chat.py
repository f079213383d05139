"""Hold a conversation with a model, in the form that it was trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from causal_onnx.runtime.generation.continuation import Continuation, GrowingSequence
from causal_onnx.runtime.generation.defaults import default_sampling
from causal_onnx.runtime.generation.generate import grow
from causal_onnx.runtime.generation.kept_stream import KeptStream
from causal_onnx.runtime.generation.language_model import conditioned
from causal_onnx.runtime.generation.plan import (
    check_model,
    make_plan,
    prompt_ids,
    required_tokenizer,
)
from causal_onnx.runtime.text.chat_template import ChatTemplate, Message, plain_message
from causal_onnx.runtime.text.tool_calls import FORMS, ToolCall, form_of, names_of, read_calls

if TYPE_CHECKING:
    from causal_onnx.runtime.generation.constraint import Constraint
    from causal_onnx.runtime.generation.language_model import LanguageModel
    from causal_onnx.runtime.generation.prefix_cache import PrefixCache
    from causal_onnx.runtime.generation.prompt import PromptReader
    from causal_onnx.runtime.generation.sampling import Choice, Sampling
    from causal_onnx.runtime.generation.source import Source
    from causal_onnx.runtime.text.tokenizer import Tokenizer

__all__ = ["Chat", "PromptWriter", "Reply", "chat", "continues"]

ROOM = 256
"""Ids that should be left for a reply, where messages are left out to make room."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply(Continuation):
    """What a model wrote in a conversation."""

    content: str = ""
    """The text without the calls of tools; all of it where there are none."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The functions that it calls, in order."""
    tool_format: str | None = None
    """In which form calls are looked for: "hermes", "llama3" or "mistral". None: there are no
    tools, or their template shows another form."""
    tool_problem: str | None = None
    """Why calls may stand in the text that are not in `tool_calls`: the form is not known, or one
    is damaged."""

    def message(self, *, first_call: int = 0) -> dict[str, Any]:
        """The reply as a message of the conversation, as templates and other libraries take it.

        Args:
            first_call: How many calls the conversation has before; calls to which the model gave
                no id are numbered from here.
        """
        if not self.tool_calls:
            return {"role": "assistant", "content": self.text or ""}
        calls = [
            {
                "type": "function",
                # Of nine letters and digits, which is what Mistral's templates take.
                "id": call.id or f"call{number:05d}",
                "function": {"name": call.name, "arguments": dict(call.arguments)},
            }
            for number, call in enumerate(self.tool_calls, first_call)
        ]
        return {"role": "assistant", "content": self.content, "tool_calls": calls}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    """What the replies of a conversation have in common; see `chat`."""

    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    template: str | None = None
    variables: Mapping[str, Any] | None = None
    max_new_tokens: int | None = None
    sampling: Sampling | None = None
    stop: Collection[int | str] | str = ()
    seed: int | None = None
    constraint: Constraint | None = None


def chat(
    model: LanguageModel,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    template: str | None = None,
    variables: Mapping[str, Any] | None = None,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    stop: Collection[int | str] | str = (),
    seed: int | None = None,
    constraint: Constraint | None = None,
    prefix_cache: PrefixCache | None = None,
    inputs: Mapping[str, Source] | None = None,
    adapter: str | None = None,
) -> Reply:
    """Reply to a conversation. `Chat` holds one over several turns, and gives replies in pieces.

    Args:
        model: A language model with a cache, a tokenizer and a chat template (extra `text`).
        messages: The conversation, such as `[{"role": "user", "content": "Hello"}]`. A content may
            be a list of parts `{"type": "text", "text": "Hello"}`. If the last message is the
            assistant's, the reply continues it.
        tools: Functions that the model may call, each as a JSON schema; the template shows them to
            it. Calls are found in the reply (`Reply.tool_calls`) where the template shows a form
            that is known: Hermes', Llama 3.1's or Mistral's.
        documents: What the model may quote, where the template knows documents.
        template: A chat template in jinja2's language, in place of the one beside the tokenizer.
        variables: What else the template knows, such as `{"enable_thinking": False}`.
        max_new_tokens: The longest reply; None: 1024, as far as the context goes.
        sampling: How tokens are chosen; None: as `generation_config.json` says, or else the most
            likely (`Model.default_sampling`).
        stop: As for `tokens`. The ids that end a text, and the template's `eos_token`, always end
            a reply.
        seed: As for `tokens`.
        constraint: What the reply must be.
        prefix_cache: As for `tokens`: for conversations that begin alike.
        inputs: As for `tokens`; those along the positions are for the first ones of the whole
            conversation, as the template writes it.
        adapter: As for `tokens`.

    Returns:
        The reply: text, calls of tools, ids, log-probabilities, and why it ended.

    Raises:
        ValueError: There is no tokenizer or no chat template, the template does not take these
            messages, or they are longer than the context: the message says what to leave out.
        ArtifactError: The template or a file beside the tokenizer is damaged.
        ImportError: The extra `text` is not installed.
    """
    options = _Options(
        tools=tools,
        documents=documents,
        template=template,
        variables=variables,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop=stop,
        seed=seed,
        constraint=constraint,
    )
    replier = _Replier(conditioned(model, inputs, adapter), options)
    sequence, choices = replier.reply(messages, prefix_cache)
    for _ in choices:
        pass
    return replier.read(sequence.continuation())


class Chat:
    """A conversation with a model.

        talk = Chat(model, system="Answer in one sentence.")
        print(talk.send("Why is the sky blue?").text)
        for piece in talk.stream("And at dusk?"):
            print(piece, end="", flush=True)

    What was read and written stays in the model's cache: of each turn only what is new is read, as
    far as the template writes the earlier ones as they were. A conversation is not for several
    threads at once; its model is.
    """

    def __init__(
        self,
        model: LanguageModel,
        *,
        system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        template: str | None = None,
        variables: Mapping[str, Any] | None = None,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        stop: Collection[int | str] | str = (),
        seed: int | None = None,
        inputs: Mapping[str, Source] | None = None,
        adapter: str | None = None,
    ) -> None:
        """Begin a conversation.

        Args:
            model: As for `chat`.
            system: A message that goes before all others.
            tools: As for `chat`.
            documents: As for `chat`.
            template: As for `chat`.
            variables: As for `chat`.
            max_new_tokens: As for `chat`, of each reply.
            sampling: As for `chat`.
            stop: As for `chat`.
            seed: As for `chat`: each reply begins with it anew.
            inputs: As for `chat`, for all turns.
            adapter: As for `chat`.

        Raises:
            ValueError: As for `chat`.
            ArtifactError: As for `chat`.
            ImportError: As for `chat`.
        """
        options = _Options(
            tools=tools,
            documents=documents,
            template=template,
            variables=variables,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            seed=seed,
        )
        self.messages: list[Message] = []
        """The conversation so far; it may be changed between turns."""
        self.reply: Reply | None = None
        """The last reply."""
        self._system = system
        model = conditioned(model, inputs, adapter)
        self._replier = _Replier(model, options)
        self._kept = KeptStream(model)
        self._going: Generator[str] | None = None
        self.reset()

    @property
    def positions_read(self) -> int:
        """How many positions of all prompts were read; those found in the cache do not count."""
        return self._kept.positions_read

    def reset(self) -> None:
        """Begin anew, with the system message alone."""
        self.interrupt()
        self._kept.clear()
        self.reply = None
        self.messages = (
            [] if self._system is None else [{"role": "system", "content": self._system}]
        )

    def send(self, message: str | Message | Sequence[Message]) -> Reply:
        """Say something and get the whole reply.

        Args:
            message: What the user says; or a message, or several, such as the results of tools.

        Raises:
            ValueError: As for `chat`; the conversation is then as before.
        """
        for _ in self.stream(message):
            pass
        assert self.reply is not None
        return self.reply

    def stream(self, message: str | Message | Sequence[Message]) -> Iterator[str]:
        """Say something and get the reply in pieces, none of which ends within a character.

        With the last piece the message and the reply are part of the conversation. Who takes no
        more pieces (`close()`, an exception, the next call) ends the reply there; one that ended
        before its first token leaves the conversation as it was.

        Args:
            message: As for `send`.

        Raises:
            ValueError: As for `send`, before the first piece is asked for.
        """
        self.interrupt()
        if isinstance(message, str):
            new: list[Message] = [{"role": "user", "content": message}]
        else:
            new = [message] if isinstance(message, Mapping) else list(message)
        sequence, choices = self._replier.reply([*self.messages, *new], self._kept)
        self._going = self._pieces(sequence, choices, new)
        return self._going

    def interrupt(self) -> None:
        """End the reply that `stream` is about to give, where it is; without one, do nothing."""
        going, self._going = self._going, None
        if going is not None:
            going.close()

    def _pieces(
        self, sequence: GrowingSequence, choices: Iterator[Choice], new: Sequence[Message]
    ) -> Generator[str]:
        try:
            for choice in choices:
                if choice.text:
                    yield choice.text
        finally:
            if sequence.ids:
                sequence.interrupt()
                self.reply = self._replier.read(sequence.continuation())
                self._kept.wrote(self.reply.ids)
                self.messages += self._replier.with_reply(self.messages, new, self.reply)


class _Replier:
    """Turns conversations into prompts of a model, and begins their continuations."""

    def __init__(self, model: LanguageModel, options: _Options) -> None:
        check_model(model)
        self._model, self._options = model, options
        self._tokenizer = required_tokenizer(model)
        folder = self._tokenizer.path.parent
        template = ChatTemplate.of_folder(folder, options.template)
        if template is None:
            raise ValueError(
                f"a chat needs a chat template, and the folder {folder} has none: pass the "
                "one that the model was trained with, "
                "template=Path('chat_template.jinja').read_text(), or continue texts with "
                "model.generate"
            )
        self._template = template
        self._writer = PromptWriter(
            self._tokenizer,
            template,
            tools=options.tools,
            documents=options.documents,
            variables=options.variables,
        )
        self._sampling = options.sampling or default_sampling(folder)

    def reply(
        self, messages: Sequence[Message], reader: PromptReader | None
    ) -> tuple[GrowingSequence, Iterator[Choice]]:
        """A reply that is still empty, and the steps by which it grows."""
        if isinstance(messages, str | Mapping):
            raise TypeError(
                "messages must be a list such as [{'role': 'user', 'content': 'Hello'}], got "
                f"{str(messages)[:80]!r}"
            )
        model, given = self._model, [plain_message(message) for message in messages]
        ids = self._writer.ids(given)
        limit = model.contract.max_seq_len
        if limit is not None and len(ids) > limit:
            raise ValueError(
                f"the conversation has {len(ids)} ids, and the model takes {limit}; "
                f"{self._advice(given, limit)}"
            )
        options = self._options
        plan = make_plan(
            model,
            max_new_tokens=options.max_new_tokens,
            sampling=self._sampling,
            stop=[
                *([options.stop] if isinstance(options.stop, str) else options.stop),
                *self._writer.end_ids(),
            ],
            constraint=options.constraint,
            reader=reader,
            needs_text=True,
            joins_prompt=continues(given),
        )
        (prompt,) = prompt_ids(model, [ids])
        return grow(model, prompt, plan, seed=options.seed)

    def _advice(self, messages: list[dict[str, Any]], limit: int) -> str:
        """Which messages to leave out, the oldest ones, so that a reply has room."""
        first = 1 if messages[0].get("role") == "system" else 0
        for start in range(first + 1, len(messages)):
            if messages[start].get("role") != "user":
                continue
            try:
                count = len(self._writer.ids([*messages[:first], *messages[start:]]))
            except ValueError:  # the template does not take a conversation that begins here
                continue
            if count + min(ROOM, limit // 4) <= limit:
                return f"without messages[{first}:{start}], the oldest, it has {count}"
        return "its last message alone is too long, with what the template puts around it"

    def read(self, continuation: Continuation) -> Reply:
        """The reply with the calls that are in it."""
        found: dict[str, Any] = {
            f.name: getattr(continuation, f.name) for f in fields(Continuation)
        }
        tools, text = self._options.tools, continuation.text or ""
        if tools is None:
            return Reply(**found, content=text)
        form = form_of(self._template.source(has_tools=True))
        if form is None:
            problem = (
                "the chat template shows calls in none of the known forms, so calls are left in "
                f"the text; known are {', '.join(FORMS.values())}"
            )
            return Reply(**found, content=text, tool_problem=problem)
        # Marks of calls may be special tokens, which the text leaves out.
        whole = self._tokenizer.decode(continuation.ids, special_tokens=True)
        try:
            content, calls = read_calls(whole, form, names_of(tools))
        except ValueError as error:
            return Reply(**found, content=text, tool_format=form, tool_problem=str(error))
        return Reply(
            **found, content=content if calls else text, tool_calls=calls, tool_format=form
        )

    def with_reply(
        self, before: Sequence[Message], new: Sequence[Message], reply: Reply
    ) -> list[Message]:
        """Messages with a reply behind them, or at the end of the one that begins it."""
        if new and new[-1].get("role") == "assistant":
            begun = _joined(dict(new[-1]), len(new) - 1)
            return [*new[:-1], {**begun, "content": begun["content"] + (reply.text or "")}]
        earlier = [message.get("tool_calls") for message in (*before, *new)]
        count = sum(len(calls) for calls in earlier if isinstance(calls, list))
        message = reply.message(first_call=count)
        if reply.tool_calls and not self._renders([*before, *new, message], reply):
            message = {"role": "assistant", "content": reply.text or ""}
        return [*new, message]

    def _renders(self, messages: Sequence[Message], reply: Reply) -> bool:
        """Whether the template writes the calls of a reply: some take one, or none."""
        try:
            text = self._template.render(
                messages,
                tools=self._options.tools,
                documents=self._options.documents,
                variables=self._options.variables,
            )
        except ValueError:
            return False
        return all(call.name in text for call in reply.tool_calls)


class PromptWriter:
    """Writes conversations as the prompts of a model, by the template of its folder."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Take what the prompts have in common; see `chat`."""
        self._tokenizer, self._template = tokenizer, template
        self._tools, self._documents, self._variables = tools, documents, variables

    def ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The prompt of messages out of `plain_message`: all special tokens come from the template.

        Raises:
            ValueError: The template does not take them, or a part is no text.
        """
        return self._tokenizer.encode(self.text(messages), add_special_tokens=False)

    def text(self, messages: Sequence[dict[str, Any]]) -> str:
        """The same as text. A last message of the assistant's is left open, to be continued.

        Raises:
            ValueError: As for `ids`.
        """
        has_parts = any(isinstance(message.get("content"), list) for message in messages)
        if not has_parts:
            return self._render(messages)
        joined = [_joined(message, place) for place, message in enumerate(messages)]
        parts = [
            part for m in messages if isinstance(m.get("content"), list) for part in m["content"]
        ]
        # Templates that know parts go through them; others fail on a list, or write it as Python
        # does.
        with contextlib.suppress(ValueError):
            text = self._render(messages)
            if not any(repr(part) in text for part in parts):
                return text
        return self._render(joined)

    def _render(self, messages: Sequence[dict[str, Any]]) -> str:
        is_continued = continues(messages)
        return self._template.render(
            messages,
            tools=self._tools,
            documents=self._documents,
            add_generation_prompt=not is_continued,
            continue_final_message=is_continued,
            variables=self._variables,
        )

    def end_ids(self) -> list[int]:
        """What the template writes behind a reply, where that is one token."""
        end = self._template.tokens.get("eos_token", "")
        ids = self._tokenizer.encode(end, add_special_tokens=False)
        return ids if len(ids) == 1 else []


def continues(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether the last message is a reply that was begun."""
    return bool(messages) and messages[-1].get("role") == "assistant"


def _joined(message: dict[str, Any], place: int) -> dict[str, Any]:
    """A message with its parts in one text."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    for part in content:
        if not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(
                f"messages[{place}] has a part of type {kind!r}; a chat takes only text: "
                "{'type': 'text', 'text': ...}"
            )
    return {**message, "content": "".join(part["text"] for part in content)}
