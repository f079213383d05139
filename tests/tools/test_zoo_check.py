"""The runner's own checks find out files that are wrong, leak, fail or answer beyond the limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tools.zoo.check import Reference, check_file
from tools.zoo.chunks import check_chunks
from tools.zoo.plain import export_plainly, quiet
from tools.zoo.tasks import footprint_fits, names_place

from causal_onnx.export import export
from tests.zoo import GRAPH_MUTANTS, entry

NAME = "attn_sdpa_is_causal"


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(entry(NAME))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    path = tmp_path_factory.mktemp("good") / "plain.onnx"
    export_plainly(entry(NAME), path)
    return onnx.load(path)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    item = entry(NAME)
    path = tmp_path_factory.mktemp("cached") / "cached.onnx"
    with quiet():
        export(item.factory(), path, example=item.inputs(2, 5), axes=item.axes, cache=True)
    return path


def with_last_step(model: onnx.ModelProto, output: str, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A copy in which `nodes` stand between "raw" and what the graph calls `output`."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    rename(changed.graph, output, "raw")
    del changed.graph.output[:]
    changed.graph.output.extend(model.graph.output)
    changed.graph.node.extend(nodes)
    return changed


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """A value of the graph, wherever it is read, in branches too."""
    for value in graph.output:
        value.name = new if value.name == old else value.name
    for node in graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
        node.input[:] = [new if name == old else name for name in node.input]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                rename(attribute.g, old, new)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def test_good_file_is_right(good: onnx.ModelProto, reference: Reference, tmp_path: Path) -> None:
    found = check_file(saved(good, tmp_path), reference)
    assert (found.status, found.leak, found.shapes) == ("right", 0.0, 21)
    assert found.max_error < 1e-5


def test_other_numbers_are_wrong(
    good: onnx.ModelProto, reference: Reference, tmp_path: Path
) -> None:
    name = good.graph.output[0].name
    model = with_last_step(good, name, helper.make_node("Mul", ["raw", "factor"], [name]))
    factor = numpy_helper.from_array(np.array(1.0001, dtype=np.float32), "factor")
    model.graph.initializer.append(factor)
    found = check_file(saved(model, tmp_path), reference)
    assert found.status == "wrong"
    assert "batch 1, length 1: output 0 is off by 1.0e-04" in found.reason


def test_folded_shape_is_wrong(good: onnx.ModelProto, reference: Reference, tmp_path: Path) -> None:
    name = good.graph.output[0].name
    model = with_last_step(good, name, helper.make_node("Reshape", ["raw", "folded"], [name]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, -1, 16]), "folded"))
    found = check_file(saved(model, tmp_path), reference)
    assert found.status == "wrong"
    assert "batch 2, length 1: output 0 has shape (1, 2, 16) instead of (2, 1, 16)" in found.reason


@pytest.mark.parametrize("name", ["output_reversed", "mean_subtracted", "successor_added"])
def test_broken_graph_is_not_right(
    good: onnx.ModelProto, reference: Reference, tmp_path: Path, name: str
) -> None:
    model = next(m for m in GRAPH_MUTANTS if m.name == name).mutate(good)
    assert model is not None
    assert check_file(saved(model, tmp_path), reference).status == "wrong"


def test_fixed_length_fails(good: onnx.ModelProto, reference: Reference, tmp_path: Path) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(good)
    axis = model.graph.input[0].type.tensor_type.shape.dim[1]
    axis.ClearField("dim_param")
    axis.dim_value = 7
    found = check_file(saved(model, tmp_path), reference)
    assert found.status == "fails"
    assert found.reason.startswith("batch 1, length 1: InvalidArgument")


def test_garbage_is_unloadable(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    assert check_file(path, reference).status == "unloadable"


def test_answer_beyond_the_limit_is_noticed(tmp_path: Path) -> None:
    item = entry("guard_raise")
    export_plainly(item, tmp_path / "plain.onnx")
    found = check_file(tmp_path / "plain.onnx", Reference(item))
    assert (found.status, found.beyond) == ("right", "answers")


def test_good_cache_is_right(cached: Path, reference: Reference) -> None:
    found = check_chunks(cached, reference)
    assert found.status == "right"
    assert found.max_error < 1e-5


def test_broken_cache_is_wrong(cached: Path, reference: Reference, tmp_path: Path) -> None:
    model = onnx.load(cached)
    name = "present.0.value"
    broken = with_last_step(model, name, helper.make_node("Neg", ["raw"], [name]))
    found = check_chunks(saved(broken, tmp_path), reference)
    assert found.status == "wrong"
    assert "batch 1, length 2, chunks of 1, 1: positions 1 to 1" in found.reason


def test_file_without_a_cache_is_told_apart(
    good: onnx.ModelProto, reference: Reference, tmp_path: Path
) -> None:
    found = check_chunks(saved(good, tmp_path), reference)
    assert (found.status, found.reason) == ("fails", "the file has no inputs of a past")


@pytest.mark.parametrize(
    ("declared", "found", "fits"),
    [
        ("causal", ["causal"], True),
        ("causal", ["causal with ALiBi"], True),
        ("causal", ["causal window 4"], False),
        ("causal", ["full"], False),
        ("window:4", ["causal window 4"], True),
        ("window:4", ["causal window 5"], False),
        ("window:5 / causal", ["causal", "causal window 5"], True),
        ("window:5 / causal", ["causal"], False),
        ("other", ["full"], None),
        ("causal", [], None),
    ],
)
def test_footprints_are_compared(declared: str, found: list[str], fits: bool | None) -> None:
    assert footprint_fits(declared, found) is fits


@pytest.mark.parametrize(
    ("message", "names"),
    [
        ("cannot be captured at zoo/masks.py:935 (for t in ...)", True),
        ("the node 'node_Add_3' mixes positions", True),
        ("input 'middle.attn' is needed", True),
        ("something went wrong; see torch.export", False),
    ],
)
def test_a_place_is_a_line_or_a_quoted_name(message: str, names: bool) -> None:
    assert names_place(message) is names
