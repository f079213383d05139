"""Let a continuation be only what a JSON schema, a regular expression or a grammar allows."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from causal_onnx.runtime.json_text import MAX_DEPTH, depth_of, read_json
from causal_onnx.runtime.text.extras import import_extra
from causal_onnx.runtime.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

T = TypeVar("T")

__all__ = ["Constraint", "Grammar", "Guide"]

COMPACT = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}

NO_END = "<|causal_onnx: no end|>"
"""Stands for the end of a text where no id of the model does."""

SCHEMA, REGEX, GRAMMAR = "JSON schema", "regular expression", "grammar"

STACK_BYTES = 32 << 20
"""Of the thread that compiles: llguidance calls itself for what refers to what, and where the stack
ends, so does the process."""

MAX_SOURCE_BYTES = 1 << 17
"""A regular expression of as many alternatives takes 0.2 s to compile."""

MAX_PARTS = 2000
"""Of a grammar: rules, groups and repetitions together. On a stack of `STACK_BYTES` the process
survives 9,500 rules in a chain, and not 11,000; with 25 groups in each, 600 and not 800."""

MAX_LITERALS = 2000
"""Of a grammar: texts and regular expressions. 5,000 take 80 ms for each token."""

MAX_LEVELS = 1000
"""Of a JSON schema: objects and arrays in one another, followed through each reference. On a stack
of `STACK_BYTES` the process survives 9,000, and not 12,000."""

MAX_SCHEMA_OBJECTS = 4000
"""Of a JSON schema; 3,000 properties take 2 s to compile."""

MAX_ROW = 600
"""What a grammar may mean at once, at one place of a text (`max_items_in_row`). An ambiguous one of
two lines takes 8 s for 200 tokens with twice as much; with this, 1.3 s until it is refused."""

MOST_TRIED = 300
"""Beginnings of texts that are tried until it is left open whether a vocabulary can write one."""

MOST_LACKING = 50
"""Characters of a regular expression that are tried likewise; each takes 5 ms."""


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
                schema = read_json(schema, max_bytes=MAX_SOURCE_BYTES)
            except ValueError as error:
                raise ValueError(f"the JSON schema is not JSON: {error}") from error
        if not isinstance(schema, Mapping):
            raise ValueError(f"a JSON schema must be an object such as {{}}, got {schema!r}")
        if depth_of(schema) > MAX_DEPTH:
            raise ValueError(f"the JSON schema is nested more than {MAX_DEPTH} deep")
        options = {} if whitespace else {"x-guidance": COMPACT}
        grammar = {"grammars": [{"json_schema": {**options, **schema}}]}
        return cls(SCHEMA, json.dumps(grammar))

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Text that a regular expression matches as a whole (syntax of Rust's crate regex)."""
        return cls(REGEX, pattern)

    @classmethod
    def lark(cls, grammar: str) -> Constraint:
        """Text of a context-free grammar, in Lark's notation; its start rule is `start`."""
        return cls(GRAMMAR, grammar)

    def __post_init__(self) -> None:
        """Refuse what llguidance would not survive, or take too long over."""
        if self.kind not in (SCHEMA, REGEX, GRAMMAR) or not isinstance(self.source, str):
            raise ValueError(
                f"make a constraint with Constraint.json_schema, .regex or .lark, got {self.kind!r}"
            )
        if len(self.source) > MAX_SOURCE_BYTES:
            raise ValueError(
                f"the {self.kind} has {len(self.source)} characters, expected up to "
                f"{MAX_SOURCE_BYTES}"
            )
        if self.kind == SCHEMA:
            _check_schema(self.source)
        elif self.kind == GRAMMAR:
            _check_grammar(self.source)


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
            ValueError: The constraint, or the tokenizer, cannot be used, or every text that is
                allowed has a character that no token has.
            ImportError: llguidance is not installed.
        """
        library = _library()
        # The model never gives others, and llguidance would make room for them.
        within = sorted(token for token in end_ids if 0 <= token < vocab_size)
        tokens, self._added, missing = _ll_tokenizer(tokenizer, vocab_size, tuple(within))
        source = constraint.source
        # A schema needs a wide row for its properties, and is hardly ambiguous.
        limits = library.LLParserLimits()
        if constraint.kind == REGEX:
            source = library.LLMatcher.grammar_from_regex(source)
        elif constraint.kind == GRAMMAR:
            source = library.LLMatcher.grammar_from_lark(source)
            limits = library.LLParserLimits(max_items_in_row=MAX_ROW)
        self._vocab_size, self._tokens = vocab_size, tokens
        self._matcher = _matcher(tokens, source, limits)
        if self._matcher.is_error():
            raise ValueError(
                f"the {constraint.kind} cannot be used: {_one_line(self._matcher.get_error())}"
            )
        self._source, self._limits = source, limits
        needed = _needed_bytes(self._bytes, missing) if missing else ""
        if needed is None and constraint.kind == REGEX:
            needed = _needed_by_regex(source, missing)
        if needed:
            raise ValueError(
                f"this model cannot write what the {constraint.kind} asks for: every such text has "
                f"{needed}, and no token of {tokenizer.path} has it"
            )

    def start(self) -> Guide:
        """What one continuation, still empty, is led by."""
        return Guide(self._matcher.deep_copy(), self._vocab_size, self._added, self._wanted_after)

    @functools.cached_property
    def _bytes(self) -> Any:
        """The same over bytes, whatever the tokens."""
        return _matcher(_library().LLTokenizer("byte"), self._source, self._limits)

    def _wanted_after(self, ids: Sequence[int]) -> str:
        """The characters that may follow a continuation, were there tokens for them."""
        matcher = self._bytes.deep_copy()
        matcher.consume_tokens(list(self._tokens.decode_bytes(list(ids))))
        return _named(matcher, _allowed_bytes(matcher))


class Guide:
    """Follows one continuation through a grammar."""

    def __init__(
        self,
        matcher: Any,
        vocab_size: int,
        never: int | None,
        wanted_after: Callable[[Sequence[int]], str],
    ) -> None:
        self._matcher, self._vocab_size, self._never = matcher, vocab_size, never
        self._wanted_after = wanted_after
        self._ids: list[int] = []

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped())

    def allowed(self) -> Array:
        """(vocab,), bool: the ids that may follow.

        Raises:
            ValueError: None may, although something must.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        # stop_reason() says InternalError of all.
        if _one_line(self._matcher.get_error()) == "NoExtensionBias":
            raise ValueError(
                f"the constraint asks for {self._wanted_after(self._ids)} after {len(self._ids)} "
                "tokens, and the model has no token that continues so"
            )
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(np.bool_)
        if self._never is not None and self._never < self._vocab_size:
            allowed[self._never] = False
        return allowed

    def accept(self, token: int) -> None:
        """Follow the continuation by one id, which must be allowed.

        Raises:
            ValueError: It is not, or the grammar has become too ambiguous to follow.
        """
        if not self._matcher.consume_token(token):
            error = _one_line(self._matcher.get_error())
            if " items; max " in error:
                self._check()
            raise ValueError(f"id {token} does not fit the grammar: {error}")
        self._ids.append(token)

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
) -> tuple[Any, int | None, frozenset[int]]:
    """The tokens as llguidance wants them, the id that it must have but the model has not, and the
    bytes that no token has."""
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
    missing = set(range(256))
    for token in range(min(vocab_size, tokenizer.vocab_size)):
        if token != added and not tokens.is_special_token(token):
            missing.difference_update(tokens.decode_bytes([token]))
        if not missing:
            break
    return tokens, added, frozenset(missing)


