"""Depthwise convolutions as sums of shifted products."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from causal_onnx.export.lower.depthwise import MOST_TAPS, write_depthwise

CHANNELS = 6


def convolution(
    *, taps: int = 3, inner: int = 1, dtype: Any = np.float32, bias: bool = True, **options: Any
) -> ir.Model:
    """(batch, channels, length) convolved, and made absolute."""
    random = np.random.default_rng(0)
    group = CHANNELS // inner
    arrays = {"w": random.normal(size=(CHANNELS, inner, taps)).astype(dtype)}
    if bias:
        arrays["b"] = random.normal(size=CHANNELS).astype(dtype)
    x = ir.val("x", ir.DataType.from_numpy(np.dtype(dtype)), ["batch", CHANNELS, "length"])
    weights = [
        ir.val(name, const_value=ir.tensor(array, name=name)) for name, array in arrays.items()
    ]
    node = ir.node("Conv", [x, *weights], {"group": group, **options})
    last = ir.node("Abs", [node.outputs[0]], name="last")
    last.outputs[0].name, last.outputs[0].dtype = "y", x.dtype
    graph = ir.Graph(
        [x],
        last.outputs,
        nodes=[node, last],
        initializers=weights,
        opset_imports={"": 21},
        name="g",
    )
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    (found,) = session.run(None, {"x": x})
    return found


def numbers(batch: int, length: int) -> np.ndarray:
    return np.random.default_rng(length).normal(size=(batch, CHANNELS, length)).astype(np.float32)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("taps", "options"),
    [
        (1, {}),
        (2, {}),
        (4, {"pads": [3, 0]}),
        (4, {"pads": [3, 3]}),
        (3, {"dilations": [5], "pads": [10, 0]}),
        (MOST_TAPS, {"strides": [1]}),
    ],
)
def test_the_products_are_the_convolution(taps: int, options: dict[str, Any], bias: bool) -> None:
    model = convolution(taps=taps, bias=bias, **options)
    before = ir.from_proto(ir.to_proto(model))
    assert write_depthwise(model) == 1
    assert "Conv" not in {node.op_type for node in model.graph}
    for batch, length in ((1, 11), (3, 64)):
        x = numbers(batch, length)
        np.testing.assert_allclose(run(model, x), run(before, x), rtol=1e-5, atol=1e-6)


def test_a_position_has_the_same_bits_in_a_call_of_any_length() -> None:
    model = convolution(taps=4)
    write_depthwise(model)
    x = numbers(2, 200)
    whole = run(model, x)
    for end in (4, 5, 7, 50):
        np.testing.assert_array_equal(run(model, x[..., :end]), whole[..., : end - 3])
    np.testing.assert_array_equal(run(model, x[1:]), whole[1:])


@pytest.mark.parametrize(
    "options",
    [
        {"taps": MOST_TAPS + 1},
        {"inner": 2},
        {"strides": [2]},
        {"auto_pad": "SAME_UPPER"},
        {"dtype": np.float16},
    ],
    ids=str,
)
def test_other_convolutions_stay(options: dict[str, Any]) -> None:
    assert write_depthwise(convolution(**options)) == 0


def test_a_convolution_that_is_an_output_stays() -> None:
    model = convolution()
    node, last = model.graph
    last.replace_input_with(0, node.inputs[0])
    model.graph.outputs[0] = node.outputs[0]
    assert write_depthwise(model) == 0
