"""Attention again, in float64 loops over positions and heads, to compare the modules with."""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from causal_onnx.models import AttentionConfig

Array = npt.NDArray[np.float64]


def weights_of(module: nn.Module) -> dict[str, Array]:
    return {name: value.double().numpy() for name, value in module.state_dict().items()}


def reference_attention(
    x: Array, weights: Mapping[str, Array], config: AttentionConfig
) -> tuple[Array, Array]:
    """Compute output (batch, seq, embed_dim) and weights (batch, num_heads, seq, seq)."""
    batch, seq, _ = x.shape
    groups = config.num_heads // config.resolved_num_kv_heads
    head_dim = config.resolved_head_dim
    probabilities = np.zeros((batch, config.num_heads, seq, seq))
    output = np.zeros((batch, seq, config.embed_dim))
    for b in range(batch):
        for i in range(seq):
            context = []
            for head in range(config.num_heads):
                q = _head(x[b, i], weights, config, role="q", head=head, position=i)
                keys = range(_first_visible(i, config.window), i + 1)
                scores = []
                for j in keys:
                    k = _head(x[b, j], weights, config, role="k", head=head // groups, position=j)
                    score = sum(q * k) * (config.scale or head_dim**-0.5)
                    if config.softcap is not None:
                        score = config.softcap * math.tanh(score / config.softcap)
                    if config.alibi:
                        score -= _slope(head, config.num_heads) * (i - j)
                    scores.append(math.exp(score))
                total = np.zeros(head_dim)
                for j, score in zip(keys, scores, strict=True):
                    probabilities[b, head, i, j] = score / sum(scores)
                    v = _head(x[b, j], weights, config, role="v", head=head // groups, position=j)
                    total += probabilities[b, head, i, j] * v
                context.append(total)
            output[b, i] = _linear(np.concatenate(context), weights, "out_proj")
    return output, probabilities


def largest_error(got: torch.Tensor, expected: npt.NDArray[Any] | torch.Tensor) -> float:
    """Return max |got - expected| relative to max |expected|."""
    want = torch.as_tensor(expected, dtype=torch.float64)
    assert got.shape == want.shape
    return float((got.detach().double() - want).abs().max() / want.abs().max())


def _first_visible(i: int, window: int | None) -> int:
    return 0 if window is None else max(0, i - window + 1)


def _linear(x: Array, weights: Mapping[str, Array], name: str) -> Array:
    return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", np.zeros(1))


def _head(
    x: Array,
    weights: Mapping[str, Array],
    config: AttentionConfig,
    *,
    role: str,
    head: int,
    position: int,
) -> Array:
    """Compute one head's query, key or value at one position."""
    size = config.resolved_head_dim
    vector = _linear(x, weights, f"{role}_proj")[head * size : (head + 1) * size]
    if role == "v":
        return vector
    if config.qk_norm:
        root = math.sqrt(sum(vector**2) / size + config.norm_eps)
        vector = vector / root * weights[f"{role}_norm.weight"]
    if config.rotary is None:
        return vector
    turned = vector.copy()
    for pair in range(size // 2):
        first, second = (
            (pair, pair + size // 2) if config.rotary == "half" else (2 * pair, 2 * pair + 1)
        )
        angle = position * config.rope_base ** (-2 * pair / size)
        z = complex(vector[first], vector[second]) * cmath.exp(1j * angle)
        turned[first], turned[second] = z.real, z.imag
    return turned


def _slope(head: int, num_heads: int) -> float:
    assert num_heads & (num_heads - 1) == 0, "the reference knows powers of two only"
    return float(2 ** (-8 / num_heads)) ** (head + 1)
