"""Text that comes token by token; without any tokenizer package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from causal_onnx.runtime.text.detokenise import Detokeniser, StopTexts, TextStream


def as_bytes(ids: Sequence[int]) -> str:
    """The decoder of a byte-level vocabulary: id = byte."""
    return bytes(ids).decode("utf-8", errors="replace")


def with_fallback(ids: Sequence[int]) -> str:
    """The decoder of a vocabulary with a fallback to bytes: a run is a text, or all wrong."""
    pieces, run = [], b""
    for token in [*ids, None]:
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


def pieces_of(decode: object, ids: Sequence[int]) -> list[str]:
    stream = TextStream(decode)  # type: ignore[arg-type]
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
