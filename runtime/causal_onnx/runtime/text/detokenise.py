"""Turn ids that come one by one into text, never splitting a character, up to a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

__all__ = ["Detokeniser", "StopTexts", "TextStream", "text_after"]

REPLACEMENT = "\ufffd"
"""What decoders give for bytes that make no character, or none yet."""

LONGEST = 4
"""Bytes of the longest character in UTF-8, and so the most tokens that one may be spread over."""

MOST_OPEN = 16
"""Tokens that may follow the last whole character until those in the middle are left out."""


class TextStream:
    """The text of ids that come one by one.

    The pieces joined are the text of all ids, decoded at once. A character whose bytes are spread
    over several tokens comes whole, with the last of them. Only what is needed is decoded again:
    what came since the last whole character, and the piece before it, because many decoders write
    a token differently at the beginning of a text. However long no whole character comes, each id
    is decoded with a bounded number of others.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], *, after: Sequence[int] = ()
    ) -> None:
        """Start a text, or go on with one.

        Args:
            decode: Gives the text of ids.
            after: The ids before, whose text is not given again. Where there are some, a decoder
                that drops a space at the beginning of a text drops none here.
        """
        self._decode = decode
        self._ids = _end_of(after, decode)
        self._context = len(self._ids)
        """So many of the ids end with a whole character."""
        self._given = decode(self._ids) if self._ids else ""
        """What of the text of these ids was given out."""

    def push(self, token: int) -> str:
        """The text that is certain now; empty while a character lacks bytes."""
        self._ids.append(token)
        text = self._decode(self._ids)
        whole = self._given.rstrip(REPLACEMENT)
        if not text.startswith(self._given) and text.startswith(whole):
            # The ids before the text ended within a character, which is there now: they stay.
            self._context, self._given = 0, whole
        elif not text.startswith(self._given):
            # Decoders with a fallback to bytes read a run of bytes anew with each: while the last
            # character is not whole, the ones before it look broken too.
            if len(self._ids) - self._context < LONGEST:
                return ""
            self._ids, self._context, self._given = self._ids[self._context :], 0, ""
            text = self._decode(self._ids)
        # Of a character that lacks bytes, up to three are there, which may each look like one.
        held = min(len(text) - len(text.rstrip(REPLACEMENT)), LONGEST - 1)
        certain = text[: len(text) - held]
        new = certain[len(self._given) :]
        if new and not held:
            self._ids = self._ids[self._context :]
            self._context = len(self._ids)
            self._given = self._decode(self._ids)
        elif new:
            self._given = certain
        if len(self._ids) - self._context > MOST_OPEN:
            self._shorten(len(text) - len(self._given))
        return new

    def flush(self) -> str:
        """The rest, whole or not; nothing may follow."""
        text = self._decode(self._ids)
        if text.startswith(self._given):
            return text[len(self._given) :]
        return self._decode(self._ids[self._context :])

    def _shorten(self, waiting: int) -> None:
        """Leave out ids in the middle, where `waiting` characters of the text were not given.

        Those that stay decide what follows: the last whole character; the first bytes behind it,
        which break the run that they begin; and as many of the last as one character can have,
        twice, so that a decoder which starts among them is in step at the end.
        """
        self._ids = self._ids[: self._context + LONGEST] + self._ids[-2 * LONGEST :]
        text = self._decode(self._ids)
        self._given = text[: len(text) - max(waiting, 0)]


def text_after(
    before: Sequence[int], ids: Sequence[int], decode: Callable[[Sequence[int]], str]
) -> str:
    """The text of `ids` as it continues that of `before`."""
    stream = TextStream(decode, after=before)
    return "".join([*(stream.push(token) for token in ids), stream.flush()])


def _end_of(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """The last of the ids that are no special tokens: a few, which begin with a whole character."""
    visible: list[int] = []
    for token in reversed(ids):
        # Twice: by itself a space may be one at the beginning of a text, which decoders drop.
        if decode([token, token]):
            visible.insert(0, token)
        if len(visible) == 2 * LONGEST:
            break
    starts = range(max(len(visible) - LONGEST, 0), -1, -1)
    ends = (visible[start:] for start in starts)
    return next((end for end in ends if not decode(end).startswith(REPLACEMENT)), visible)


class StopTexts:
    """Cuts a text that comes in pieces before the first of some texts.

    The first is the one that is complete first; of those that end at the same place the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """What of the text is certain, and whether it ends here.

        An end of the text that may be the beginning of a stop text is kept until it is clear.
        """
        text = self._held + piece
        found = [
            (start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0
        ]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        longest = max((len(stop) for stop in self._stops), default=0)
        keep = next(
            (
                count
                for count in range(min(longest - 1, len(text)), 0, -1)
                if any(stop.startswith(text[-count:]) for stop in self._stops)
            ),
            0,
        )
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """What was kept; nothing may follow."""
        held, self._held = self._held, ""
        return held


class Detokeniser:
    """The text of one continuation, token by token, up to a stop text."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        stops: Sequence[str],
        *,
        after: Sequence[int] = (),
    ) -> None:
        """Start after ids whose text it continues."""
        self._stream, self._stops = TextStream(decode, after=after), StopTexts(stops)

    def push(self, token: int) -> tuple[str, bool]:
        """The text that is certain with this token, and whether a stop text ends it."""
        return self._stops.push(self._stream.push(token))

    def flush(self) -> tuple[str, bool]:
        """The rest, and whether a stop text was in it."""
        text, stopped = self._stops.push(self._stream.flush())
        return text + self._stops.flush(), stopped
