"""Text to token ids and back, by a `tokenizer.json`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.json_text import read_json, read_json_object
from causal_onnx.runtime.text.detokenise import TextStream
from causal_onnx.runtime.text.extras import import_extra

__all__ = ["TOKENIZER_FILE", "Tokenizer", "read_tokenizer", "token_ids"]

TOKENIZER_FILE = "tokenizer.json"

END_FILES = ("generation_config.json", "config.json", "tokenizer_config.json")
"""Where the tokens that end a text may be named beside a tokenizer; the first that does decides, as
in transformers."""


MAX_TOKENIZER_BYTES = 128 << 20
"""The largest that we know, of 262,144 ids, takes 33 MB."""

MAX_VOCAB = 1 << 22
"""Ids; the most that we know are 262,144. A mask is made of as many bits for every token."""

MAX_GROWTH = 4096
"""How many characters may come of one, in the worst case. Real ones replace a few characters one by
one and put two ids around a text: below 100."""


class Tokenizer:
    """Turns text into token ids and back; needs the package tokenizers (extra `text`)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read a tokenizer.

        Args:
            path: A `tokenizer.json`, or the folder that holds one.

        Raises:
            FileNotFoundError: There is none.
            ArtifactError: It cannot be read.
            ImportError: The package tokenizers is not installed.
        """
        given = Path(path)
        self.path = given / TOKENIZER_FILE if given.is_dir() else given
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no tokenizer {self.path}")
        tokenizers = import_extra("tokenizers", extra="text", purpose="text")
        content = read_tokenizer(self.path).decode("utf-8", errors="replace")
        with _errors_of_library(f"{self.path} is not a tokenizer", ArtifactError):
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
            # What a file says of these is for training; a length could fill any memory.
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            vocab = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1
        """One more than the largest id, added tokens included."""
        if self.vocab_size > MAX_VOCAB:
            raise ArtifactError(
                f"{self.path} has the id {self.vocab_size - 1}, expected less than {MAX_VOCAB}"
            )
        self._check_growth()
        self.end_ids = self._find_end_ids()
        """The ids that end a text, as the files beside the tokenizer name them; often none."""

    def __repr__(self) -> str:
        return f"<Tokenizer {self.path}: {self.vocab_size} ids>"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text.

        Args:
            text: Special tokens that are written out in it become their ids.
            add_special_tokens: Add what the tokenizer puts around a text, often a token to begin.

        Raises:
            ValueError: The tokenizer fails on it.
        """
        with _errors_of_library(f"{self.path} cannot encode a text of {len(text)} characters"):
            encoding = self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return list(encoding.ids)

    def decode(self, ids: Sequence[int], *, special_tokens: bool = False) -> str:
        """The text of ids; bytes that make no character become U+FFFD.

        Args:
            ids: Of tokens.
            special_tokens: Write those out, instead of leaving them out.

        Raises:
            ValueError: The tokenizer fails on them.
        """
        with _errors_of_library(f"{self.path} cannot decode {len(ids)} ids"):
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=not special_tokens))

    def token_text(self, token: int) -> str:
        """The text of one id as it stands within a text, or the name of a special token; bytes that
        make no character by themselves become U+FFFD.

        Raises:
            ValueError: The tokenizer fails on it.
        """
        once = self.decode([token])
        # Many decoders drop a space at the beginning of a text: the second one has it.
        text = self.decode([token, token])[len(once) :]
        return text or str(self._tokenizer.id_to_token(token) or "")

    def stream(self, *, after: Sequence[int] = ()) -> TextStream:
        """For the text of ids that come one by one; it never splits a character.

        Args:
            after: The ids before, such as a prompt's. Many tokenizers write a space at the
                beginning of a token and drop the one at the beginning of a text: with the ids
                before, the text of the prompt and that of the stream, put together, are the text
                of all ids.
        """
        return TextStream(self.decode, after=after)

    def to_json(self) -> str:
        """The tokenizer as the text of a `tokenizer.json`."""
        return str(self._tokenizer.to_str())

    def to_json_with(self, token: str) -> tuple[str, int]:
        """The same with a special token more, and its id; this tokenizer stays as it is."""
        copy = self._tokenizer.from_str(self.to_json())
        copy.add_special_tokens([token])
        return str(copy.to_str()), int(copy.token_to_id(token))

    def _check_growth(self) -> None:
        """Refuse what makes a short text fill the memory, of which Rust ends the process."""
        growth = 1
        for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
            step = getattr(self._tokenizer, part)
            if step is None:
                continue
            for item in _objects(read_json(step.__getstate__())):
                if item.get("type") == "Replace":
                    growth *= 1 + len(str(item.get("content", "")))
                elif item.get("type") == "TemplateProcessing":
                    growth *= 1 + _template_ids(item)
        if growth > MAX_GROWTH:
            raise ArtifactError(
                f"{self.path} may make a text {growth} times longer, expected up to {MAX_GROWTH}"
            )

    def _find_end_ids(self) -> tuple[int, ...]:
        for name in END_FILES:
            path = self.path.with_name(name)
            if not path.is_file():
                continue
            found = read_json_object(path)
            ids = found.get("eos_token_id")
            token = found.get("eos_token")
            if isinstance(token, dict):
                token = token.get("content")
            if ids is None and isinstance(token, str):
                ids = self._tokenizer.token_to_id(token)
            if ids is not None:
                return token_ids(ids, f"eos_token_id in {path}")
        return ()


def read_tokenizer(path: Path) -> bytes:
    """The content of a `tokenizer.json`.

    Raises:
        ArtifactError: It is larger than any real one.
    """
    with path.open("rb") as file:
        content = file.read(MAX_TOKENIZER_BYTES + 1)
    if len(content) > MAX_TOKENIZER_BYTES:
        raise ArtifactError(f"{path} is larger than {MAX_TOKENIZER_BYTES} bytes")
    return content


def token_ids(value: object, what: str) -> tuple[int, ...]:
    """One id, or a list of them, as a configuration file states them.

    Raises:
        ArtifactError: They are something else.
    """
    ids = value if isinstance(value, list) else [value]
    for item in ids:
        if type(item) is not int or not 0 <= item < MAX_VOCAB:
            raise ArtifactError(
                f"{what} is {str(value)[:60]}, expected an id, or a list of ids, from 0 to "
                f"{MAX_VOCAB - 1}"
            )
    return tuple(ids)


@contextlib.contextmanager
def _errors_of_library(what: str, kind: type[Exception] = ValueError) -> Iterator[None]:
    """Turn what tokenizers raises into one error.

    It raises nothing narrower than Exception; where its Rust code panics, as on a regular
    expression that takes too many steps, a BaseException of a class that cannot be imported.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, MemoryError):
            raise
        raise kind(f"{what}: {error}") from error


def _objects(data: object) -> Iterator[dict[str, Any]]:
    """The objects in parsed JSON, however deep."""
    if isinstance(data, dict):
        yield data
    for item in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _objects(item)


def _template_ids(template: dict[str, Any]) -> int:
    """At most how many ids a template puts around a text."""
    pieces = [*template.get("single", []), *template.get("pair", [])]
    special = template.get("special_tokens", {})
    most = max((len(_ids_of(item)) for item in special.values()), default=0)
    return len(pieces) * most


def _ids_of(special: object) -> list[Any]:
    ids = special.get("ids") if isinstance(special, dict) else None
    return ids if isinstance(ids, list) else []
