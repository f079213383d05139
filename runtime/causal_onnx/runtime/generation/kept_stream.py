"""Go on with the stream of the last prompt, where the next one begins alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from causal_onnx.runtime.generation.prompt import can_rewind, prefill

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.generation.language_model import LanguageModel
    from causal_onnx.runtime.stream.stream import Stream

    Array = npt.NDArray[Any]

__all__ = ["KeptStream"]


class KeptStream:
    """One sequence that is read on, for a conversation whose prompts each begin with the last one.

    Takes the place of a prefix cache where there is one sequence: nothing is copied, and what the
    model wrote is kept too. Whatever ended a call before, only what was surely read is used.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.positions_read = self.positions_found = 0
        """Of all prompts: those that took computing, and those that did not."""
        self._stream: Stream | None = None
        self._ids: list[int] = []
        """What the stream has read, if it has come so far."""

    def wrote(self, ids: Sequence[int]) -> None:
        """Note the continuation of the last prompt.

        The last of its ids need not be what the stream read at its place.
        """
        self._ids += ids[:-1]

    def clear(self) -> None:
        """Forget what was read."""
        self._stream, self._ids = None, []

    def read(
        self, prompts: Sequence[Sequence[int]], stream: Stream | None = None
    ) -> tuple[Stream, Array]:
        """A stream that has read a prompt, the only one, and the logits (1, vocab) after it.

        `stream` reads it from the beginning; None: what is kept goes on, as far as it can.
        """
        (prompt,) = prompts
        found = 0
        if stream is None:
            stream, found = self._go_back(prompt)
        self._stream, self._ids = stream, list(prompt)
        self.positions_found += found
        self.positions_read += len(prompt) - found
        return stream, prefill(stream, [prompt[found:]])

    def _go_back(self, prompt: Sequence[int]) -> tuple[Stream, int]:
        """A stream that has read the beginning of a prompt, and how long that is."""
        stream = self._stream
        if stream is None:
            return self.model.stream(), 0
        read = stream.lengths[0]
        # One id is left to read, for its logits.
        known = min(read, len(self._ids), len(prompt) - 1)
        pairs = zip(self._ids[:known], prompt, strict=False)
        found = next((i for i, (old, new) in enumerate(pairs) if old != new), known)
        if found < read and not can_rewind(self.model):
            return self.model.stream(), 0
        try:
            stream.rewind(found)
        except RuntimeError:  # an interrupt struck where the stream cannot know what it has read
            return self.model.stream(), 0
        return stream, found
