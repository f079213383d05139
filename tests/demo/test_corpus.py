from __future__ import annotations

import pytest

from examples.demo.corpus import load_corpus, split_corpus


def test_a_paragraph_occurs_once_however_it_is_broken_into_lines() -> None:
    corpus = split_corpus({"a": "one two\n\nthree", "b": "  one\n  two\n\nfour"})
    assert corpus.train == b"one two\n\nthree"
    assert corpus.held_out == b"four"
    assert corpus.repeated_bytes == len("  one\n  two")


def test_the_last_tenth_is_held_out_and_none_of_it_is_trained_on() -> None:
    corpus = load_corpus()
    train, held_out = (
        {" ".join(p.split()) for p in part.decode().split("\n\n")}
        for part in (corpus.train, corpus.held_out)
    )
    assert not train & held_out
    share = len(corpus.held_out) / (len(corpus.train) + len(corpus.held_out))
    assert 0.1 <= share < 0.12


def test_the_text_is_english_of_some_hundred_kilobytes() -> None:
    corpus = load_corpus()
    assert len(corpus.train) > 200_000
    assert corpus.train.count(b" the ") > 1000


def test_a_text_too_small_to_split_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 paragraphs, got 1"):
        split_corpus({"a": "only this", "b": "only\nthis"})
