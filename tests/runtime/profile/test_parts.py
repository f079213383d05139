"""The parts that a profile is made of, against loops and events written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import RunError, load
from causal_onnx.runtime.profile.costs import weight_bytes
from causal_onnx.runtime.profile.events import Event, Tensor, read_runs
from causal_onnx.runtime.profile.graph import GraphNode, Stored
from causal_onnx.runtime.profile.products import attended_pairs, product_flops
from causal_onnx.runtime.profile.workload import Workload
from causal_onnx.runtime.request.example import make_request
from tests.runtime.artifacts import fixture

Shape = tuple[int, ...]


def item(name: str, op_type: str, start: int, duration: int) -> dict[str, Any]:
    args = {"op_name": op_type, "provider": "CPUExecutionProvider", "parameter_size": "8"}
    shapes = {"input_type_shape": [{"float": [2, 3]}], "output_type_shape": [{"bool": []}]}
    head = {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration}
    return {**head, "args": {**args, **shapes}}


def write_profile(path: Path, *items: dict[str, Any]) -> Path:
    path.write_text(json.dumps(items))
    return path


def call(start: int, duration: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": duration, "args": {}}


def event(op_type: str, inputs: list[Shape], outputs: list[Shape], dtype: str = "float") -> Event:
    return Event(
        name="n",
        op_type=op_type,
        provider="",
        start_us=0,
        total_us=1,
        inputs=tuple(Tensor(dtype, shape) for shape in inputs),
        outputs=tuple(Tensor(dtype, shape) for shape in outputs),
        parameter_bytes=7,
    )


def graph_node(op_type: str, inputs: int | tuple[str, ...], **integers: int) -> GraphNode:
    names = inputs if isinstance(inputs, tuple) else tuple(f"i{n}" for n in range(inputs))
    return GraphNode(
        name="n", op_type=op_type, module="", inputs=names, integers=integers, texts={}
    )


def test_a_node_that_holds_others_keeps_what_they_leave(tmp_path: Path) -> None:
    items = [
        item("inner", "MatMul", 12, 5),
        item("deep", "Add", 20, 2),
        item("loop", "Loop", 19, 6),
        item("choice", "If", 11, 20),
        item("after", "Relu", 31, 4),
    ]
    (run,) = read_runs(write_profile(tmp_path / "p.json", *items, call(10, 30)))
    assert {e.name: e.self_us for e in run.events} == {
        "choice": 20 - 5 - 6,
        "inner": 5,
        "loop": 4,
        "deep": 2,
        "after": 4,
    }
    parents = {e.name: e.parent.name if e.parent else None for e in run.events}
    assert parents["deep"] == "loop"
    assert parents["loop"] == parents["inner"] == "choice"
    assert parents["after"] is parents["choice"] is None


def test_a_node_that_fills_its_holder_is_inside(tmp_path: Path) -> None:
    items = [item("inner", "Add", 5, 3), item("choice", "If", 5, 3), call(4, 6)]
    (run,) = read_runs(write_profile(tmp_path / "p.json", *items))
    assert [(e.name, e.self_us) for e in run.events] == [("choice", 0), ("inner", 3)]


def test_calls_are_told_apart_and_what_is_no_kernel_is_left_out(tmp_path: Path) -> None:
    fence = {**item("a", "Add", 1, 1), "name": "a_fence_before"}
    items = [item("a", "Add", 1, 2), fence, call(0, 5), call(10, 5), item("b", "Add", 11, 2)]
    runs = read_runs(write_profile(tmp_path / "p.json", *items))
    assert [[e.name for e in run.events] for run in runs] == [["a"], ["b"]]
    assert runs[0].events[0].inputs == (Tensor("float", (2, 3)),)
    assert runs[0].events[0].inputs[0].size_bytes == 24


@pytest.mark.parametrize("text", ["", "[", "[1]", '[{"name": "model_run"}]'])
def test_what_is_no_profile_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(RunError, match="profile cannot be read"):
        read_runs(path)


@pytest.mark.parametrize("window", [None, 1, 2, 5, 100])
@pytest.mark.parametrize(("seq", "past"), [(1, 0), (7, 0), (1, 9), (4, 3), (6, 4)])
def test_pairs_are_those_that_a_loop_counts(seq: int, past: int, window: int | None) -> None:
    pairs = sum(
        position - key < (window or position + 1)
        for position in range(past, past + seq)
        for key in range(position + 1)
    )
    assert attended_pairs(seq, past, window=window) == pairs


B, S, P, H, KV, D = 2, 5, 3, 4, 2, 8
PAIRS = S * P + S * (S + 1) // 2
CORE = B * H * PAIRS * 4 * D

Case = tuple[Event, GraphNode, int]
PRODUCTS: dict[str, Case] = {
    "matmul": (event("MatMul", [(B, S, 4)], [(B, S, 6)]), graph_node("MatMul", 2), B * S * 48),
    "vector": (event("MatMul", [(4,), (4,)], [()]), graph_node("MatMul", 2), 8),
    "nbits": (event("MatMulNBits", [(1, 1, 64)], [(1, 1, 9)]), graph_node("MatMulNBits", 3), 1152),
    "gemm": (event("Gemm", [(3, 7), (7, 5)], [(3, 5)]), graph_node("Gemm", 2), 210),
    "gemm-t": (event("Gemm", [(7, 3), (7, 5)], [(3, 5)]), graph_node("Gemm", 2, transA=1), 210),
    "attention": (
        event("Attention", [(B, S, H * D), *[(B, S, KV * D)] * 2], [(B, S, H * D)]),
        graph_node("Attention", 3, q_num_heads=H, kv_num_heads=KV, is_causal=1),
        B * H * (S * (S + 1) // 2) * 4 * D,
    ),
    "attention-full": (
        event("Attention", [(B, H, S, D), (B, H, 9, D), (B, H, 9, D)], [(B, H, S, D)]),
        graph_node("Attention", 3),
        B * H * S * 9 * 4 * D,
    ),
    "attention-past": (
        event(
            "Attention",
            [(B, H, S, D), *[(B, KV, S, D)] * 2, *[(B, KV, P, D)] * 2],
            [(B, H, S, D)],
        ),
        graph_node("Attention", ("q", "k", "v", "", "pk", "pv"), is_causal=1),
        CORE,
    ),
    "grouped": (
        event(
            "GroupQueryAttention",
            [(B, S, H * D), *[(B, S, KV * D)] * 2, *[(B, KV, P, D)] * 2, (B,), ()],
            [(B, S, H * D), *[(B, KV, P + S, D)] * 2],
        ),
        graph_node("GroupQueryAttention", 7, num_heads=H, kv_num_heads=KV),
        CORE,
    ),
    "grouped-packed-buffer": (
        event(
            "GroupQueryAttention",
            [(B, S, (H + 2 * KV) * D), *[(B, KV, 64, D)] * 2, (B,), ()],
            [(B, S, H * D), *[(B, KV, 64, D)] * 2],
        ),
        graph_node(
            "GroupQueryAttention",
            ("qkv", "", "", "pk", "pv", "n", "t"),
            num_heads=H,
            kv_num_heads=KV,
        ),
        CORE,
    ),
    "grouped-window": (
        event(
            "GroupQueryAttention",
            [(B, S, H * D), *[(B, S, KV * D)] * 2, *[(B, KV, P, D)] * 2, (B,), ()],
            [(B, S, H * D), *[(B, KV, P + S, D)] * 2],
        ),
        graph_node("GroupQueryAttention", 7, num_heads=H, kv_num_heads=KV, local_window_size=2),
        B * H * S * 2 * 4 * D,
    ),
    "multi-head": (
        event("MultiHeadAttention", [(B, S, H * D)] * 3, [(B, S, H * D)]),
        graph_node("MultiHeadAttention", 3, num_heads=H, unidirectional=1),
        B * H * (S * (S + 1) // 2) * 4 * D,
    ),
    "other": (event("Add", [(B, S, 4)] * 2, [(B, S, 4)]), graph_node("Add", 2), 0),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_counted(name: str) -> None:
    run, node, expected = PRODUCTS[name]
    assert product_flops(run, node, past=P) == expected


def test_a_convolution_and_an_einsum_are_counted() -> None:
    conv = graph_node("Conv", 2, group=1)
    conv.constants = {1: Stored(size_bytes=4 * 6 * 4 * 3, shape=(6, 4, 3))}
    # Each of 6 x 9 outputs sums over 4 channels and 3 places.
    assert product_flops(event("Conv", [(1, 4, 9)], [(1, 6, 9)]), conv, past=0) == 2 * 54 * 12
    einsum = graph_node("Einsum", 2)
    einsum.texts = {"equation": "bhqd, bhkd -> bhqk"}
    run = event("Einsum", [(2, 3, 5, 8), (2, 3, 7, 8)], [(2, 3, 5, 7)])
    assert product_flops(run, einsum, past=0) == 2 * (2 * 3 * 5 * 7 * 8)


def test_a_node_that_onnxruntime_made_is_counted_by_its_shapes() -> None:
    fused = event("FusedMatMul", [(1, 4, 8, 16), (1, 4, 8, 16)], [(1, 4, 8, 8)])
    assert product_flops(fused, None, past=0) == 2 * 4 * 8 * 8 * 16
    assert product_flops(event("GroupQueryAttention", [(1, 1, 8)], [(1, 1, 8)]), None, past=0) == 0
    assert weight_bytes(fused, None) == 7


def table(op_type: str, constants: dict[int, Stored]) -> GraphNode:
    node = graph_node(op_type, 3)
    node.constants = constants
    return node


WEIGHTS = {
    "product": (event("MatMul", [(1, 4)], [(1, 6)]), {1: Stored(size_bytes=96, shape=(4, 6))}, 96),
    "half as float": (
        event("MatMul", [(1, 4)], [(1, 6)]),
        {1: Stored(size_bytes=48, shape=(4, 6), is_half=True)},
        96,
    ),
    "half as half": (
        event("MatMul", [(1, 4)], [(1, 6)], "float16"),
        {1: Stored(size_bytes=48, shape=(4, 6), is_half=True)},
        48,
    ),
    "rows": (event("Gather", [(9, 4), (3,)], [(3, 4)]), {0: Stored(size_bytes=144)}, 48),
    "more rows than there are": (
        event("Gather", [(9, 4), (50,)], [(50, 4)]),
        {0: Stored(size_bytes=144)},
        144,
    ),
    "rows in blocks": (
        event("GatherBlockQuantized", [(8, 16), (1, 3), (8, 1)], [(1, 3, 32)]),
        {0: Stored(size_bytes=128), 2: Stored(size_bytes=32)},
        3 * (16 + 4),
    ),
    "shape only": (event("Shape", [(9, 4)], [(2,)]), {0: Stored(size_bytes=144)}, 0),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_counted(name: str) -> None:
    run, constants, expected = WEIGHTS[name]
    assert weight_bytes(run, table(run.op_type, constants)) == expected


@pytest.mark.parametrize("past", [0, 6])
def test_a_call_is_the_same_each_time_and_behind_its_past(past: int) -> None:
    model = load(fixture("language"), threads=1)
    work = Workload(model.runner, batch=2, seq=3, past=past)
    assert work.setup_calls == (past > 0)
    stream = model.stream(batch=2)
    if past:
        stream.run(*make_request(model.contract, batch=2, seq=past).values())
    expected = stream.run(*make_request(model.contract, batch=2, seq=3, past=past).values())
    for _ in range(3):
        np.testing.assert_array_equal(work.call()["logits"], expected["logits"])
        work.take_back()


def test_positions_of_a_request_stand_behind_the_past() -> None:
    from causal_onnx.runtime import Contract, TensorSpec

    ids = TensorSpec(name="position_ids", dtype="int64", axes=("batch", "seq"))
    contract = Contract(
        inputs=(ids,), outputs=(TensorSpec(name="y", dtype="float32", axes=("batch", "seq")),)
    )
    request = make_request(contract, batch=2, seq=3, past=5)
    assert request["position_ids"].tolist() == [[5, 6, 7]] * 2
