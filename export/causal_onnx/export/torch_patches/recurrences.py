"""Recurrences of PyTorch, written as operators of ONNX where they are traced.

PyTorch writes out a recurrent layer step by step while it traces, which fixes the length:
"Constraints violated". Of the running reductions the exporter translates none but the sum, and
`logcumsumexp` it translates by the maximum of all positions: later ones move earlier results, and
what is small beside the largest is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from causal_onnx.export.outcome import handed_over

__all__ = ["RUNNING", "layers", "methods", "replacements"]

RUNNING = "Running"
"""An operator of the domain causal_onnx: (x) -> (values, indices), with the attributes `kind`,
"prod", "max", "min" or "logsumexp", and `axis`. `capture/running.py` writes it as a Scan."""

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "Tanh": (0,), "Relu": (0,)}
"""Kind of layer -> for each gate in ONNX's order its number in PyTorch's."""

_VF = torch._VF


class _Extreme(NamedTuple):
    values: Tensor
    indices: Tensor


def replacements() -> list[tuple[Any, Callable[..., Any]]]:
    """Pairs of a function of PyTorch and ours."""
    return [
        (torch.logcumsumexp, _logcumsumexp),
        (torch.cumprod, _cumprod),
        (torch.cummax, _extreme("max")),
        (torch.cummin, _extreme("min")),
    ]


def methods() -> dict[str, Callable[..., Any]]:
    """Ours for methods of a tensor, by name."""
    return {
        "logcumsumexp": _logcumsumexp,
        "cumprod": _cumprod,
        "cummax": _extreme("max"),
        "cummin": _extreme("min"),
    }


def layers() -> tuple[Any, dict[str, Callable[..., Any]]]:
    """Through what the recurrent layers compute, and ours for its functions, by name."""
    kinds = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "Tanh", "rnn_relu": "Relu"}
    return _VF, {name: _in_layers(kind, getattr(_VF, name)) for name, kind in kinds.items()}


def _running(kind: str, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    values, indices = torch.onnx.ops.symbolic_multi_out(
        f"causal_onnx::{RUNNING}",
        (x,),
        {"kind": kind, "axis": dim % x.ndim},
        dtypes=(x.dtype, torch.int64),
        shapes=(x.shape, x.shape),
        version=1,
    )
    return values, indices


def _logcumsumexp(input: Tensor, dim: int) -> Tensor:
    return _running("logsumexp", input, dim)[0] if input.ndim else input


def _cumprod(
    input: Tensor,
    dim: int,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if dtype is None and not input.is_floating_point():
        dtype = torch.int64
    whole = input if dtype is None else input.to(dtype)
    return _running("prod", whole, dim)[0] if input.ndim else whole


def _extreme(kind: str) -> Callable[..., _Extreme]:
    def extreme(input: Tensor, dim: int) -> _Extreme:
        if not input.ndim:
            return _Extreme(input, torch.zeros_like(input, dtype=torch.int64))
        return _Extreme(*_running(kind, input, dim))

    return extreme


def _in_layers(kind: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def in_layers(  # noqa: PLR0917 - the signature of what it replaces
        x: Tensor,
        hx: Any,
        params: Any,
        has_biases: Any,
        num_layers: Any,
        dropout: Any,
        train: Any,
        bidirectional: Any,
        batch_first: Any = None,
    ) -> Any:
        each, directions = (4 if has_biases is True else 2), (2 if bidirectional else 1)
        if batch_first is None or len(params) != each * directions * num_layers:
            # A packed sequence, whose rows are picked by their lengths; or a projected LSTM.
            given = (x, hx, params, has_biases, num_layers, dropout, train, bidirectional)
            return handed_over(original, *given, *([] if batch_first is None else [batch_first]))
        states = hx if kind == "LSTM" else (hx,)
        x = x.transpose(0, 1) if batch_first else x
        ends = []
        for layer in range(num_layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                own = [_by_gate(kind, p) for p in params[index * each : (index + 1) * each]]
                y, *last = _layer(
                    kind, x, [s[index : index + 1] for s in states], own, reverse=direction == 1
                )
                outputs.append(y.squeeze(1))
                ends.append(last)
            x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        x = x.transpose(0, 1) if batch_first else x
        return (x, *(torch.cat(parts) for parts in zip(*ends, strict=True)))

    return in_layers


def _layer(
    kind: str, x: Tensor, states: list[Tensor], own: list[Tensor], *, reverse: bool
) -> list[Tensor]:
    """One layer in one direction: (seq, 1, batch, hidden), and the last of each state."""
    w, r, *biases = own
    attributes: dict[str, Any] = {
        "hidden_size": r.shape[1],
        "direction": "reverse" if reverse else "forward",
    }
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    if kind == "Relu":
        attributes["activations"] = [kind]
    hidden = states[0].shape
    return list(
        torch.onnx.ops.symbolic_multi_out(
            "ai.onnx::" + ("RNN" if len(_GATES[kind]) == 1 else kind),
            [
                x,
                w.unsqueeze(0),
                r.unsqueeze(0),
                torch.cat(biases).unsqueeze(0) if biases else None,
                None,
                *states,
            ],
            attributes,
            dtypes=[x.dtype] * (1 + len(states)),
            shapes=[(x.shape[0], *hidden), *([hidden] * len(states))],
        )
    )


def _by_gate(kind: str, parameter: Tensor) -> Tensor:
    """The parameter with its gates in ONNX's order."""
    order = _GATES[kind]
    if len(order) == 1:
        return parameter
    gates = parameter.chunk(len(order))
    return torch.cat([gates[number] for number in order])
