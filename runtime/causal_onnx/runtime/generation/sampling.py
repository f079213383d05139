"""Choose the next token from logits: penalties, temperature, truncation, and the draw."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.runtime.request.whole_numbers import is_whole, whole_number

__all__ = [
    "Choice",
    "Sampling",
    "adjusted",
    "choose",
    "draw",
    "log_softmax",
    "logprob_of",
    "probabilities",
]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen; as it stands, the likeliest one is taken (greedy).

    Applied in the order of the fields.
    """

    logit_bias: Mapping[int, float] = field(default_factory=lambda: MappingProxyType({}))
    """Added to the logits of these ids; -inf forbids one."""
    repetition_penalty: float = 1.0
    """Logits of ids in the prompt or the continuation are divided by it where positive, multiplied
    where negative. Source: Keskar et al. 2019, https://arxiv.org/abs/1909.05858, section 4.1."""
    frequency_penalty: float = 0.0
    """Subtracted from a logit for every time its id stands in the continuation."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of an id that stands in the continuation."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Ids that may not begin the continuation; with `forced_bos_token_id`, not come after that."""
    forced_bos_token_id: int | None = None
    """The id that follows a prompt of one id, whatever the model scores."""
    forced_eos_token_id: int | None = None
    """The id that comes last where neither `max_new_tokens` nor the model leaves room for more."""
    temperature: float = 0.0
    """Divides the logits; 0 takes the largest, the smallest id among equals."""
    top_k: int | None = None
    """Only the k largest logits stay. Source: Fan et al. 2018, https://arxiv.org/abs/1805.04833."""
    top_p: float | None = None
    """Only the smallest set of likeliest ids whose probabilities reach p stays.
    Source: Holtzman et al. 2019, https://arxiv.org/abs/1904.09751, section 3.1."""
    min_p: float | None = None
    """Only ids at least this times as likely as the likeliest stay.
    Source: Nguyen et al. 2024, https://arxiv.org/abs/2407.01082."""

    def __post_init__(self) -> None:
        for name in ("repetition_penalty", "frequency_penalty", "presence_penalty", "temperature"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name} must be a number, got {value!r}")
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, got {value}")
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.repetition_penalty <= 0:
            raise ValueError(
                f"repetition_penalty must be positive (1: none), got {self.repetition_penalty}"
            )
        top_k = self.top_k
        if top_k is not None:
            whole_number("top_k", top_k, wanted="at least 1")
        for name in ("top_p", "min_p"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}; None keeps all")
        for name in ("forced_bos_token_id", "forced_eos_token_id"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), least=0, wanted="an id, or None")
        for token in self.begin_suppress_tokens:
            whole_number("begin_suppress_tokens", token, least=0, wanted="ids")
        for token, bias in self.logit_bias.items():
            if not is_whole(token) or token < 0:
                raise ValueError(f"logit_bias is by token id, got {token!r}")
            if math.isnan(bias) or bias == math.inf:
                raise ValueError(f"logit_bias of {token} must be below infinity, got {bias}")

    @property
    def is_greedy(self) -> bool:
        """Whether the choice is no matter of chance."""
        return self.temperature == 0

    @property
    def takes_largest(self) -> bool:
        """Whether the choice is that of the largest logit, as it comes from the model."""
        return (
            self.temperature == 0
            and not self.logit_bias
            and self.repetition_penalty == 1.0
            and not self.frequency_penalty
            and not self.presence_penalty
            and not self.begin_suppress_tokens
            and self.forced_bos_token_id is None
            and self.forced_eos_token_id is None
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token."""

    id: int
    logprob: float
    """Natural logarithm of its probability under the model: before biases, penalties, temperature
    and truncation."""
    text: str | None = None
    """What of the text is certain with this token, where the model has a tokenizer: nothing while a
    character lacks bytes or a stop text may have begun. All of them joined are the whole text."""


def choose(
    logits: Array,
    sampling: Sampling,
    *,
    prompt: Sequence[int] = (),
    continuation: Sequence[int] = (),
    is_final: bool = False,
    allowed: Array | None = None,
    uniform: float = 0.0,
) -> Choice:
    """Choose the next token.

    In float64, so that logits which agree to 1e-6 lead to the same choice all but once in a
    million.

    Args:
        logits: (vocab,), any float dtype; not changed.
        sampling: How.
        prompt: The ids before the continuation, for the repetition penalty.
        continuation: The ids chosen so far, for the penalties.
        is_final: Whether no id can follow this one, for `forced_eos_token_id`.
        allowed: (vocab,), bool: where a grammar lets the next token be. None: anywhere.
        uniform: A random number in [0, 1), which decides; unused when greedy.

    Raises:
        ValueError: A shape does not fit, the logits hold NaN, or nothing is allowed.
    """
    if sampling.takes_largest and allowed is None and logits.ndim == 1:
        chosen = int(logits.argmax())
        return Choice(chosen, logprob_of(chosen, logits))
    scores = _scores(logits, sampling, prompt, continuation, is_final=is_final, allowed=allowed)
    if sampling.is_greedy:
        chosen = int(scores.argmax())
    else:
        ids, weights = _truncated(scores / sampling.temperature, sampling)
        chosen = int(ids[draw(weights, uniform)])
    return Choice(chosen, logprob_of(chosen, logits))


def logprob_of(token: int, logits: Array) -> float:
    """log(softmax(logits))[token], of logits (vocab,), in float64."""
    top = float(_top(logits)[0])
    # In place: fresh memory for each step takes five times as long as the arithmetic.
    powers = np.subtract(logits, top, dtype=np.float64)
    np.exp(powers, out=powers)
    return float(logits[token]) - top - math.log(powers.sum())


def probabilities(
    logits: Array,
    sampling: Sampling,
    *,
    prompt: Sequence[int] = (),
    continuation: Sequence[int] = (),
    is_final: bool = False,
    allowed: Array | None = None,
) -> Array:
    """The distribution that `choose` draws from.

    Args:
        logits: As for `choose`.
        sampling: As for `choose`.
        prompt: As for `choose`.
        continuation: As for `choose`.
        is_final: As for `choose`.
        allowed: As for `choose`.

    Returns:
        (vocab,), float64, of sum 1; if greedy, 1 for the one id and 0 elsewhere.

    Raises:
        ValueError: As for `choose`.
    """
    scores = _scores(logits, sampling, prompt, continuation, is_final=is_final, allowed=allowed)
    result = np.zeros(len(scores))
    if sampling.is_greedy:
        result[scores.argmax()] = 1.0
    else:
        ids, weights = _truncated(scores / sampling.temperature, sampling)
        result[ids] = weights / weights.sum()
    return result


def draw(weights: Array, uniform: float) -> int:
    """The id that `uniform`, a random number in [0, 1), stands for, by weights (vocab,)."""
    cumulative = np.cumsum(weights)
    # side="right": an id of weight 0 has the same sum as the one before it, and is passed over.
    drawn = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    return min(drawn, int(np.flatnonzero(weights)[-1]))


def log_softmax(logits: Array) -> Array:
    """log(softmax(logits)) over the last axis, in float64.

    Raises:
        ValueError: There is NaN or +inf among them, or nothing finite.
    """
    shifted = logits.astype(np.float64) - _top(logits)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _top(logits: Array) -> Array:
    """The largest of the last axis, kept as an axis, in float64."""
    top = logits.max(axis=-1, keepdims=True).astype(np.float64)
    if not np.isfinite(top).all():
        raise ValueError(f"the logits hold no usable number: their maximum is {top.ravel()[0]}")
    return np.asarray(top)


def _scores(
    logits: Array,
    sampling: Sampling,
    prompt: Sequence[int],
    continuation: Sequence[int],
    *,
    is_final: bool,
    allowed: Array | None,
) -> Array:
    """The logits in float64 after biases, penalties and the grammar."""
    if logits.ndim != 1:
        raise ValueError(f"logits must be of shape (vocab,), got {logits.shape}")
    _top(logits)
    scores = adjusted(logits.astype(np.float64), sampling, prompt, continuation, is_final=is_final)
    if allowed is not None:
        if allowed.shape != logits.shape:
            raise ValueError(f"allowed must be of shape {logits.shape}, got {allowed.shape}")
        scores[~allowed] = -np.inf
    if scores.max() == -np.inf:
        raise ValueError("no token is allowed: the grammar and logit_bias leave none of the ids")
    return scores


def adjusted(
    scores: Array,
    sampling: Sampling,
    prompt: Sequence[int],
    continuation: Sequence[int],
    *,
    is_final: bool,
) -> Array:
    """Apply biases, penalties and what is forced to scores (vocab,), in place.

    Raises:
        ValueError: An id is none of the vocabulary.
    """
    for token, bias in sampling.logit_bias.items():
        if token >= len(scores):
            raise ValueError(f"logit_bias names the id {token}; the model has {len(scores)}")
        scores[token] += bias
    if sampling.repetition_penalty != 1.0:
        seen = np.unique(np.array([*prompt, *continuation], dtype=np.int64))
        old = scores[seen]
        factor = sampling.repetition_penalty
        scores[seen] = np.where(old > 0, old / factor, old * factor)
    if continuation and (sampling.frequency_penalty or sampling.presence_penalty):
        seen, counts = np.unique(np.array(continuation, dtype=np.int64), return_counts=True)
        scores[seen] -= sampling.frequency_penalty * counts + sampling.presence_penalty
    forced_bos = sampling.forced_bos_token_id if len(prompt) == 1 else None
    if len(continuation) == (forced_bos is not None):
        for token in sampling.begin_suppress_tokens:
            scores[_known(token, scores)] = -np.inf
    forced = forced_bos if not continuation else None
    if is_final and sampling.forced_eos_token_id is not None:
        forced = sampling.forced_eos_token_id
    if forced is not None:
        _known(forced, scores)
        scores[:] = -np.inf
        scores[forced] = 0.0
    return scores


def _known(token: int, scores: Array) -> int:
    if token >= len(scores):
        raise ValueError(f"the id {token} is forced or suppressed; the model has {len(scores)}")
    return token


def _truncated(scores: Array, sampling: Sampling) -> tuple[Array, Array]:
    """The ids that are not cut off, and the weights to draw them by, which need not sum to 1."""
    least = -np.inf
    top_k = len(scores) if sampling.top_k is None else int(sampling.top_k)
    if top_k < len(scores):
        # Those that equal the k-th stay too: which of equals is cut must not depend on the sort.
        least = np.partition(scores, -top_k)[-top_k]
    ids = np.flatnonzero((scores >= least) & (scores > -np.inf))
    weights: Array = np.exp(scores[ids] - scores.max())
    if sampling.top_p is not None and sampling.top_p < 1:
        total = weights.sum()
        # Of n ids, those less likely than (1 - p) / n are less than 1 - p together: the others
        # reach p without them. So only those are sorted, which are few of a large vocabulary.
        likely = np.flatnonzero(weights >= (1 - sampling.top_p) * total / len(weights))
        order = likely[np.argsort(-weights[likely], kind="stable")]
        # The id that crosses the threshold stays.
        count = int(np.searchsorted(np.cumsum(weights[order]), sampling.top_p * total)) + 1
        kept = np.sort(order[:count])
        ids, weights = ids[kept], weights[kept]
    if sampling.min_p is not None:
        kept = np.flatnonzero(weights >= sampling.min_p)  # the largest weight is 1
        ids, weights = ids[kept], weights[kept]
    return ids, weights
