"""Real English text that every Python carries: the topics of `help()`, split in two."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Corpus", "load_corpus", "split_corpus"]

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """One text as UTF-8: what a model learns from, and what it is judged on."""

    train: bytes
    held_out: bytes
    """The last part of the text; no paragraph of it is in `train`."""
    repeated_bytes: int
    """Size of the paragraphs left out because the text had them before."""


def load_corpus() -> Corpus:
    """Read the topics of this Python's `pydoc_data`, in alphabetical order."""
    # It holds no annotations and is imported only here: 700 kB of text.
    from pydoc_data.topics import topics  # noqa: PLC0415

    return split_corpus(topics)


def split_corpus(topics: Mapping[str, str]) -> Corpus:
    """Join topics to one text in which every paragraph occurs once, and hold out its last part.

    Topics include each other ("specialnames" holds a dozen of the others), so without dropping
    repetitions the held-out text would be known from training.

    Args:
        topics: Name -> text; paragraphs are separated by blank lines.

    Raises:
        ValueError: There are fewer than two paragraphs.
    """
    seen: set[str] = set()
    paragraphs: list[bytes] = []
    repeated = 0
    for name in sorted(topics):
        for paragraph in re.split(r"\n[ \t]*\n", topics[name]):
            words = " ".join(paragraph.split())
            raw = paragraph.strip("\n").encode()
            if words in seen:
                repeated += len(raw)
            elif words:
                seen.add(words)
                paragraphs.append(raw)
    if len(paragraphs) < 2:
        raise ValueError(f"a corpus needs at least 2 paragraphs, got {len(paragraphs)}")
    total = sum(len(paragraph) for paragraph in paragraphs)
    held_out, first = 0, len(paragraphs)
    while first > 1 and (first == len(paragraphs) or held_out < HELD_OUT_SHARE * total):
        first -= 1
        held_out += len(paragraphs[first])
    return Corpus(
        train=b"\n\n".join(paragraphs[:first]),
        held_out=b"\n\n".join(paragraphs[first:]),
        repeated_bytes=repeated,
    )
