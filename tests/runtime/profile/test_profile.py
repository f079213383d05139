"""What a profile counts is exact, and its shares are of one whole; never a time."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import ArtifactError, Contract, Model, RunError, TensorSpec, load
from causal_onnx.runtime.profile import profiler
from causal_onnx.runtime.profile.clock import CallTimes
from causal_onnx.runtime.profile.events import ProfiledCall, read_runs
from causal_onnx.runtime.profile.profiler import profile_all
from tests.runtime.artifacts import field, fixture
from tests.runtime.onnx_bytes import CONTRIB, DEFAULT, FLOAT, graph, node, subgraph, value

WIDTHS = (4, 6, 5)


def weight(name: str, *shape: int) -> bytes:
    data = np.ones(shape, np.float32).tobytes()
    dims = b"".join(field(1, size) for size in shape)
    return dims + field(2, FLOAT) + field(8, name) + field(9, data)


def named(content: bytes, name: str, module: str = "") -> bytes:
    note = field(9, field(1, "causal_onnx.module") + field(2, module)) if module else b""
    return content + field(3, name) + note


def make_model(*nodes: bytes, out: int, tensors: tuple[bytes, ...] = ()) -> Model:
    """x (batch, seq, 4) -> y (batch, seq, out)."""
    main = graph(
        nodes,
        inputs=[value("x", "batch", "seq", 4)],
        outputs=[value("y", "batch", "seq", out)],
        tensors=tensors,
    )
    content = field(1, 10) + field(7, main) + field(8, DEFAULT) + field(8, CONTRIB)
    contract = Contract(
        inputs=(TensorSpec(name="x", dtype="float32", axes=("batch", "seq", 4)),),
        outputs=(TensorSpec(name="y", dtype="float32", axes=("batch", "seq", out)),),
        max_seq_len=64,
    )
    return load(content, contract=contract, threads=1)


@pytest.fixture(scope="module")
def chain() -> Model:
    """Relu(x a) b, of the submodules "layers.0" and "layers.1"."""
    return make_model(
        named(node("MatMul", ["x", "a"], ["xa"]), "first", "layers.0"),
        named(node("Relu", ["xa"], ["h"]), "act", "layers.0.act"),
        named(node("MatMul", ["h", "b"], ["y"]), "second", "layers.1"),
        out=WIDTHS[2],
        tensors=(weight("a", *WIDTHS[:2]), weight("b", *WIDTHS[1:])),
    )


@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (2, 7), (3, 64)])
def test_products_of_a_chain_are_counted_exactly(chain: Model, batch: int, seq: int) -> None:
    found = chain.profile(batch=batch, seq=seq, calls=3)
    assert found.flops == sum(2 * batch * seq * k * n for k, n in pairwise(WIDTHS))
    assert {n.name: n.flops for n in found.nodes}["second"] == 2 * batch * seq * 6 * 5
    assert {n.name: n.flops for n in found.nodes}["act"] == 0


def test_weights_are_counted_as_the_file_stores_them(chain: Model) -> None:
    found = chain.profile(seq=3, calls=3)
    assert found.weight_bytes == 4 * (4 * 6 + 6 * 5)
    assert {n.name: n.weight_bytes for n in found.nodes} == {"first": 96, "act": 0, "second": 120}


def test_every_operator_appears_and_shares_are_of_one_whole(chain: Model) -> None:
    found = chain.profile(seq=5, calls=3)
    assert {group.name for group in found.by_operator()} == {"MatMul", "Relu"}
    assert {group.name: group.calls for group in found.by_operator()}["MatMul"] == 2
    for parts in (found.nodes, found.by_operator(), found.by_module()):
        assert sum(part.share for part in parts) == pytest.approx(1)
    times = [group.time_us for group in found.by_operator()]
    assert times == sorted(times, reverse=True)


def test_costs_are_told_by_submodule(chain: Model) -> None:
    found = chain.profile(seq=5, calls=3)
    assert {n.name: n.module for n in found.nodes} == {
        "first": "layers.0",
        "act": "layers.0.act",
        "second": "layers.1",
    }
    groups = {group.name: group.nodes for group in found.by_module()}
    assert groups == {"layers.{i}": 2, "layers.{i}.act": 1}


def test_what_is_asked_is_what_is_run(chain: Model) -> None:
    found = chain.profile(batch=2, seq=9, calls=4)
    assert (found.batch, found.seq, found.past, found.calls) == (2, 9, 0, 4)
    assert (found.device, found.threads) == ("cpu", 1)
    assert found.nodes[0].shapes.count("2, 9") == 2
    assert json.loads(json.dumps(found.to_dict()))["flops"] == found.flops


def test_only_the_branch_that_was_taken_costs_anything() -> None:
    """A branch reads a weight of the graph around it, and has names that the other has too."""

    def branch(name: str, weight_name: str) -> bytes:
        inner = named(node("MatMul", ["x", weight_name], [name]), "product", "")
        return graph([inner], outputs=[value(name, "batch", "seq", 5)])

    chosen = node(
        "If",
        ["is_long"],
        ["y"],
        subgraph("then_branch", branch("long", "b")),
        subgraph("else_branch", branch("short", "b")),
    )
    seq = (
        field(1, "start") + field(3, 1) + field(20, 2),
        field(1, "end") + field(3, 2) + field(20, 2),
    )
    model = make_model(
        node("Shape", ["x"], ["seq"], *seq),
        node("ReduceMax", ["seq"], ["n"], field(1, "keepdims") + field(3, 0) + field(20, 2)),
        node("Greater", ["n", "n"], ["is_long"]),
        named(chosen, "choice", "attention"),
        out=5,
        tensors=(weight("b", 4, 5),),
    )
    found = {n.name: n for n in model.profile(seq=6, calls=3).nodes}
    assert found["product"].module == "attention"
    assert (found["product"].flops, found["product"].weight_bytes) == (2 * 6 * 4 * 5, 80)
    assert (found["choice"].flops, found["choice"].weight_bytes) == (0, 0)
    assert sum(n.share for n in found.values()) == pytest.approx(1)


def test_attention_of_matrix_products_is_counted_exactly() -> None:
    found = load(fixture("one_head"), threads=1).profile(batch=2, seq=5, calls=3)
    # q, k and v; scores and values are products of activations.
    assert found.flops == 2 * 2 * 5 * (3 * 8 * 8) + 2 * (2 * 2 * 5 * 5 * 8)
    matmuls = [n for n in found.nodes if n.op_type in ("MatMul", "FusedMatMul")]
    assert sum(n.weight_bytes for n in matmuls) == 3 * 8 * 8 * 4


def test_grouped_query_attention_counts_the_pairs_that_may_look() -> None:
    found = load(fixture("grouped_query"), threads=1).profile(batch=2, seq=7, calls=3)
    (core,) = [n for n in found.nodes if n.op_type == "GroupQueryAttention"]
    heads, width = 4, 8
    assert core.flops == 2 * heads * (7 * 8 // 2) * 4 * width


def test_a_step_behind_a_past_reads_the_cache_and_a_row_of_the_embedding() -> None:
    model = load(fixture("language"), threads=1)
    found = model.profile(seq=1, past=20, calls=3)
    vocab, dim = 280, 6
    assert found.cache_bytes == 20 * dim * 4
    assert found.flops == 2 * dim * vocab
    by_operator = {group.name: group for group in found.by_operator()}
    assert by_operator["MatMul"].weight_bytes == dim * vocab * 4
    assert by_operator["Gather"].weight_bytes == dim * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq": 0}, "seq must be an integer of at least 1, got 0"),
        ({"seq": True}, "seq must be an integer of at least 1, got True"),
        ({"batch": 1.5}, "batch must be an integer of at least 1, got 1.5"),
        ({"past": -1}, "past must be an integer of at least 0, got -1"),
        ({"past": 3}, "this model has no KV cache.*got past=3.*cache=True"),
        ({"seq": 65}, "this model takes from 1 to 64 positions, got 65"),
        ({"calls": 0}, "calls must be a positive integer or None, got 0"),
    ],
)
def test_wrong_sizes_are_named(chain: Model, options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chain.profile(**options)


def test_a_past_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(ValueError, match=r"takes from 1 to 400 positions, got 400 \+ 1"):
        load(fixture("language")).profile(past=400)


def test_a_model_that_takes_one_sequence_refuses_a_batch() -> None:
    spec = TensorSpec(name="x", dtype="float32", axes=("seq", 4))
    nodes = field(1, node("Identity", ["x"], ["y"]))
    main = field(
        7, nodes + field(2, "g") + field(11, value("x", "seq", 4)) + field(12, value("y", "seq", 4))
    )
    contract = Contract(
        inputs=(spec,), outputs=(TensorSpec(name="y", dtype="float32", axes=("seq", 4)),)
    )
    model = load(field(1, 10) + main + field(8, DEFAULT), contract=contract)
    with pytest.raises(ValueError, match="takes one sequence at a time, got batch=2"):
        model.profile(batch=2)


def keep_only(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Let profiles hold so many calls at most; gives the list of how many there were."""
    found: list[int] = []

    def read(path: Path) -> list[ProfiledCall]:
        runs = read_runs(path)
        found.append(len(runs))
        return runs[:most]

    monkeypatch.setattr(profiler, "read_runs", read)
    return found


TIMES = CallTimes(wall_ms=1.0, fastest_ms=1.0, cpu_ms=1.0, calls=2)


def test_a_profile_that_lost_calls_is_an_error(
    chain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_only(monkeypatch, 1)
    with pytest.raises(RunError, match="holds 1 of 2 calls: more nodes were run"):
        profile_all(chain.runner, [((1, 2, 0), TIMES)])


def test_cases_that_do_not_fit_together_are_profiled_one_by_one(
    chain: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = keep_only(monkeypatch, 2)
    profiles = profile_all(chain.runner, [((1, 2, 0), TIMES), ((1, 3, 0), TIMES)])
    assert found == [6, 2, 2]
    assert [profile.flops for profile in profiles] == [2 * n * (4 * 6 + 6 * 5) for n in (2, 3)]


def test_a_file_that_changed_is_not_profiled(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(fixture("language").read_bytes())
    model = load(path)
    path.write_bytes(fixture("one_head").read_bytes())
    with pytest.raises(ArtifactError, match="changed while it was being loaded"):
        model.profile()


def test_nothing_is_left_behind(
    chain: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    chain.profile(seq=2, calls=1)
    assert list(tmp_path.iterdir()) == []
