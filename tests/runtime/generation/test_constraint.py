"""Continuations that a schema, a regular expression or a grammar allows."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from causal_onnx.runtime import Constraint, Model, PrefixCache, PromptLookup, Sampling
from causal_onnx.runtime.generation.constraint import Grammar, Guide
from tests.runtime.language import language_model, write_tokenizer

pytest.importorskip("tokenizers", reason="text needs the extra `text`")
pytest.importorskip("llguidance", reason="a constraint needs the extra `text`")

HOT = Sampling(temperature=3.0)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def is_valid(value: Any) -> bool:
    return (
        list(value) == ["name", "age", "tags"]
        and isinstance(value["name"], str)
        and len(value["name"]) <= 8
        and isinstance(value["age"], int)
        and 0 <= value["age"] <= 120
        and len(value["tags"]) <= 3
        and set(value["tags"]) <= {"a", "b"}
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return language_model(tokenizer=write_tokenizer(tmp_path_factory.mktemp("constraint")))


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """With an id that ends a text."""
    path = write_tokenizer(tmp_path_factory.mktemp("constraint"), end=True)
    return language_model(tokenizer=path)


def test_json_is_valid_under_its_schema_every_time(model: Model) -> None:
    constraint = Constraint.json_schema(SCHEMA)
    found = model.generate_batch(
        ["x"], n=40, max_new_tokens=120, sampling=HOT, seed=0, constraint=constraint
    )
    assert all(is_valid(json.loads(row.text)) for row in found)
    assert {row.finish for row in found} == {"complete"}
    assert len({row.text for row in found}) == 40
    free = model.generate("x", max_new_tokens=40, sampling=HOT, seed=0)
    with pytest.raises(ValueError, match="Expecting value"):
        json.loads(free.text)


def test_a_schema_as_text_and_white_space(model: Model) -> None:
    constraint = Constraint.json_schema(json.dumps(SCHEMA), whitespace=True)
    found = model.generate_batch(
        ["x"], n=20, max_new_tokens=300, sampling=HOT, seed=0, constraint=constraint
    )
    whole = [row.text for row in found if row.finish == "complete"]
    assert all(is_valid(json.loads(text)) for text in whole)
    assert any(text != json.dumps(json.loads(text), separators=(",", ":")) for text in whole)


@pytest.mark.parametrize("pattern", ["(ab|c/d){2,5}", "世+😀", "[0-9]{3}-[0-9]{4}"])
def test_a_regular_expression_matches_the_whole_text(ending: Model, pattern: str) -> None:
    options = {"max_new_tokens": 90, "sampling": HOT, "constraint": Constraint.regex(pattern)}
    for row in ending.generate_batch(["x"], n=8, seed=1, **options):
        if row.finish != "length":  # a repetition without end is ended by chance
            assert re.fullmatch(pattern, row.text)
        assert row.finish in ("complete", "stop", "length")


def test_where_no_id_ends_a_text_none_is_taken_for_it(model: Model) -> None:
    found = model.generate(
        "x", max_new_tokens=25, sampling=HOT, seed=0, constraint=Constraint.regex("a+")
    )
    assert re.fullmatch("a+", found.text)
    assert found.finish == "length"


def test_a_grammar_is_followed_token_by_token(model: Model) -> None:
    grammar = 'start: sum "="\nsum: NUMBER "+" NUMBER\nNUMBER: /[0-9]{1,3}/'
    constraint = Constraint.lark(grammar)
    options = {"max_new_tokens": 30, "sampling": HOT, "seed": 4, "constraint": constraint}
    choices = list(model.tokens("x", **options))
    assert re.fullmatch(r"\d{1,3}\+\d{1,3}=", "".join(choice.text for choice in choices))
    assert len(choices) > 3


def test_greedy_takes_the_likeliest_that_is_allowed(model: Model) -> None:
    found = model.generate("x", max_new_tokens=9, constraint=Constraint.regex("(a|b)"))
    ids = [model.tokenizer.encode(text)[0] for text in "ab"]
    logits = model(model.tokenizer.encode("x"))[-1]
    assert found.ids == (max(ids, key=lambda token: logits[token]),)


def test_guesses_and_a_prefix_cache_change_nothing(model: Model) -> None:
    prompt = json.dumps({"name": "x", "age": 3, "tags": ["a"]}) * 3
    options = {"max_new_tokens": 120, "constraint": Constraint.json_schema(SCHEMA)}
    plain = model.generate(prompt, **options)
    assert is_valid(json.loads(plain.text))
    cache = PrefixCache(model, capacity_positions=1000)
    for draft in (PromptLookup(), model, None):
        found = model.generate(prompt, draft=draft, prefix_cache=cache, **options)
        assert (found.ids, found.text, found.finish) == (plain.ids, plain.text, plain.finish)
    hot = model.generate(prompt, draft=model, sampling=HOT, seed=1, **options)
    assert is_valid(json.loads(hot.text))


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint.json_schema({"type": "wrong"}), "the JSON schema cannot be used: .*wrong"),
        (Constraint.regex("[a"), "the regular expression cannot be used: .*unclosed"),
        (Constraint.lark("start: foo"), 'the grammar cannot be used: .*unknown name: "foo"'),
    ],
)
def test_what_cannot_be_followed_is_refused(
    model: Model, constraint: Constraint, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.generate("x", max_new_tokens=9, constraint=constraint)


def test_what_is_no_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="the JSON schema is not JSON: Expecting"):
        Constraint.json_schema("{a")
    with pytest.raises(ValueError, match=r"a JSON schema must be an object such as \{\}, got 3"):
        Constraint.json_schema("3")


def test_a_constraint_that_the_bias_contradicts_says_so(model: Model) -> None:
    token = model.tokenizer.encode("a")[0]
    sampling = Sampling(logit_bias={token: float("-inf")})
    with pytest.raises(ValueError, match="no token is allowed"):
        model.generate("x", max_new_tokens=2, sampling=sampling, constraint=Constraint.regex("a"))


def test_a_constraint_needs_a_tokenizer_and_the_extra(
    model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    constraint = Constraint.regex("[ab]")
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        language_model().generate([1], max_new_tokens=1, constraint=constraint)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match="a constraint needs the package llguidance: pip install"):
        model.generate("x", max_new_tokens=1, constraint=constraint)


def chained(count: int) -> str:
    """Rules that refer to one another, so that reading the first reads them all."""
    rules = "".join(f"r{i}: r{i + 1}\n" for i in range(count))
    return f'start: r0\n{rules}r{count}: "a"\n'


def referring(count: int) -> dict[str, Any]:
    """A schema whose definitions refer to one another."""
    steps = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(count)}
    return {"$defs": {**steps, f"d{count}": {"type": "null"}}, "$ref": "#/$defs/d0"}


def nested(depth: int) -> str:
    return '{"items":' * depth + "{}" + "}" * depth


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraint.lark(chained(3000)), "has 3002 rules, groups and.* up to 2000"),
        (
            lambda: Constraint.lark("start: " + "(" * 2500 + '"a"' + ")" * 2500),
            "has 2501 rules, groups",
        ),
        (
            lambda: Constraint.lark("start: " + '"a" ' * 5000),
            "has 5000 texts and patterns, expected up to 2000",
        ),
        (lambda: Constraint.regex("a" * 200_000), "has 200000 characters, expected up to 131072"),
        (
            lambda: Constraint.json_schema(referring(1200)),
            "levels through its references, exp",
        ),
        (lambda: Constraint.json_schema(nested(5000)), "is not JSON: it is nested more than 64"),
        (lambda: Constraint.json_schema(json.loads(nested(90))), "is nested more than 64 deep"),
        (
            lambda: Constraint.json_schema({"properties": {f"p{i}": {} for i in range(5000)}}),
            "has 5003 objects, expected up to 4000",
        ),
        (
            lambda: Constraint("poem", "x"),
            "make a constraint with Constraint.json_schema, .regex or .lark",
        ),
    ],
    ids=range(9),
)
def test_what_llguidance_would_not_survive_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint.lark(chained(1990)),
        Constraint.lark(
            "".join(f"r{i}: {'(' * 24}r{i + 1}{')' * 24}\n" for i in range(75)).replace(
                "r0:", "start:"
            )
            + 'r75: "a"\n'
        ),
        Constraint.json_schema(referring(300)),
    ],
    ids=["rules", "groups", "references"],
)
def test_what_is_as_deep_as_allowed_is_compiled_on_any_thread(
    model: Model, constraint: Constraint
) -> None:
    """Also on one whose own stack is too small for it."""
    found: list[Grammar] = []
    tokenizer = model.tokenizer

    def body() -> None:
        found.append(Grammar(constraint, tokenizer, vocab_size=280))

    before = threading.stack_size(256 << 10)
    thread = threading.Thread(target=body)
    thread.start()
    threading.stack_size(before)
    thread.join()
    assert found[0].start().allowed().any()


def test_an_ambiguous_grammar_is_refused_where_it_becomes_too_much(ending: Model) -> None:
    grammar = Grammar(
        Constraint.lark('start: e\ne: e e | "a" | "b" | e e e\n'),
        ending.tokenizer,
        vocab_size=280,
        end_ids=frozenset({1}),
    )
    (letter,) = ending.tokenizer.encode("a")
    with pytest.raises(ValueError, match=r"the grammar cannot be followed: .* 60\d items; max is"):
        follow(grammar.start(), [letter] * 200)


def follow(guide: Guide, ids: Sequence[int]) -> None:
    for token in ids:
        assert guide.allowed()[token]
        guide.accept(token)


def test_an_end_that_the_model_has_not_makes_no_room(model: Model) -> None:
    """llguidance would take 2^40 for the size of the vocabulary."""
    ends = frozenset({1 << 40})
    constraint = Constraint.regex("ab")
    grammar = Grammar(constraint, model.tokenizer, vocab_size=280, end_ids=ends)
    assert grammar.start().allowed().shape == (280,)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """With tokens of a few characters each, among them neither a brace nor anything but ASCII."""
    from tokenizers import Tokenizer, decoders, models

    pieces = ["<{>", "a", "b", "ab", '"', ":", "]", "[", "0", " ", "n", "e"]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("a", "b")]))
    tokenizer.add_special_tokens(pieces[:1])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    path = tmp_path_factory.mktemp("letters") / "tokenizer.json"
    tokenizer.save(str(path))
    return language_model(tokenizer=path)


OBJECT = {"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("constraint", "needed"),
    [
        (Constraint.json_schema(OBJECT), "'{'"),
        (Constraint.json_schema({"type": "array", "items": OBJECT, "minItems": 1}), "'{'"),
        (Constraint.json_schema({"enum": ["a{", "b}", "c"]}), "'c' or '{' or '}'"),
        (Constraint.json_schema({"type": "boolean"}), "'f' or 't'"),
        (Constraint.regex("[#@]a"), "'#' or '@'"),
        (Constraint.regex("[ab]+#[ab]+"), "'#'"),
        (Constraint.regex("a/#|b+/#"), "'/'"),
        (Constraint.regex("a+世"), "'世'"),
        (Constraint.lark('start: "a" "#"'), "'#'"),
    ],
)
def test_what_the_vocabulary_cannot_write_is_refused_by_its_character(
    letters: Model, constraint: Constraint, needed: str
) -> None:
    message = f"cannot write what the .* asks for: every such text has {re.escape(needed)}, and no"
    with pytest.raises(ValueError, match=message):
        letters.generate([1], max_new_tokens=9, constraint=constraint)


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint.json_schema({"enum": ["a{", "b"]}),
        Constraint.json_schema({"type": "array", "items": {"enum": ["ab"]}, "maxItems": 2}),
        Constraint.regex("[ab]+#?"),
        Constraint.regex("#|a{400}|ab"),
        Constraint.lark('start: "a" | "#"'),
    ],
)
def test_what_the_vocabulary_can_write_somehow_is_written(
    letters: Model, constraint: Constraint
) -> None:
    found = letters.generate([1], max_new_tokens=300, constraint=constraint, sampling=HOT, seed=1)
    assert found.text
    assert found.finish in ("complete", "length")


def test_where_no_token_goes_on_the_character_is_named(letters: Model) -> None:
    """Whether it comes to that shows only as the text is written."""
    grammar = Constraint.lark('start: "a"+ "b" ("#" | "@")')
    with pytest.raises(
        ValueError, match="asks for '#' or '@' after 1 tokens, and the model has no"
    ):
        letters.generate(
            [1], max_new_tokens=9, constraint=grammar, sampling=Sampling(logit_bias={3: 1e9})
        )
