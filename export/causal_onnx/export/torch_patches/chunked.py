"""Recurrences that transformers computes in chunks, step by step while a module is captured.

The chunks pad the sequence to whole ones, and what crosses from chunk to chunk is nothing that one
position leaves to the next. Step by step the same function is a Scan, whose states are what a cache
keeps. Each replacement is the function that the library itself defines next to the chunked one, or
the recurrence that both compute.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor

from causal_onnx.export.outcome import handed_over
from causal_onnx.export.torch_patches.loop_scan import run

__all__ = ["replacements"]

_BESIDE = {
    "torch_chunk_gated_delta_rule": "torch_recurrent_gated_delta_rule",
    "chunk_kimi_delta_attention": "recurrent_kimi_delta_attention",
}
"""In chunks -> step by step, both of one file."""

_MAMBA2 = "mamba2_chunk_scan"


def replacements(functions: Iterable[FunctionType]) -> list[tuple[Any, Callable[..., Any]]]:
    """Pairs of a chunked function among `functions`, as its module names it, and ours."""
    found: list[tuple[Any, Callable[..., Any]]] = []
    for function in functions:
        name = function.__name__
        given = function.__globals__.get(name)
        if not str(function.__module__).startswith("transformers.") or given is None:
            continue
        beside = function.__globals__.get(_BESIDE.get(name, ""))
        if beside is not None:
            found.append((given, _without_chunks(beside)))
        elif name == _MAMBA2 and _parameters(function) == _parameters(_mamba2):
            found.append((given, _mamba2))
    return found


def _parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def _without_chunks(function: Callable[..., Any]) -> Callable[..., Any]:
    def by_steps(*args: Any, chunk_size: int = 0, **options: Any) -> Any:
        return handed_over(function, *args, **options)

    return by_steps


def _mamba2(  # noqa: PLR0917 - the signature of what it replaces
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    chunk_size: int,
    D: Tensor | None = None,  # noqa: N803
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **kwargs: Any,
) -> Any:
    """h_t = exp(A dt_t) h_(t-1) + dt_t x_t B_t^T, y_t = h_t C_t + D x_t, for each head.

    Source: Dao and Gu 2024, https://arxiv.org/abs/2405.21060, equation 1 and section 7.
    Shapes: x (batch, seq, heads, width), dt (batch, seq, heads), B and C (batch, seq, groups,
    state); the state is (batch, heads, width, state).
    """
    batch, length, heads, width = hidden_states.shape
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if dt_softplus:
        dt = F.softplus(dt)
    dt = dt.clamp(*dt_limit).float()
    x = hidden_states.float()
    shared = heads // B.shape[2]
    keys, queries = (part.float().repeat_interleave(shared, 2) for part in (B, C))
    decay, inflow = torch.exp(A.float() * dt), x * dt.unsqueeze(-1)
    start = (
        torch.zeros(batch, heads, width, B.shape[-1], device=x.device)
        if initial_states is None
        else initial_states.float()
    )

    def step(t: Any, state: Tensor, ys: Any) -> tuple[Tensor, Any]:
        new = inflow[:, t].unsqueeze(-1) * keys[:, t].unsqueeze(-2)
        state = state * decay[:, t].unsqueeze(-1).unsqueeze(-1) + new
        ys.append((state * queries[:, t].unsqueeze(-2)).sum(-1))
        return state, ys

    after = run(
        step, length, {"state": start, "ys": []}, ["state", "ys"], ["ys"], ["state"], ["state"]
    )
    y = torch.stack(after["ys"], 1)
    if D is not None:
        y = y + x * D.unsqueeze(-1)
    return (y, after["state"]) if return_final_states else y
