"""Whatever the bytes, the scan gives a clear error or passes; nothing here reaches onnxruntime."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tools.fuzz.layout import Layout
from tools.fuzz.mutate import Base, change_bytes, mutate_model

from causal_onnx.runtime import ArtifactError, Limits, Model, load, read_artifact
from causal_onnx.runtime.artifact.protobuf import WindowedFile, fields
from causal_onnx.runtime.contract import CachePair
from causal_onnx.runtime.scan import numbers, scan, sizes
from causal_onnx.runtime.scan.numbers import Contents
from causal_onnx.runtime.scan.rules import ALLOWED
from causal_onnx.runtime.scan.sizes import Number, between, high_of, infimum, low_of, supremum
from causal_onnx.runtime.scan.values import INT64, Node, Value
from tests.runtime.artifacts import FIXTURES, field, fixture
from tests.runtime.onnx_bytes import external, model

pytest.importorskip("hypothesis", reason="the thin environment is without it")
from hypothesis import given, settings
from hypothesis import strategies as st

BASES = [
    Base(path.stem, path.read_bytes(), Layout.of(path.read_bytes()))
    for path in sorted(FIXTURES.glob("*.onnx"))
]


def cached_model() -> Model:
    whole = load(fixture("cached")).contract
    pairs = (CachePair(past="past", present="present"),)
    contract = replace(whole, cache=pairs, mask="attention_mask")
    return load(fixture("cached"), threads=1, contract=contract)


def is_refused(content: bytes) -> bool:
    try:
        scan(read_artifact(content), Limits())
    except ArtifactError:
        return True
    return False


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.binary(max_size=300))
def test_any_bytes_are_refused_clearly(content: bytes) -> None:
    assert is_refused(content)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(0, 2**32))
def test_mutated_files_pass_or_are_refused_clearly(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(5):
        is_refused(mutate_model(rng.choice(BASES), BASES, rng)[0])


def test_mutations_are_both_found_and_harmless() -> None:
    """Else the property above says nothing."""
    rng = random.Random(1)
    results = [is_refused(mutate_model(rng.choice(BASES), BASES, rng)[0]) for _ in range(200)]
    assert 60 < sum(results) < 180


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.text(max_size=12) | st.sampled_from(["w.data", "../w.data", "/w.data", "w.data/"]))
def test_no_name_but_that_of_a_file_beside_the_model_is_followed(
    tmp_path_factory: pytest.TempPathFactory, location: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / "beside"
    folder.mkdir(exist_ok=True)
    np.zeros(4, np.float32).tofile(folder / "w.data")
    path = folder / "m.onnx"
    path.write_bytes(
        model(tensors=[external(location=location.encode("utf8", "replace").decode())])
    )
    if location == "w.data":
        with scan(read_artifact(path), Limits()) as held:
            assert held.files == {"w.data"}
    else:
        with pytest.raises(ArtifactError):
            scan(read_artifact(path), Limits())


NUMBERS = st.lists(
    st.tuples(st.integers(1, 200), st.integers(0, 2**64 - 1) | st.binary(max_size=30)),
    max_size=8,
)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(NUMBERS)
def test_fields_are_read_as_they_are_written(wanted: list[tuple[int, int | bytes]]) -> None:
    content = b"".join(field(number, value) for number, value in wanted)
    source = WindowedFile(BytesIO(content))
    got = [
        (number, source.read(value, length) if wire_type == 2 else value)
        for number, wire_type, value, length, _ in fields(source, 0, len(content))
    ]
    assert got == wanted


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "Add": np.add,
    "Sub": np.subtract,
    "Mul": np.multiply,
    "Div": lambda a, b: np.trunc(a / b).astype(np.int64),
    "Min": np.minimum,
    "Max": np.maximum,
    "Mod": np.mod,
    "Less": lambda a, b: (a < b).astype(np.int64),
    "Equal": lambda a, b: (a == b).astype(np.int64),
}
SPANS = st.lists(st.tuples(st.integers(-1000, 1000), st.integers(0, 50)), min_size=3, max_size=3)


def computed(op_type: str, left: Sequence[Number], right: Sequence[Number]) -> Value:
    """What the scan knows of an operator on two vectors of int64."""
    inputs = [Value(INT64, (len(side),), Contents.of(side)) for side in (left, right)]
    node = Node(op_type, "", "the node", 20, inputs, 1, {})
    return ALLOWED["", op_type].result(node)[0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SPANS, SPANS, st.sampled_from(sorted(OPERATIONS)), st.integers(0, 2**32))
def test_spans_hold_what_the_operator_gives(
    left: list[tuple[int, int]], right: list[tuple[int, int]], op_type: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    if op_type in ("Div", "Mod"):
        right = [(abs(low) + 1, width) for low, width in right]
    spans = [[(low, low + width) for low, width in side] for side in (left, right)]
    got = computed(op_type, *([between((x,), (y,)) for x, y in side] for side in spans)).known
    assert got is not None
    assert got.items is not None
    for _ in range(20):
        a, b = (np.array([rng.integers(x, y + 1) for x, y in side]) for side in spans)
        for value, item in zip(OPERATIONS[op_type](a, b), got.items, strict=True):
            assert infimum(low_of(item)) <= value <= supremum(high_of(item)), (a, b)


EXTREME = st.sampled_from(
    [-(2**63), -(2**62), -(2**32), -2, -1, 0, 1, 2, 3, 2**31, 2**62, 2**63 - 1]
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(EXTREME, EXTREME, st.sampled_from(["Add", "Sub", "Mul", "Min", "Max", "Less", "Equal"]))
def test_whole_numbers_wrap_as_in_memory_or_are_any_number(a: int, b: int, op_type: str) -> None:
    (item,) = computed(op_type, [a], [b]).known.items  # type: ignore[union-attr, misc]
    with np.errstate(over="ignore"):
        value = OPERATIONS[op_type](np.int64(a), np.int64(b))
    assert infimum(low_of(item)) <= value <= supremum(high_of(item))


SIZES = st.recursive(
    st.sampled_from(["a", "b"]) | st.integers(0, 20),
    lambda inner: st.tuples(
        st.sampled_from(["+", "-", "*", "//", "%", "min", "max"]), inner, inner
    ),
    max_leaves=8,
)


def evaluated(
    tree: Any, axes: dict[str, Any], functions: dict[str, Callable[[Any, Any], Any]]
) -> Any:
    if isinstance(tree, tuple):
        return functions[tree[0]](*(evaluated(part, axes, functions) for part in tree[1:]))
    return axes.get(tree, tree)


PLAIN: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: abs(a) // max(b, 1) * (1 if a >= 0 else -1),
    "%": lambda a, b: a % max(b, 1),
    "min": min,
    "max": max,
}
SYMBOLIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": sizes.add,
    "-": sizes.subtract,
    "*": sizes.multiply,
    "//": lambda a, b: sizes.divide(a, numbers.maximum(b, 1)),
    "%": lambda a, b: numbers.remainder(a, numbers.maximum(b, 1)),
    "min": numbers.minimum,
    "max": numbers.maximum,
}


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SIZES, st.integers(1, 40), st.integers(1, 40))
def test_bounds_of_sizes_hold_at_every_size(tree: Any, a: int, b: int) -> None:
    found = evaluated(tree, {"a": sizes.axis(1), "b": sizes.axis(1)}, SYMBOLIC)
    value = evaluated(tree, {"a": a, "b": b}, PLAIN)
    n = max(a, b)
    slack = 1e-6 * (1 + abs(value))
    assert infimum(low_of(found)) <= value + slack
    assert value <= supremum(high_of(found), n) + slack


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.booleans())
def test_a_changed_stream_is_refused_clearly(
    tmp_path_factory: pytest.TempPathFactory, seed: int, right_hash: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "stream"
    cached = cached_model()
    stream = cached.stream(batch=2)
    stream.run(np.ones((2, 3, 4), np.float32))
    stream.save(path)
    head, _, payload = path.read_bytes().partition(b"\n")
    changed = change_bytes(payload, random.Random(seed))
    document = json.loads(head)
    if right_hash:
        document["sha256"] = hashlib.sha256(changed).hexdigest()
    path.write_bytes(json.dumps(document).encode() + b"\n" + changed)
    with contextlib.suppress(ArtifactError):
        assert len(cached.restore(path).lengths) == 2


def test_a_stream_of_other_shapes_is_refused(tmp_path: Path) -> None:
    """With the hash put right: what it holds must be what a stream can hold."""
    cached = cached_model()
    stream = cached.stream()
    stream.run(np.ones((1, 3, 4), np.float32))
    stream.save(tmp_path / "s")
    head = json.loads((tmp_path / "s").read_bytes().partition(b"\n")[0])
    lengths, past = np.array([3]), np.ones((1, 3, 4), np.float32)
    for arrays, message in (
        ({"lengths": lengths}, "has no 'past'"),
        ({"past": past}, "There is no item named 'lengths.npy'"),
        ({"lengths": lengths, "past": past[:, :2]}, r"expected float32 \(1, 3, 4\)"),
        ({"lengths": lengths, "past": past.astype(np.float64)}, "'past' is float64"),
        ({"lengths": lengths, "past": past, "more": past}, "it holds lengths, more, past"),
        ({"lengths": -lengths, "past": past}, "the rows have the lengths"),
        ({"lengths": np.array([99]), "past": past}, "a row has 99 positions, the model takes 16"),
        ({"lengths": np.array(3), "past": past}, r"has the shape \(\), expected \(batch,\)"),
        ({"lengths": np.array([3], object), "past": past}, "'lengths' is object"),
    ):
        content = BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        head["sha256"] = hashlib.sha256(content.getvalue()).hexdigest()
        (tmp_path / "s").write_bytes(json.dumps(head).encode() + b"\n" + content.getvalue())
        with pytest.raises(ArtifactError, match=message):
            cached.restore(tmp_path / "s")
    content = BytesIO()
    np.savez_compressed(content, lengths=lengths, past=past)
    head["sha256"] = hashlib.sha256(content.getvalue()).hexdigest()
    (tmp_path / "s").write_bytes(json.dumps(head).encode() + b"\n" + content.getvalue())
    with pytest.raises(ArtifactError, match="is compressed"):
        cached.restore(tmp_path / "s")