def _matcher(tokens: Any, source: str, limits: Any) -> Any:
    return _on_deep_stack(lambda: _library().LLMatcher(tokens, source, log_level=0, limits=limits))


def _allowed_bytes(matcher: Any) -> list[int]:
    """What may follow, of a matcher over bytes; those first that end things soon."""
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    return sorted(np.flatnonzero(bits[:256]).tolist(), key=lambda byte: (byte not in b'"]}', byte))


def _needed_bytes(start: Any, missing: frozenset[int]) -> str | None:
    """The characters of which every text must have one, and no token has any.

    Looks for a text without the bytes that are missing, depth first; "" where there is one, None
    where `MOST_TRIED` beginnings do not tell.
    """
    needed: dict[str, None] = {}
    path: list[tuple[Any, Iterator[int]]] = []
    matcher = start
    for _ in range(MOST_TRIED):
        allowed = _allowed_bytes(matcher)
        if matcher.is_accepting() or matcher.is_error():
            return ""
        if not missing.isdisjoint(allowed):
            needed[_named(matcher, [byte for byte in allowed if byte in missing])] = None
        path.append((matcher, iter([byte for byte in allowed if byte not in missing])))
        while path and (byte := next(path[-1][1], None)) is None:
            path.pop()
        if not path:
            return " or ".join(needed)
        matcher = path[-1][0].deep_copy()
        matcher.consume_token(byte)
    return None


