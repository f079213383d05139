"""Continuations that a schema, a regular expression or a grammar allows."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from causal_onnx.runtime import Constraint, Model, PrefixCache, PromptLookup, Sampling
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
    with pytest.raises(ValueError, match=r"a JSON schema is an object such as \{\}, got 3"):
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
