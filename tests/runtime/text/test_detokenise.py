"""Text that comes token by token; without any tokenizer package."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from causal_onnx.runtime.text.detokenise import Detokeniser, StopTexts, TextStream, text_after

Decode = Callable[[Sequence[int]], str]


def as_bytes(ids: Sequence[int]) -> str:
    """The decoder of a byte-level vocabulary: id = byte."""
    return bytes(ids).decode("utf-8", errors="replace")


SPECIAL = 999


def with_fallback(ids: Sequence[int]) -> str:
    """The decoder of a vocabulary with a fallback to bytes: a run is a text, or all wrong.

    Special tokens have no text, and a space at the beginning of the text is dropped.
    """
    pieces, run = [], b""
    for token in [*(token for token in ids if token != SPECIAL), None]:
        if token is not None and token < 256:
            run += bytes([token])
            continue
        try:
            pieces.append(run.decode())
        except UnicodeDecodeError:
            pieces.append("\ufffd" * len(run))
        run = b""
        if token is not None:
            pieces.append(" word")
    return "".join(pieces).removeprefix(" ")


def pieces_of(decode: object, ids: Sequence[int], after: Sequence[int] = ()) -> list[str]:
    stream = TextStream(decode, after=after)  # type: ignore[arg-type]
    return [*(stream.push(token) for token in ids), stream.flush()]


@pytest.mark.parametrize("decode", [as_bytes, with_fallback])
def test_a_character_comes_whole_with_its_last_byte(decode: object) -> None:
    pieces = pieces_of(decode, "a世😀é".encode())
    assert pieces == ["a", "", "", "世", "", "", "", "😀", "", "é", ""]


def test_joined_pieces_are_the_text_decoded_at_once() -> None:
    generator = np.random.default_rng(0)
    likely = np.frombuffer("aé世😀👍🏽\ufffd".encode(), np.uint8)
    for _ in range(300):
        ids = generator.choice(likely, size=generator.integers(1, 30)).tolist()
        assert "".join(pieces_of(as_bytes, ids)) == as_bytes(ids)


def test_a_decoder_that_treats_the_first_token_otherwise() -> None:
    ids = [300, 300, *"世".encode(), 300]
    assert pieces_of(with_fallback, ids) == ["word", " word", "", "", "世", " word", ""]


def test_bytes_that_make_no_character_are_replaced_in_the_end() -> None:
    assert "".join(pieces_of(with_fallback, [300, *b"\xe4\xb8", 300])) == "word\ufffd\ufffd word"
    assert pieces_of(as_bytes, list(b"a\xe4\xb8")) == ["a", "", "", "\ufffd"]


def test_no_character_of_many_wrong_bytes_is_lost() -> None:
    ids = list(b"\xff" * 20 + "é".encode())
    assert "".join(pieces_of(as_bytes, ids)) == "\ufffd" * 20 + "é"


@pytest.mark.parametrize(
    "before",
    [[300], [300] * 9, [SPECIAL, 300, SPECIAL], [300, *[SPECIAL] * 30], [*"世é".encode()] * 7],
    ids=["a word", "words", "special tokens", "many special tokens", "bytes"],
)
def test_a_continuation_keeps_the_space_it_begins_with(before: list[int]) -> None:
    ids = [300, *"世".encode(), 300]
    assert pieces_of(with_fallback, ids, before) == [" word", "", "", "世", " word", ""]
    assert text_after(before, ids, with_fallback) == " word世 word"


def test_without_a_text_before_it_a_text_begins_as_any() -> None:
    assert pieces_of(with_fallback, [300, 300], [SPECIAL, SPECIAL]) == ["word", " word", ""]


@pytest.mark.parametrize(("decode", "letter"), [(as_bytes, ord("a")), (with_fallback, 300)])
def test_a_character_that_the_ids_before_have_begun_comes_whole(
    decode: Decode, letter: int
) -> None:
    *first, last = "世".encode()
    assert pieces_of(decode, [last, *b"b"], [letter, *first]) == ["世", "b", ""]


@pytest.mark.parametrize("before", [b"a\xe4\xb8", "a\ufffd".encode()], ids=["broken", "genuine"])
def test_what_the_ids_before_left_broken_is_not_given_again(before: bytes) -> None:
    assert "".join(pieces_of(as_bytes, b"bc", before)) == "bc"


def test_a_text_and_its_continuation_are_the_text_of_all_ids() -> None:
    generator = np.random.default_rng(2)
    units = [[300], [SPECIAL], [*b"a"], [*"é".encode()], [*"世".encode()], [*"😀".encode()]]
    for _ in range(300):
        chosen = generator.integers(0, len(units), size=(2, generator.integers(1, 12)))
        before, ids = ([token for unit in row for token in units[unit]] for row in chosen)
        text = with_fallback(before) + text_after(before, ids, with_fallback)
        # Only special tokens before: the text begins with the continuation.
        assert text == with_fallback(before + ids)


ENDLESS = {
    "wrong bytes": [0xFF],
    "beginnings of characters": [0xE4],
    "a broken run of whole characters": [0xFF, *"é".encode() * 2000],
    "characters that lack a byte": [*b"\xe4\xb8"],
    "characters that come and break": [*b"a\xe4\xb8"],
    "special tokens": [SPECIAL],
    "whole characters": [*"世".encode()],
    "words": [300],
}


@pytest.mark.parametrize("decode", [as_bytes, with_fallback])
@pytest.mark.parametrize("kind", ENDLESS)
@pytest.mark.parametrize("before", [[], [300 % 256], [0xE4] * 3000], ids=["", "text", "broken"])
def test_no_id_is_decoded_with_more_than_a_few_others(
    decode: Decode, kind: str, before: list[int]
) -> None:
    count, ids = 6000, [token % (256 if decode is as_bytes else 1000) for token in ENDLESS[kind]]
    ids = (ids * count)[:count]
    decoded = []

    def counting(given: Sequence[int]) -> str:
        decoded.append(len(given))
        return decode(given)

    text = "".join(pieces_of(counting, ids, before))
    assert max(decoded) <= 48
    assert sum(decoded) <= 40 * (count + len(before))
    whole = decode([*before, *ids])[len(decode(before)) :]
    # What was given as an "a" before its run of bytes broke stays one.
    assert text in (whole, f"a{whole[1:]}")


def cut(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    finder, text = StopTexts(stops), ""
    for piece in pieces:
        new, stopped = finder.push(piece)
        text += new
        if stopped:
            return text, True
    return text + finder.flush(), False


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        (["\n\n"], ("one\ntwo", True)),
        (["wo\n\nth"], ("one\nt", True)),
        (["three", "e\nt"], ("on", True)),
        (["xyz"], ("one\ntwo\n\nthree", False)),
        (["three!"], ("one\ntwo\n\nthree", False)),
        (["ne\ntw", "e"], ("on", True)),
        (["e\nt", "one\nt"], ("", True)),
        ([], ("one\ntwo\n\nthree", False)),
    ],
)
def test_stop_texts_cut_wherever_tokens_end(stops: list[str], expected: tuple[str, bool]) -> None:
    text = "one\ntwo\n\nthree"
    assert cut(stops, list(text)) == expected
    assert cut(stops, [text]) == expected
    generator = np.random.default_rng(1)
    for _ in range(50):
        marks = sorted(generator.integers(0, len(text) + 1, size=4))
        assert cut(stops, [text[a:b] for a, b in zip([0, *marks], [*marks, 99])]) == expected  # noqa: B905


def test_what_may_begin_a_stop_text_is_kept_and_no_more() -> None:
    finder = StopTexts(["abc"])
    assert finder.push("xa") == ("x", False)
    assert finder.push("b") == ("", False)
    assert finder.push("a") == ("ab", False)
    assert finder.flush() == "a"


def test_a_stop_text_may_lie_in_a_character_that_never_ends() -> None:
    detokeniser = Detokeniser(as_bytes, ["\ufffd"])
    assert detokeniser.push(0xE4) == ("", False)
    assert detokeniser.flush() == ("", True)
