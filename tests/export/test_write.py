"""Files of an export appear whole, each model with its own weights, wherever the writing ends."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tools.fuzz import kills

from causal_onnx.export import write as artifact
from causal_onnx.export.analysis.session import plain_session
from causal_onnx.export.write import (
    read_back,
    staged,
    weights_in_memory,
    write_mapped,
    write_model,
)
from causal_onnx.runtime.contract import CONTRACT_KEY, Contract, TensorSpec
from causal_onnx.runtime.model import load

X = np.ones((1, 2, 16), np.float32)


@pytest.fixture(autouse=True)
def _beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "EXTERNAL_DATA_FROM_BYTES", 1000)


def times(number: float) -> ir.Model:
    """What multiplies its input by a matrix of one number."""
    weight = ir.tensor(np.full((16, 16), number, np.float32), name="w")
    kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", "seq", 16])
    x = ir.Value(name="x", type=kind, shape=shape)
    node = ir.Node("", "MatMul", [x, w := ir.Value(name="w", const_value=weight)], num_outputs=1)
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", kind, shape
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def write(path: Path, number: float) -> None:
    axes = ("batch", "seq", 16)
    x, y = (TensorSpec(name=name, dtype="float32", axes=axes) for name in "xy")
    contract = Contract(inputs=(x,), outputs=(y,))
    with staged(path) as draft:
        write_model(times(number), draft, {CONTRACT_KEY: contract.to_json()})


def dies_at_move(path: Path, number: float, count: int) -> None:
    """Write in a child that is killed once it has moved so many files."""
    child = os.fork()
    if child == 0:
        real, moved = Path.replace, []

        def replace(self: Path, target: Path) -> Path:
            result = real(self, target)
            if target.parent == path.parent:
                moved.append(target)
            if len(moved) == count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        Path.replace = replace  # type: ignore[method-assign, assignment]
        try:
            write(path, number)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


@pytest.mark.parametrize(("count", "number"), [(1, 1.0), (2, 2.0)])
def test_a_kill_between_the_moves_leaves_the_old_or_the_new(
    tmp_path: Path, count: int, number: float
) -> None:
    path = tmp_path / "m.onnx"
    write(path, 1.0)
    dies_at_move(path, 2.0, count)
    assert np.unique(load(path, threads=1)(X)) == 16 * number
    assert len(list(tmp_path.iterdir())) > 2
    write(path, 3.0)
    assert np.unique(load(path, threads=1)(X)) == 48
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_of_the_old_model_go_and_those_of_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"m.onnx.0123.data", "n.onnx.0123456789abcdef.data", "m.onnx.data", "x.data"}
    for name in others:
        (tmp_path / name).touch()
    write(tmp_path / "m.onnx", 1.0)
    monkeypatch.setattr(artifact, "EXTERNAL_DATA_FROM_BYTES", 10**9)
    write(tmp_path / "m.onnx", 2.0)
    assert {item.name for item in tmp_path.iterdir()} == {"m.onnx", *others}


def test_weights_by_the_name_of_former_versions_go_with_their_model(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    ir.save(times(1.0), path, external_data="m.onnx.data", size_threshold_bytes=0)
    write(path, 2.0)
    assert sorted(tmp_path.glob("*.data")) == sorted(tmp_path.glob("m.onnx.????????????????.data"))


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder / "m.onnx", 1.5)
    first, second = (sorted((tmp_path / folder).iterdir()) for folder in "ab")
    assert [path.name for path in first] == [path.name for path in second]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> kills.Place:
    return kills.Place(tmp_path_factory.mktemp("kills"))


def test_kills_at_random_moments_leave_what_was_written(place: kills.Place) -> None:
    found = kills.run(place, count=20, seed=0)
    assert sum(found[kind, "whole"] for kind in kills.KINDS) == 20
    assert sum(found.values()) == 20


def test_a_place_that_holds_something_else_is_noticed(place: kills.Place) -> None:
    for kind in kills.KINDS:
        write_kind = place.writer(kind)
        write_kind(0)
        assert place.outcome(kind) == "whole"
        assert place.is_clean(kind)
        (place.path(kind).parent / ".draft").touch()
        assert not place.is_clean(kind)
    (first, second) = sorted(place.path("weights beside").parent.glob("m.onnx*"))
    second.write_bytes(second.read_bytes()[::-1])
    assert place.outcome("weights beside") == "mixed"
    first.unlink()
    assert place.outcome("weights beside") == "lost"


def of_every_kind() -> ir.Model:
    """Tensors large and small, in types of every width, strided, with names, notes and outputs."""
    model = times(1.0)
    wide = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
    tensors = {
        "transposed": ir.tensor(wide.T),
        "noted": ir.tensor(wide, doc_string="a note"),
        "half": ir.tensor(wide.astype(np.float16)),
        "nibbles": ir.tensor((wide > 0).astype(np.int8), dtype=ir.DataType.INT4),
        "brain": ir.tensor(wide.astype(ml_dtypes.bfloat16)),
        "scalar": ir.tensor(np.float32(3)),
        "text": ir.StringTensor([b"x" * 5000], shape=ir.Shape([1])),
        "as read": ir.serde.TensorProtoTensor(onnx.numpy_helper.from_array(wide, "as read")),
    }
    for name, tensor in tensors.items():
        model.graph.initializers[name] = ir.Value(name=name, const_value=tensor)
    model.metadata_props["b"] = model.metadata_props["a"] = "1"
    return model


def test_a_streamed_file_is_what_protobuf_would_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "EXTERNAL_DATA_FROM_BYTES", 10**9)
    path, model = tmp_path / "m.onnx", of_every_kind()
    size = write_model(model, path, {"key": "text"})
    assert path.read_bytes() == ir.to_proto(model).SerializeToString(deterministic=True)
    assert size == path.stat().st_size
    assert {item.name for item in model.graph.initializers.values()} >= {"w", "nibbles", "text"}


def test_what_is_read_back_is_what_the_file_holds_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "EXTERNAL_DATA_FROM_BYTES", 10**9)
    path, model = tmp_path / "m.onnx", of_every_kind()
    read = read_back(model, {"key": "text"})
    write_model(model, path, {"key": "text"})
    held = ir.load(path)
    assert ir.to_proto(read) == ir.to_proto(held)
    weight = model.graph.initializers["transposed"].const_value
    assert read.graph.initializers["transposed"].const_value is weight


def test_what_is_mapped_for_checks_is_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact, "EXTERNAL_DATA_FROM_BYTES", 10**9)
    model = of_every_kind()
    for folder in "ab":
        (tmp_path / folder).mkdir()
    write_mapped(model, tmp_path / "a" / "m.onnx", {})
    write_model(model, tmp_path / "b" / "m.onnx", {})
    held, kept = ir.load(tmp_path / "a" / "m.onnx"), ir.load(tmp_path / "b" / "m.onnx")
    assert {n.name for n in (tmp_path / "a").iterdir()} == {"m.onnx", "m.onnx.draft.data"}
    found, given = (m.graph.initializers for m in (held, kept))
    numbers = [name for name in given if name != "text"]
    assert len(numbers) > 6
    assert all(
        found[name].const_value.tobytes() == given[name].const_value.tobytes()  # type: ignore[union-attr]
        for name in numbers
    )
    assert list(held.metadata_props) == list(kept.metadata_props)


def test_only_weights_that_lie_as_they_are_written_are_taken_from_memory() -> None:
    model = of_every_kind()
    found = weights_in_memory(model)
    assert set(found) == {"noted", "half"}
    for name, array in found.items():
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        assert np.shares_memory(array, tensor.numpy())


def looks_up(table: np.ndarray) -> ir.Model:
    """What gives rows of a table."""
    ids = ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape(["n"]))
    held = ir.Value(name="table", const_value=ir.tensor(table, name="table"))
    node = ir.Node("", "Gather", [held, ids], num_outputs=1)
    rows = node.outputs[0]
    rows.name, rows.type = "rows", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([ids], [rows], nodes=[node], initializers=[held], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def test_a_session_reads_weights_where_they_lie(tmp_path: Path) -> None:
    table = np.zeros((64, 64), np.float32)
    model = looks_up(table)
    write_mapped(model, tmp_path / "m.onnx", {})
    session = plain_session(str(tmp_path / "m.onnx"), weights=weights_in_memory(model))
    table[3] = 7.0
    rows = session.run(None, {"ids": np.array([3, 4], np.int64)})[0]
    np.testing.assert_array_equal(rows, np.repeat(np.float32([[7], [0]]), 64, 1))


def test_nothing_that_was_mapped_stays_beside_the_model(tmp_path: Path) -> None:
    write_mapped(of_every_kind(), tmp_path / "m.onnx", {})
    write_model(times(1.0), tmp_path / "m.onnx", {})
    assert not (tmp_path / "m.onnx.draft.data").exists()
    write_mapped(times(1.0), tmp_path / "small.onnx", {})
    assert not (tmp_path / "small.onnx.draft.data").exists()
