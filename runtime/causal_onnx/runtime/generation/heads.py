"""Guess tokens ahead by a model's own heads: outputs that score the tokens after the next one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from causal_onnx.runtime.request.whole_numbers import whole_number

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.contract import Contract, TensorSpec
    from causal_onnx.runtime.generation.continuation import GrowingSequence

    Array = npt.NDArray[Any]

__all__ = ["DraftHeads", "HeadsGuesser", "check_heads"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftHeads:
    """Let the model's own heads guess: where its logits score the token after a position, head i,
    counted from 1, scores the one i places later.

    They come with the logits of each call, so guessing takes no calls of its own. All guesses are
    verified: heads of other tokens, or in another order, cost time only. Sources: Cai et al. 2024
    (Medusa), https://arxiv.org/abs/2401.10774, section 2.1, without its trees; Gloeckle et al.
    2024, https://arxiv.org/abs/2404.19737, section 2.
    """

    outputs: tuple[str, ...] | None = None
    """The outputs that are heads, nearest token first: (batch, seq, vocab) for one head each, or
    with one axis more, anywhere before the vocabulary, for several. None: all outputs of such
    shapes but the logits, in the contract's order."""
    count: int | None = None
    """Tokens that are guessed at a time, at most; None: one for each head."""

    def __post_init__(self) -> None:
        names = self.outputs
        if isinstance(names, str) or (names is not None and not all(names)):
            raise TypeError(f"outputs must be names of outputs, or None, got {names!r}")
        if self.count is not None:
            whole_number("count", self.count, wanted="at least 1, or None")


def check_heads(contract: Contract, draft: DraftHeads) -> None:
    """Raise `ValueError` where a language model has no such heads."""
    _head_outputs(contract, draft)


class HeadsGuesser:
    """Keeps what the heads said at the last position that counts."""

    calls = 0

    def __init__(self, contract: Contract, settings: DraftHeads) -> None:
        """`contract`: of a language model that has such heads."""
        self._outputs = _head_outputs(contract, settings)
        self._count = settings.count
        self._next: list[int] = []

    def look(self, results: Mapping[str, Array], place: int) -> None:
        """Take the heads' guesses from the outputs of a call of one row.

        Args:
            results: By name.
            place: The position whose logits the last token was chosen by.
        """
        self._next = []
        for spec in self._outputs:
            order = [spec.axes.index("batch"), spec.axes.index("seq")]
            order += [at for at in range(len(spec.axes)) if at not in order]
            scores = results[spec.name].transpose(order)[0, place]
            self._next += scores.reshape(-1, scores.shape[-1]).argmax(axis=-1).tolist()

    def guess(self, sequence: GrowingSequence, most: int) -> list[tuple[int, Array | None]]:
        """The likeliest token of each head; nothing before the first call with outputs."""
        count = most if self._count is None else min(most, self._count)
        return [(token, None) for token in self._next[:count]]


def _head_outputs(contract: Contract, draft: DraftHeads) -> list[TensorSpec]:
    results = [spec for spec in contract.outputs if spec.name not in contract.present_names]
    logits = next((spec for spec in results if spec.name == "logits"), results[0])
    fitting = [spec for spec in results if spec is not logits and _is_head(spec, logits)]
    given = ", ".join(spec.describe() for spec in results)
    if draft.outputs is None:
        if not fitting:
            raise ValueError(
                "the model has no heads to draft with: outputs besides its logits, of the shape "
                f"of these ({logits.describe()}), or with an axis of heads more; it gives {given}"
            )
        return fitting
    by_name = {spec.name: spec for spec in fitting}
    for name in draft.outputs:
        if name not in by_name:
            raise ValueError(
                f"{name!r} is no output that could be a head: of the shape of the logits "
                f"({logits.describe()}), or with an axis of heads more; it gives {given}"
            )
    return [by_name[name] for name in draft.outputs]


def _is_head(spec: TensorSpec, logits: TensorSpec) -> bool:
    """Whether an output has the logits' axes, or one fixed axis more before the last."""
    axes: Sequence[str | int] = spec.axes
    if axes == logits.axes:
        return True
    fixed = [axis for axis in axes if isinstance(axis, int)]
    return (
        len(axes) == 4
        and len(fixed) == 2
        and {"batch", "seq"} <= set(axes)
        and axes[-1] == logits.axes[-1]
    )
