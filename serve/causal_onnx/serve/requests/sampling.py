"""How tokens are chosen, as requests to OpenAI's endpoints say it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from causal_onnx.runtime import Sampling
from causal_onnx.runtime.generation.plan import vocab_size
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.requests.fields import Fields

__all__ = ["Choosing", "read_choosing"]

MOST_STOPS = 4
MOST_STOP_TEXT = 1000
"""Characters of a stop text: each token is compared with it."""
MOST_BIASES = 1024
"""Ids of `logit_bias`: each is added in Python, at each token."""
NEVER = -100
"""A bias with which OpenAI says that a token is never chosen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choosing:
    """What completions and chats have in common."""

    sampling: Sampling
    stop: tuple[str, ...]
    seed: int | None
    n: int
    priority: int


def read_choosing(fields: Fields, served: ServedModel) -> Choosing:
    """Read the fields; what is left out is as the model's `generation_config.json` says.

    Raises:
        BadRequestError: One does not fit.
    """
    given: dict[str, Any] = {
        "temperature": fields.number("temperature", least=0, most=100),
        "top_p": fields.number("top_p", least=0, most=1),
        "top_k": fields.whole("top_k", least=-1),
        "min_p": fields.number("min_p", least=0, most=1),
        "frequency_penalty": fields.number("frequency_penalty", least=-2, most=2),
        "presence_penalty": fields.number("presence_penalty", least=-2, most=2),
        "repetition_penalty": fields.number("repetition_penalty", least=0.01, most=100),
        "logit_bias": _biases(fields, served),
    }
    given = {name: value for name, value in given.items() if value is not None}
    # Where others write 0 or -1 for "all", the runtime has None; a top_p of 0 is the most likely.
    if given.get("top_k") in (0, -1):
        given["top_k"] = None
    if given.get("min_p") == 0:
        given["min_p"] = None
    if given.get("top_p") == 0:
        given["top_p"], given["top_k"] = None, 1
    seed = fields.whole("seed", least=-(1 << 63), most=(1 << 63) - 1)
    return Choosing(
        sampling=replace(served.model.default_sampling, **given),
        stop=_stops(fields),
        seed=None if seed is None else seed % (1 << 64),
        n=fields.whole("n", least=1, most=128, default=1) or 1,
        priority=fields.whole("priority", least=1 - (1 << 31), default=0) or 0,
    )


def _stops(fields: Fields) -> tuple[str, ...]:
    value = fields.any("stop")
    found = [] if value is None else [value] if isinstance(value, str) else value
    if (
        not isinstance(found, list)
        or len(found) > MOST_STOPS
        or not all(isinstance(item, str) and 0 < len(item) <= MOST_STOP_TEXT for item in found)
    ):
        raise fields.error(
            "stop",
            f"must be a string of 1 to {MOST_STOP_TEXT} characters, or up to {MOST_STOPS} of them, "
            f"got {str(value)[:60]!r}",
        )
    return tuple(found)


def _biases(fields: Fields, served: ServedModel) -> dict[int, float] | None:
    given = fields.object("logit_bias")
    if given is None:
        return None
    if len(given) > MOST_BIASES:
        raise fields.error("logit_bias", f"holds {len(given)} ids; at most {MOST_BIASES} are taken")
    vocab, found = vocab_size(served.model), {}
    for name, bias in given.items():
        is_id = name.isascii() and name.isdigit() and len(name) <= 9 and int(name) < vocab
        if not is_id or type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise fields.error(
                "logit_bias",
                f"maps ids below {vocab}, as texts, to numbers from -100 to 100, got {name!r}: "
                f"{bias!r}",
            )
        found[int(name)] = -math.inf if bias == NEVER else float(bias)
    return {**served.model.default_sampling.logit_bias, **found}
