"""The good graphs are causal in onnxruntime; every way to break one breaks it."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

import io

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from causal_onnx.export.torch_patches.translator import listed_once
from tests.zoo import GRAPH_MUTANTS, GRAPHS, GoodGraph, GraphMutant, entry

SEQ = 9
PAST = 3
LEAK = 1e-4


def load(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return load(model).run(None, feeds)[0]


def feeds_of(model: onnx.ModelProto, seq: int = SEQ) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    known = {"batch": 2, "seq": seq, "past_seq": PAST}
    feeds = {}
    for item in model.graph.input:
        dims = item.type.tensor_type.shape.dim
        shape = [known.get(dim.dim_param, dim.dim_value) for dim in dims]
        feeds[item.name] = rng.standard_normal(shape).astype(np.float32)
    return feeds


def leak(model: onnx.ModelProto) -> float:
    """How far outputs before a cut move when `x` changes after it, over all cuts."""
    feeds = feeds_of(model)
    session = load(model)
    base = session.run(None, feeds)[0]
    rng = np.random.default_rng(6)
    worst = 0.0
    name = model.graph.input[0].name
    for cut in range(1, SEQ):
        changed = feeds[name].copy()
        changed[:, cut:] = rng.standard_normal(changed[:, cut:].shape)
        moved = session.run(None, {**feeds, name: changed})[0]
        worst = max(worst, float(np.abs(moved[:, :cut] - base[:, :cut]).max()))
    return worst / float(np.abs(base).max())


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda item: item.name)
def test_good_graph_is_causal_and_moves(graph: GoodGraph) -> None:
    model = graph.model()
    feeds = feeds_of(model)
    assert leak(model) == 0.0
    base = run(model, feeds)
    feeds["x"][:, 0] += 1
    assert np.abs(run(model, feeds)[:, 0] - base[:, 0]).max() > LEAK
    assert run(model, feeds_of(model, seq=1)).shape == (2, 1, 16)


@pytest.mark.parametrize("item", GRAPH_MUTANTS, ids=lambda item: item.name)
def test_mutation_breaks_every_graph_it_applies_to(item: GraphMutant) -> None:
    applied = 0
    for graph in GRAPHS:
        good = graph.model()
        broken = item.mutate(good)
        assert good == graph.model(), "the argument was changed"
        if broken is None:
            continue
        applied += 1
        onnx.checker.check_model(broken)
        moved = leak(broken)
        if item.kind == "leak":
            assert moved > LEAK, f"{graph.name}: the past moves by {moved:.1e} only"
        else:
            feeds = feeds_of(good)
            change = np.abs(run(broken, feeds) - run(good, feeds)).max()
            assert moved == 0.0, f"{graph.name} leaks, though it is of kind {item.kind}"
            assert change > LEAK, f"{graph.name}: the output changes by {change:.1e} only"
    assert applied, "no good graph has a place for it"


def test_mutation_without_a_place_gives_none() -> None:
    conv = next(graph for graph in GRAPHS if graph.name == "left_padded_conv").model()
    without = {item.name for item in GRAPH_MUTANTS if item.mutate(conv) is None}
    assert {"trilu_flipped", "softmax_axis", "attention_not_causal", "cumsum_reversed"} <= without
    assert "conv_padded_both_sides" not in without


def test_names_are_unique_and_there_are_enough() -> None:
    assert len({item.name for item in GRAPH_MUTANTS}) == len(GRAPH_MUTANTS) >= 20


@pytest.mark.slow  # four exports of some seconds each
@pytest.mark.parametrize("opset", [20, 24])
@pytest.mark.parametrize("name", ["mask_tril_float_buffer", "attn_sdpa_is_causal"])
@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_mutations_break_graphs_of_the_stock_exporter(name: str, opset: int) -> None:
    item = entry(name)
    with listed_once():  # the same graph, sooner
        program = torch.onnx.export(
            item.factory().eval(),
            item.inputs(3, 7),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: "batch", 1: "seq"},),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    buffer = io.BytesIO()
    onnx.save(program.model_proto, buffer)
    good = onnx.load_from_string(buffer.getvalue())
    assert leak(good) == 0.0
    broken = {m.name: m.mutate(good) for m in GRAPH_MUTANTS if m.kind == "leak"}
    leaks = {mutation: leak(model) for mutation, model in broken.items() if model is not None}
    assert len(leaks) >= 5, f"only {', '.join(leaks)} apply"
    assert {mutation: moved for mutation, moved in leaks.items() if moved <= LEAK} == {}
