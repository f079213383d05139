"""Let a continuation be only what a JSON schema, a regular expression or a grammar allows."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.extras import import_extra
from causal_onnx.runtime.text import Tokenizer

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["Constraint", "Grammar", "Guide"]

COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}

NO_END = "<|causal_onnx: no end|>"
"""Stands for the end of a text where no id of the model does."""

REGEX = "regular expression"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What a continuation must be; made by `json_schema`, `regex` or `lark`.

    At each step only those tokens may be chosen after which the continuation can still become what
    is asked for, and it ends where nothing can follow. One that `max_new_tokens` ends earlier is
    the beginning of such a text. Needs a tokenizer and the package llguidance (extra `text`).
    """

    kind: str
    """As it is called in messages."""
    source: str
    """A regular expression, or a grammar in Lark's or in llguidance's notation."""

    @classmethod
    def json_schema(
        cls, schema: Mapping[str, Any] | str, *, whitespace: bool = False
    ) -> Constraint:
        """JSON that a schema allows; `{}` allows all JSON. Keys come in the order of the schema.

        Args:
            schema: A JSON schema, as JSON or parsed.
            whitespace: Allow any white space between the parts. A model that likes white space may
                then never end.

        Raises:
            ValueError: The text is no JSON object.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise ValueError(f"the JSON schema is not JSON: {error}") from error
        if not isinstance(schema, Mapping):
            raise ValueError(f"a JSON schema is an object such as {{}}, got {schema!r}")
        options = {} if whitespace else {"x-guidance": COMPACT}
        grammar = {"grammars": [{"json_schema": {**options, **schema}}]}
        return cls("JSON schema", json.dumps(grammar))

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that a regular expression matches as a whole (syntax of Rust's crate regex)."""
        return cls(REGEX, pattern)

    @classmethod
    def lark(cls, grammar: str) -> Constraint:
        """Text of a context-free grammar, in Lark's notation; its start rule is `start`."""
        return cls("grammar", grammar)


class Grammar:
    """A constraint made ready for the tokens of one model."""

    def __init__(
        self,
        constraint: Constraint,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        end_ids: frozenset[int] = frozenset(),
    ) -> None:
        """Compile a constraint.

        Args:
            constraint: What is allowed.
            tokenizer: Of the model.
            vocab_size: How many logits the model has.
            end_ids: The ids that may follow where the text is complete but could go on.

        Raises:
            ValueError: The constraint, or the tokenizer, cannot be used.
            ImportError: llguidance is not installed.
        """
        library = _library()
        tokens, self._added = _ll_tokenizer(tokenizer, vocab_size, tuple(sorted(end_ids)))
        source = constraint.source
        if constraint.kind == REGEX:
            source = library.LLMatcher.grammar_from_regex(source)
        self._vocab_size = vocab_size
        self._matcher = library.LLMatcher(tokens, source, log_level=0)
        if self._matcher.is_error():
            raise ValueError(
                f"the {constraint.kind} cannot be used: {_one_line(self._matcher.get_error())}"
            )

    def start(self) -> Guide:
        """What one continuation, still empty, is led by."""
        return Guide(self._matcher.deep_copy(), self._vocab_size, self._added)


class Guide:
    """Follows one continuation through a grammar."""

    def __init__(self, matcher: Any, vocab_size: int, never: int | None) -> None:
        self._matcher, self._vocab_size, self._never = matcher, vocab_size, never

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Array:
        """(vocab,), bool: the ids that may follow."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(np.bool_)
        if self._never is not None and self._never < self._vocab_size:
            allowed[self._never] = False
        return allowed

    def accept(self, token: int) -> None:
        """Follow the continuation by one id, which must be allowed.

        Raises:
            ValueError: It is not.
        """
        if not self._matcher.consume_token(token):
            raise ValueError(
                f"id {token} does not fit the grammar: {_one_line(self._matcher.get_error())}"
            )

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(
                f"the grammar cannot be followed: {_one_line(self._matcher.get_error())}"
            )


def _library() -> ModuleType:
    return import_extra("llguidance", extra="text", purpose="a constraint")


@functools.lru_cache(maxsize=4)  # half a second and some megabytes for a large vocabulary
def _ll_tokenizer(
    tokenizer: Tokenizer, vocab_size: int, end_ids: tuple[int, ...]
) -> tuple[Any, int | None]:
    """The tokens as llguidance wants them, and the id that it must have but the model has not."""
    text, added = tokenizer.to_json(), None
    if not end_ids:
        # llguidance would take one at a guess, any at worst, and the text could end with it.
        text, added = tokenizer.to_json_with(NO_END)
        end_ids = (added,)
    try:
        tokens = _library().LLTokenizer(
            text, n_vocab=max(vocab_size, end_ids[0] + 1), eos_token=list(end_ids)
        )
    except ValueError as error:
        raise ValueError(f"{tokenizer!r} cannot be used with a constraint: {error}") from error
    return tokens, added


def _one_line(message: str) -> str:
    return " ".join(message.split())
