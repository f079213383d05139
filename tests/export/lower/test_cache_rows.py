"""Rows that stand at different positions: new keys behind each row's own past, and what is kept."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from causal_onnx.export.attention.canonical_core import CanonicalCore
from causal_onnx.export.attention.footprint import Footprint
from causal_onnx.export.graph.writer import Writer
from causal_onnx.export.lower.cache_rows import join_rows
from tests.export.captured import run_model

HEADS, WIDTH, SLOTS, NEW = 2, 3, 4, 2
KEYS = ("batch", HEADS, NEW, WIDTH)
PAST = ("batch", HEADS, "past_seq", WIDTH)
INPUTS = {"q": KEYS, "k": KEYS, "v": KEYS, "past_k": PAST, "past_v": PAST}


def value(name: str, shape: tuple[str | int, ...], dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def joined(window: int = 0, bounded: int = 0) -> ir.Model:
    """A graph of one core's join: k, allowed and the present keys of each row."""
    tensors = {name: value(name, shape, ir.DataType.FLOAT) for name, shape in INPUTS.items()}
    rows = [value(name, ("batch",), ir.DataType.INT64) for name in ("row_past", "row_total")]
    q, k, v, past_k, past_v = tensors.values()
    node = ir.node(
        "Core",
        [q, k, v, None, past_k, past_v, *rows],
        {"window": window, "bounded": bounded},
        domain="causal_onnx",
    )
    graph = ir.Graph([*tensors.values(), *rows], [], nodes=[node], opset_imports={"": 20})
    write = Writer(graph, node)
    core = CanonicalCore(
        node=node,
        footprint=Footprint(kind="other", never_later=False),
        has_bias=False,
        has_batch=True,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=WIDTH,
        value_dim=WIDTH,
    )
    assert core.rows == tuple(rows)
    result = join_rows(write, core)
    outputs = (result.k, result.allowed(write), result.present_k)
    for name, out, dtype in zip(("k_all", "allowed", "present"), outputs, "fbf", strict=True):
        kept = write("Identity", out)
        kept.name = name
        kept.type = ir.TensorType(ir.DataType.BOOL if dtype == "b" else ir.DataType.FLOAT)
        graph.outputs.append(kept)
    graph.remove(node)
    graph.inputs[:] = [i for i in graph.inputs if i.uses()]
    return ir.Model(graph, ir_version=10)


def fed(lengths: list[int], model: ir.Model) -> dict[str, np.ndarray]:
    """The outputs for rows that hold `lengths` keys each of `SLOTS`, and NEW new ones.

    A past key of row b at slot s is 10 b + s; the new ones are 100 b + 50, 100 b + 51.
    """
    batch = len(lengths)
    old = 10.0 * np.arange(batch)[:, None] + np.arange(SLOTS)
    new = 100.0 * np.arange(batch)[:, None] + 50 + np.arange(NEW)
    given = {
        **{name: _keys(new) for name in ("q", "k", "v")},
        **{name: _keys(old) for name in ("past_k", "past_v")},
        "row_past": np.array(lengths, np.int64),
        "row_total": np.array(lengths, np.int64) + NEW,
    }
    results = run_model(model, [given[str(i.name)] for i in model.graph.inputs])
    return dict(zip(("k", "allowed", "present"), results, strict=True))


def _keys(numbers: np.ndarray) -> np.ndarray:
    shape = (numbers.shape[0], HEADS, numbers.shape[1], WIDTH)
    return np.broadcast_to(numbers[:, None, :, None], shape).astype(np.float32)


def test_new_keys_stand_behind_each_rows_own_past() -> None:
    k = fed([4, 1], joined())["k"][:, 0, :, 0]
    assert k[0].tolist() == [0, 1, 2, 3, 50, 51]
    assert k[1, :3].tolist() == [10, 150, 151]


def test_all_heads_and_widths_are_joined_alike() -> None:
    k = fed([4, 1], joined())["k"]
    assert (k == k[:, :1, :, :1]).all()


@pytest.mark.parametrize("window", [0, 2])
def test_a_query_looks_up_to_its_own_key_and_back_to_its_window(window: int) -> None:
    allowed = fed([4, 1], joined(window=window))["allowed"][:, 0]
    for row, held in enumerate([4, 1]):
        for query in range(NEW):
            place = held + query
            first = max(0, place - window + 1) if window else 0
            assert np.flatnonzero(allowed[row, query]).tolist() == list(range(first, place + 1))


def test_a_bounded_cache_keeps_the_last_keys_of_each_row() -> None:
    present = fed([6, 1], joined(bounded=SLOTS))["present"][:, 0, :, 0]
    assert present[0].tolist() == [2, 3, 50, 51]
    assert present[1, :3].tolist() == [10, 150, 151]
