"""What stops a command, beyond the library's own errors."""

import difflib
from collections.abc import Iterable

__all__ = ["CommandError", "UsageError", "did_you_mean"]


class CommandError(Exception):
    """The command failed; the message is for the user. Exit code 1."""


class UsageError(Exception):
    """The command line makes no sense, as could be seen without doing anything. Exit code 2."""


def did_you_mean(word: str, known: Iterable[str], *, likeness: float = 0.6) -> str:
    """The end of a message about an unknown word: the known one nearest to it, or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=likeness)
    return f"; did you mean {near[0]}?" if near else ""
