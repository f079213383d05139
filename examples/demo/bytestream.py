"""Draw a text from a byte-level language model, one byte at a time; needs numpy only.

The process with PyTorch and the one without run this same code, so that their texts can be
compared character by character.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Context", "WholeContext", "allowed_bytes", "sample", "stream_text"]

Array = npt.NDArray[Any]


class Context(Protocol):
    """A model and what it has read so far."""

    def feed(self, ids: Sequence[int]) -> Array:
        """Read `ids` after all that was read before, and score the next byte.

        Returns:
            Logits (256,).
        """
        ...


class WholeContext:
    """A context for models without a cache: every step runs over all that the model can see."""

    def __init__(self, forward: Callable[[Array], Array], *, max_seq_len: int) -> None:
        """Start with nothing read.

        Args:
            forward: Ids (1, seq), int64 -> logits (1, seq, 256).
            max_seq_len: The longest sequence `forward` takes; older bytes are forgotten.
        """
        self._forward = forward
        self._max_seq_len = max_seq_len
        self._ids: list[int] = []

    def feed(self, ids: Sequence[int]) -> Array:
        self._ids = [*self._ids, *ids][-self._max_seq_len :]
        logits = self._forward(np.array([self._ids], dtype=np.int64))
        return np.asarray(logits[0, -1])


def stream_text(
    context: Context, prompt: bytes, *, max_bytes: int, temperature: float, seed: int
) -> Iterator[str]:
    """Continue `prompt`, yielding each character as soon as its last byte is drawn.

    Only bytes that may follow are drawn (see `allowed_bytes`), so no character is ever broken.

    Args:
        context: The model; it must not have read anything.
        prompt: Valid UTF-8, at least one byte.
        max_bytes: Length of the continuation; up to 3 bytes more where it would end inside a
            character.
        temperature: Divides the logits; below 1 prefers likely bytes.
        seed: Of the random numbers, one per byte.

    Yields:
        Single characters.

    Raises:
        ValueError: The prompt is empty or not UTF-8, or a number is out of range.
    """
    if not prompt:
        raise ValueError("prompt must hold at least one byte")
    prompt.decode()
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, got {max_bytes}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    random = np.random.default_rng(seed)
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending = b""
    logits = context.feed(prompt)
    drawn = 0
    while True:
        byte = sample(
            logits, allowed_bytes(pending), temperature=temperature, uniform=random.random()
        )
        drawn += 1
        pending += bytes([byte])
        if character := decoder.decode(bytes([byte])):
            pending = b""
            yield character
        if drawn >= max_bytes and not pending:
            return
        logits = context.feed([byte])


def sample(logits: Array, allowed: Array, *, temperature: float, uniform: float) -> int:
    """Draw an index from softmax(logits / temperature), restricted to `allowed`.

    In float64, so that logits that agree to 1e-6 give the same draw all but once in a million.

    Args:
        logits: (256,), any float dtype.
        allowed: (256,), bool; at least one True.
        temperature: Positive.
        uniform: A random number in [0, 1), which decides the draw.
    """
    scaled = np.where(allowed, logits.astype(np.float64) / temperature, -np.inf)
    weights = np.exp(scaled - scaled.max())
    cumulative = np.cumsum(weights)
    # side="right": an index of weight 0 has the same sum as the one before it, and is passed over.
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(index, int(np.flatnonzero(weights)[-1]))


def allowed_bytes(pending: bytes) -> Array:
    """Which bytes may come next, so that the text stays valid UTF-8 and harmless in a terminal.

    Between characters: a line feed, printable ASCII, or the first byte of a longer character.
    Control characters (0x00-0x1F but the line feed, 0x7F, U+0080-U+009F) are never complete: a
    terminal takes them as commands.
    Source: RFC 3629, section 4, UTF8-octets.

    Args:
        pending: The bytes of a character that has begun, empty between characters.

    Returns:
        (256,), bool.
    """
    allowed = np.zeros(256, dtype=np.bool_)
    if not pending:
        allowed[0x0A] = True
        allowed[0x20:0x7F] = True
        allowed[0xC2:0xF5] = True  # C0, C1 and F5-FF begin no character
        return allowed
    low, high = 0x80, 0xBF
    if len(pending) == 1:
        low, high = _SECOND_BYTES.get(pending[0], (low, high))
    allowed[low : high + 1] = True
    return allowed


_SECOND_BYTES = {
    0xC2: (0xA0, 0xBF),  # below it: U+0080-U+009F, control characters
    0xE0: (0xA0, 0xBF),  # below it: overlong
    0xED: (0x80, 0x9F),  # above it: surrogates
    0xF0: (0x90, 0xBF),  # below it: overlong
    0xF4: (0x80, 0x8F),  # above it: past U+10FFFF
}
