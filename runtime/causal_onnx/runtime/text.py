"""Text to token ids and back, by a `tokenizer.json`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.extras import import_extra
from causal_onnx.runtime.writing import TextStream

__all__ = ["TOKENIZER_FILE", "Tokenizer"]

TOKENIZER_FILE = "tokenizer.json"

END_FILES = ("generation_config.json", "config.json", "tokenizer_config.json")
"""Where the tokens that end a text may be named beside a tokenizer; the first that does decides, as
in transformers."""


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
        content = self.path.read_text(encoding="utf-8", errors="replace")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ArtifactError(f"{self.path} is no tokenizer: {error}") from error
        self.end_ids = self._find_end_ids()
        """The ids that end a text, as the files beside the tokenizer name them; often none."""

    def __repr__(self) -> str:
        return f"<Tokenizer {self.path}: {self.vocab_size} ids>"

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with what the tokenizer puts around it (often a token to begin)."""
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens; bytes that make no character become U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def stream(self) -> TextStream:
        """For the text of ids that come one by one; it never splits a character."""
        return TextStream(self.decode)

    def to_json(self) -> str:
        """The tokenizer as the text of a `tokenizer.json`."""
        return str(self._tokenizer.to_str())

    def to_json_with(self, token: str) -> tuple[str, int]:
        """The same with a special token more, and its id; this tokenizer stays as it is."""
        copy = self._tokenizer.from_str(self.to_json())
        copy.add_special_tokens([token])
        return str(copy.to_str()), int(copy.token_to_id(token))

    def _find_end_ids(self) -> tuple[int, ...]:
        for name in END_FILES:
            path = self.path.with_name(name)
            if not path.is_file():
                continue
            try:
                found: Any = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ArtifactError(f"{path} is not JSON: {error}") from error
            if not isinstance(found, dict):
                continue
            ids = found.get("eos_token_id")
            token = found.get("eos_token")
            if isinstance(token, dict):
                token = token.get("content")
            if ids is None and isinstance(token, str):
                ids = self._tokenizer.token_to_id(token)
            if ids is not None:
                return tuple(ids) if isinstance(ids, list) else (int(ids),)
        return ()
