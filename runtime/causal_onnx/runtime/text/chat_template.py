"""Write a conversation as the text that a chat model reads, by the template of its folder."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.json_text import read_optional_json_object
from causal_onnx.runtime.text.sandbox import make_environment

__all__ = ["ChatTemplate", "Message", "plain_message"]

Message = Mapping[str, Any]
"""`{"role": "user", "content": "Hello"}`; templates read other keys, such as `tool_calls`, too."""

TEMPLATE_FILE = "chat_template.jinja"
MORE_TEMPLATES = "additional_chat_templates"
"""A folder of templates for some purpose, which is the name of the file."""
CONFIG_FILE, TOKENS_FILE = "tokenizer_config.json", "special_tokens_map.json"

DEFAULT, FOR_TOOLS = "default", "tool_use"

MOST_TEMPLATE_BYTES = 1 << 20
"""The longest that we know has 25 kB."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Where messages have what a model thought, by the first name that is there."""

TAG = "<causal-onnx: the message goes on here> "
"""Put behind a text to find its end; the space shows whether the template keeps one."""


class ChatTemplate:
    """Renders conversations as transformers' `apply_chat_template` does (extra `text`).

    Templates are programs of other people. They run in jinja2's sandbox, see nothing but the
    messages, and fail where they do too much.
    """

    def __init__(
        self,
        source: str | Mapping[str, str],
        *,
        tokens: Mapping[str, str] | None = None,
        where: str = "the chat template",
    ) -> None:
        """Take a template.

        Args:
            source: A template in jinja2's language, or several by name: "default", and "tool_use"
                for conversations with tools.
            tokens: Special tokens that it may write, such as `{"bos_token": "<s>"}`.
            where: What it is called in messages.
        """
        self._sources = {DEFAULT: source} if isinstance(source, str) else dict(source)
        self.tokens: Mapping[str, str] = dict(tokens or {})
        """The special tokens that it may write, by name."""
        self._where = where

    @classmethod
    def of_folder(cls, folder: Path, template: str | None = None) -> ChatTemplate | None:
        """The templates in the folder of a tokenizer; None if there are none.

        Args:
            folder: With `chat_template.jinja`, `additional_chat_templates/` and
                `tokenizer_config.json`, as far as there are any.
            template: One to use in their place, with the special tokens of the folder.

        Raises:
            ArtifactError: A file cannot be read.
        """
        config = read_optional_json_object(folder / CONFIG_FILE)
        tokens = _special_tokens(config, folder)
        if template is not None:
            return cls(template, tokens=tokens)
        sources = _templates(config, folder)
        if not sources:
            return None
        return cls(sources, tokens=tokens, where=f"the chat template of {folder}")

    def source(self, *, has_tools: bool) -> str:
        """The template, in jinja2's language, that conversations with or without tools take.

        Raises:
            ValueError: There are several, and none is the default.
        """
        return self._sources[self._name(has_tools)]

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Write a conversation as text.

        Args:
            messages: At least one.
            tools: That the model may call, each as a JSON schema.
            documents: That it may quote, each with a title and a text.
            add_generation_prompt: End with the beginning of a reply.
            continue_final_message: End within the last message, where the model goes on.
            variables: Others that the template knows, such as `{"enable_thinking": False}`.

        Raises:
            ValueError: The template refuses these messages, or fails on them.
            TypeError: The messages are something else.
            ArtifactError: It is no template.
            ImportError: jinja2 is not installed (extra `text`).
        """
        if continue_final_message and add_generation_prompt:
            raise ValueError("a conversation either begins a reply or continues its last message")
        environment, template = self._ready(self._name(tools is not None))
        given = [plain_message(message) for message in messages]
        if not given:
            raise ValueError("a conversation needs at least one message")
        last = _mark_end(given[-1]) if continue_final_message else ""
        environment.begin()
        try:
            text = template.render(
                **{
                    **self.tokens,
                    **_plain(dict(variables or {})),
                    "messages": given,
                    "tools": _plain(tools),
                    "documents": _plain(documents),
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except Exception as error:  # a template may raise anything, as a program does
            said = str(error) or type(error).__name__
            raise ValueError(f"{self._where} does not take this conversation: {said}") from error
        return self._up_to_mark(text, last) if continue_final_message else str(text)

    def _name(self, has_tools: bool) -> str:
        if has_tools and FOR_TOOLS in self._sources:
            return FOR_TOOLS
        if DEFAULT not in self._sources:
            raise ValueError(
                f"{self._where} has several templates and none is the default: "
                f"{', '.join(sorted(self._sources))}"
            )
        return DEFAULT

    def _ready(self, name: str) -> tuple[Any, Any]:
        """A template with the environment that it runs in."""
        try:
            return _compiled(self._sources[name])
        except ImportError:
            raise
        except Exception as error:  # jinja2's own errors, and those of Python's compiler
            line = getattr(error, "lineno", None)
            place = "" if line is None else f" in line {line}"
            raise ArtifactError(f"{self._where} cannot be read{place}: {error}") from error

    def _up_to_mark(self, text: str, last: str) -> str:
        end = text.rfind(TAG.strip())
        if end < 0 or last.strip() not in text:
            raise ValueError(f"{self._where} changes the last message, so it cannot be continued")
        keeps_space = text.startswith(TAG, end)
        return text[:end] if keeps_space else text[:end].rstrip()


@functools.lru_cache(maxsize=8)  # 25 ms for a long one
def _compiled(source: str) -> tuple[Any, Any]:
    environment = make_environment()
    return environment, environment.from_string(source)


def plain_message(message: Message) -> dict[str, Any]:
    """A copy of a message, out of plain data, with thoughts under each of their usual names.

    Raises:
        TypeError: It is no message, or holds something else.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise TypeError(
            f"a message must be a dict such as {{'role': 'user', 'content': 'Hello'}}, got "
            f"{str(message)[:80]}"
        )
    found = _plain({name: value for name, value in message.items() if value is not None})
    thought = next((found[name] for name in REASONING if name in found), None)
    if thought is not None:
        found = {"thinking": thought, **found, "reasoning_content": thought}
    return dict(found)