def _needed_by_regex(source: str, missing: frozenset[int]) -> str:
    """A character of a regular expression without which nothing matches, and which is missing."""
    library = _library()
    pattern = json.loads(source)["grammars"][0]["lark_grammar"].removeprefix("start: ")
    lacking = [char for char in dict.fromkeys(pattern) if not missing.isdisjoint(char.encode())]
    for char in lacking[:MOST_LACKING]:
        grammar = f"start: TEXT\nTEXT: {pattern} & /[^\\u{{{ord(char):x}}}]*/"
        source = library.LLMatcher.grammar_from_lark(grammar)
        matcher = _matcher(library.LLTokenizer("byte"), source, library.LLParserLimits())
        if matcher.is_error():
            return ""
        if not _allowed_bytes(matcher) and not matcher.is_accepting():
            return repr(char)
    return ""


def _named(matcher: Any, allowed: Sequence[int]) -> str:
    """The characters that begin with these bytes, of which one may follow."""
    forced = matcher.compute_ff_bytes().decode("utf-8", errors="ignore")
    if forced:
        return repr(forced[0])
    names = [repr(chr(byte)) if byte < 128 else f"byte 0x{byte:02X}" for byte in sorted(allowed)]
    return " or ".join(names[:8]) + (" or ..." if len(names) > 8 else "")


def _check_schema(source: str) -> None:
    """Bound how deep a schema is when its references are followed, and how much it holds."""
    data = read_json(source, max_bytes=MAX_SOURCE_BYTES)
    (grammar,) = data["grammars"]
    schema = grammar["json_schema"]
    objects, references = 0, set()
    rest = [schema]
    while rest:
        item = rest.pop()
        if isinstance(item, dict):
            objects += 1
            if isinstance(item.get("$ref"), str):
                references.add(item["$ref"])
        rest += item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
    # Each is followed once.
    levels = depth_of(schema) + sum(depth_of(_referred(schema, name)) for name in references)
    for what, count, most in (
        ("objects", objects, MAX_SCHEMA_OBJECTS),
        ("levels through its references", levels, MAX_LEVELS),
    ):
        if count > most:
            raise ValueError(f"the JSON schema has {count} {what}, expected up to {most}")


def _referred(schema: Any, reference: str) -> object:
    """What a JSON pointer names; the whole where that is not found."""
    found: Any = schema
    for part in reference.removeprefix("#").strip("/").split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict) or name not in found:
            return schema
        found = found[name]
    return found


def _check_grammar(source: str) -> None:
    """Bound how many parts a grammar has, and so how deep they can lie in one another."""
    # Signs in texts are counted too: what is a text, llguidance and we might see in two ways.
    parts = sum(source.count(sign) for sign in ":([{?*+~$")
    literals = (source.count('"') + source.count("/")) // 2
    for what, count, most in (
        ("rules, groups and repetitions", parts, MAX_PARTS),
        ("texts and patterns", literals, MAX_LITERALS),
    ):
        if count > most:
            raise ValueError(f"the grammar has {count} {what}, expected up to {most}")


def _on_deep_stack(make: Callable[[], T]) -> T:
    """Call `make` on a thread with a stack of `STACK_BYTES`, and give its result."""
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            results.append(make())
        except BaseException as error:  # raised again in the caller, also where Rust panics
            errors.append(error)

    with _STACK:
        before = threading.stack_size(STACK_BYTES)
        try:
            thread = threading.Thread(target=body, name="causal-onnx-grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    if errors:
        if isinstance(errors[0], Exception):
            raise errors[0]
        raise ValueError(f"the constraint cannot be used: {errors[0]}") from errors[0]
    return results[0]


_STACK = threading.Lock()


def _one_line(message: str) -> str:
    """What llguidance says, without the state of its parser behind it."""
    return " ".join(message.partition("<state>")[0].split())
