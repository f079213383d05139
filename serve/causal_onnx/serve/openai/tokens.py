"""Tokens and their probabilities, as answers name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from causal_onnx.runtime.text.detokenise import REPLACEMENT
from causal_onnx.serve.engine.generation import Score

if TYPE_CHECKING:
    from causal_onnx.runtime import Tokenizer

__all__ = ["LEAST", "chat_logprobs", "completion_logprobs", "text_of"]

LEAST = -9999.0
"""In place of -inf, which JSON has not."""


def text_of(token: int, tokenizer: Tokenizer | None) -> str:
    """What an id is called: its text, a special token's name, or, without tokenizer, its number."""
    if tokenizer is None:
        return f"token_id:{token}"
    return tokenizer.token_text(token) or f"token_id:{token}"


def completion_logprobs(
    scores: Sequence[Score], tokenizer: Tokenizer | None, *, offset: int
) -> dict[str, Any]:
    """`logprobs` of a completion, of tokens whose text begins at `offset`."""
    tokens = [text_of(score.id, tokenizer) for score in scores]
    offsets = []
    for text in tokens:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": tokens,
        "token_logprobs": [_number(score.logprob) for score in scores],
        "top_logprobs": [_top(score, tokenizer) for score in scores],
        "text_offset": offsets,
    }


def _top(score: Score, tokenizer: Tokenizer | None) -> dict[str, float | None] | None:
    if score.logprob is None:
        return None
    found = {text_of(token, tokenizer): _number(logprob) for token, logprob in score.top}
    # The token itself is always among them. Two ids may have one text: the more likely one stays.
    found.setdefault(text_of(score.id, tokenizer), _number(score.logprob))
    return found


def chat_logprobs(scores: Sequence[Score], tokenizer: Tokenizer | None) -> dict[str, Any]:
    """`logprobs` of a chat."""
    return {
        "content": [
            {
                **_named(score.id, score.logprob, tokenizer),
                "top_logprobs": [_named(*pair, tokenizer) for pair in score.top],
            }
            for score in scores
        ],
        "refusal": None,
    }


def _named(token: int, logprob: float | None, tokenizer: Tokenizer | None) -> dict[str, Any]:
    text = text_of(token, tokenizer)
    raw = None if REPLACEMENT in text else list(text.encode())
    return {"token": text, "logprob": _number(logprob), "bytes": raw}


def _number(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST)
