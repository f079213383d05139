from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from causal_onnx.models.config import Activation
from causal_onnx.models.mlp import make_mlp

ACTIVATIONS: dict[Activation, Callable[[float], float]] = {
    "relu": lambda z: max(z, 0.0),
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_two_matrices_with_an_activation_between(activation: Activation, bias: bool) -> None:
    torch.manual_seed(0)
    mlp = make_mlp(3, 5, activation=activation, bias=bias).double()
    weights = {name: value.tolist() for name, value in mlp.state_dict().items()}
    assert ("up_proj.bias" in weights) == ("down_proj.bias" in weights) == bias
    x = [2.0, -3.0, 0.5]
    hidden = [
        ACTIVATIONS[activation](value)
        for value in affine(weights["up_proj.weight"], x, weights.get("up_proj.bias"))
    ]
    expected = affine(weights["down_proj.weight"], hidden, weights.get("down_proj.bias"))
    got = mlp(torch.tensor([[x]], dtype=torch.float64))[0, 0].tolist()
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
def test_swiglu_gates_with_silu(bias: bool) -> None:
    torch.manual_seed(0)
    mlp = make_mlp(3, 5, activation="swiglu", bias=bias).double()
    weights = {name: value.tolist() for name, value in mlp.state_dict().items()}
    x = [2.0, -3.0, 0.5]
    gate = affine(weights["gate_proj.weight"], x, weights.get("gate_proj.bias"))
    up = affine(weights["up_proj.weight"], x, weights.get("up_proj.bias"))
    hidden = [g / (1 + math.exp(-g)) * u for g, u in zip(gate, up, strict=True)]
    expected = affine(weights["down_proj.weight"], hidden, weights.get("down_proj.bias"))
    got = mlp(torch.tensor([[x]], dtype=torch.float64))[0, 0].tolist()
    assert got == pytest.approx(expected, rel=1e-12)


def affine(matrix: list[list[float]], x: list[float], bias: list[float] | None) -> list[float]:
    offsets = bias or [0.0] * len(matrix)
    return [
        math.fsum(weight * value for weight, value in zip(row, x, strict=True)) + offset
        for row, offset in zip(matrix, offsets, strict=True)
    ]