def _plain(value: Any) -> Any:
    """A copy out of JSON's types: others have methods that no sandbox knows."""
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise TypeError(
        f"a chat template takes texts, numbers, lists and dicts, got {type(value).__name__}: "
        f"{str(value)[:60]}"
    )


def _mark_end(message: dict[str, Any]) -> str:
    """Put `TAG` behind the text of a message, which is returned."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + TAG
        return content
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text = part["text"]
            part["text"] = text + TAG
            return str(text)
    raise ValueError("the last message has no text to continue")


def _templates(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Name -> template; a file of its own goes before the tokenizer's configuration."""
    stated = config.get("chat_template")
    named = stated if isinstance(stated, list) else []
    if not (stated is None or isinstance(stated, str | list)) or not all(
        isinstance(item, dict)
        and isinstance(item.get("name"), str)
        and isinstance(item.get("template"), str)
        for item in named
    ):
        raise ArtifactError(
            f"chat_template in {folder / CONFIG_FILE} is {str(stated)[:60]}, expected a text, or a "
            "list of objects with name and template"
        )
    files = {DEFAULT: folder / TEMPLATE_FILE}
    files |= {path.stem: path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    found = {name: _read_text(path) for name, path in files.items() if path.is_file()}
    if found:
        return found
    return (
        {DEFAULT: stated} if isinstance(stated, str) else {x["name"]: x["template"] for x in named}
    )


def _special_tokens(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Name -> text, of what a template may write by name."""
    stated = dict(config)
    if "added_tokens_decoder" not in config:
        stated |= read_optional_json_object(folder / TOKENS_FILE)
    extra = stated.get("extra_special_tokens")
    if isinstance(extra, dict):
        stated |= extra
    found = {}
    for name, token in stated.items():
        text = token.get("content") if isinstance(token, dict) else token
        is_extra = isinstance(extra, dict) and name in extra
        if isinstance(text, str) and (name.endswith("_token") or is_extra):
            found[name] = text
    return found


def _read_text(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(MOST_TEMPLATE_BYTES + 1)
    if len(content) > MOST_TEMPLATE_BYTES:
        raise ArtifactError(f"{path} is larger than {MOST_TEMPLATE_BYTES} bytes")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not text in UTF-8: {error}") from error
