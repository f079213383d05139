"""Every form of one attention core computes the same, and what a loop in float64 says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from causal_onnx.export import export
from causal_onnx.export.attention.canonical import canonicalise
from causal_onnx.export.attention.canonical_core import DOMAIN, CanonicalCore
from causal_onnx.export.attention.footprint import Footprint
from causal_onnx.export.attestation import attest
from causal_onnx.export.errors import RewriteError
from causal_onnx.export.lower import lower, tiled
from causal_onnx.models import AttentionConfig, MultiHeadAttention
from causal_onnx.runtime import load
from tests.export.captured import captured, run_model

FORMS = [("ort", 24), ("portable", 18), ("portable", 20), ("portable", 22), ("portable", 23)]
FORMS += [("portable", 24), ("portable", 25), ("tiled", 18), ("tiled", 20), ("tiled", 24)]
BLOCK = tiled.BLOCK
LENGTHS = (1, 2, 13, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 1, 197, 3 * BLOCK)


@dataclass(frozen=True, kw_only=True)
class Core:
    """One attention: its sizes and its rule."""

    heads: int = 2
    kv_heads: int = 2
    width: int = 8
    value_width: int = 8
    window: int = 0
    softcap: float = 0.0
    is_causal: bool = True
    bias: tuple[str | int, ...] | None = None
    """The shape of the bias; "batch", "seq" and "total" are put in."""
    has_past: bool = False
    has_sink: bool = False
    has_rows: bool = False
    """With a past: rows of different lengths."""

    def model(self, opset: int) -> tuple[ir.Model, list[CanonicalCore]]:
        names = {
            "q": ("batch", self.heads, "seq", self.width),
            "k": ("batch", self.kv_heads, "new", self.width),
            "v": ("batch", self.kv_heads, "new", self.value_width),
        }
        if self.bias is not None:
            names["bias"] = self.bias
        if self.has_past:
            names["past_key"] = ("batch", self.kv_heads, "past", self.width)
            names["past_value"] = ("batch", self.kv_heads, "past", self.value_width)
        if self.has_sink:
            names["sink"] = (self.heads,)
        float32 = ir.TensorType(ir.DataType.FLOAT)
        values = {n: ir.Value(name=n, shape=ir.Shape(s), type=float32) for n, s in names.items()}
        if self.has_rows:
            whole = ir.TensorType(ir.DataType.INT64)
            for n in ("row_past", "row_total"):
                values[n] = ir.Value(name=n, shape=ir.Shape(["batch"]), type=whole)
        order = ("q", "k", "v", "bias", "past_key", "past_value", "row_past", "row_total", "sink")
        inputs = [values.get(name) for name in order]
        while inputs[-1] is None:
            inputs.pop()
        attributes = {
            "scale": 0.4,
            "softcap": self.softcap,
            "is_causal": int(self.is_causal),
            "window": self.window,
            "bounded": 0,
        }
        outputs = 3 if self.has_past else 1
        node = ir.node("Attention", inputs, attributes, domain=DOMAIN, num_outputs=outputs)
        for output, name in zip(node.outputs, ("y", "present_key", "present_value"), strict=False):
            output.name, output.type = name, float32
        core = CanonicalCore(
            node=node,
            footprint=Footprint(kind="other", never_later=False),
            has_bias=self.bias is not None,
            has_batch=True,
            num_heads=self.heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.width,
            value_dim=self.value_width,
        )
        graph = ir.Graph(
            list(values.values()),
            list(node.outputs),
            nodes=[node],
            opset_imports={"": opset, DOMAIN: 1},
            name="core",
        )
        return ir.Model(graph, ir_version=10), [core]

    def inputs(self, batch: int, seq: int, past: int, seed: int = 0) -> dict[str, np.ndarray]:
        random = np.random.default_rng([seed, seq, past])
        total = seq + past
        sizes = {"batch": batch, "seq": seq, "total": total}

        def normal(*shape: str | int) -> np.ndarray:
            known = [sizes.get(n, n) for n in shape]
            return random.standard_normal(known).astype(np.float32)  # type: ignore[arg-type]

        found = {
            "q": normal(batch, self.heads, seq, self.width),
            "k": normal(batch, self.kv_heads, seq, self.width),
            "v": normal(batch, self.kv_heads, seq, self.value_width),
        }
        if self.bias is not None:
            found["bias"] = normal(*self.bias)
        if self.has_past:
            found["past_key"] = normal(batch, self.kv_heads, past, self.width)
            found["past_value"] = normal(batch, self.kv_heads, past, self.value_width)
        if self.has_sink:
            found["sink"] = normal(self.heads)
        return found

    def expected(self, given: dict[str, np.ndarray]) -> np.ndarray:
        """Query by query, in float64."""
        wide = {name: x.astype(np.float64) for name, x in given.items()}
        q, k, v = wide["q"], wide["k"], wide["v"]
        if self.has_past:
            k = np.concatenate([wide["past_key"], k], 2)
            v = np.concatenate([wide["past_value"], v], 2)
        batch, heads, seq, _ = q.shape
        total, past = k.shape[2], k.shape[2] - seq
        bias = np.broadcast_to(wide.get("bias", np.zeros(())), (batch, heads, seq, total))
        out = np.zeros((batch, heads, seq, self.value_width))
        for b, h, i in np.ndindex(batch, heads, seq):
            own = h // (heads // self.kv_heads)
            first, last = 0, total
            if self.is_causal:
                last = past + i + 1
                first = max(0, last - self.window) if self.window else 0
            scores = 0.4 * k[b, own, first:last] @ q[b, h, i]
            if self.softcap:
                scores = self.softcap * np.tanh(scores / self.softcap)
            weights = np.exp(scores + bias[b, h, i, first:last])
            beside = np.exp(wide["sink"][h]) if self.has_sink else 0.0
            out[b, h, i] = weights @ v[b, own, first:last] / (weights.sum() + beside)
        return out

    def error(self, form: tuple[str, int], *, batch: int, seq: int, past: int = 0) -> float:
        """The largest error of one form."""
        model, cores = self.model(form[1])
        assert lower(model, cores, form[0]) == 1
        given, expected = _case(self, batch, seq, past)
        got = run_model(model, [given[v.name or ""] for v in model.graph.inputs])[0]
        assert got.shape == expected.shape
        return float(np.abs(got - expected).max())


@cache
def _case(core: Core, batch: int, seq: int, past: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    given = core.inputs(batch, seq, past)
    return given, core.expected(given)


TOLERANCE = 3e-6
"""Sums of up to 200 products of fp32 numbers of size 1."""

CORES = {
    "plain": Core(),
    "grouped": Core(heads=4, kv_heads=2, width=4, value_width=6),
    "window": Core(window=5),
    "wide window": Core(heads=3, kv_heads=1, window=70),
    "softcap": Core(softcap=0.7),
    "alibi": Core(bias=(1, 2, "seq", "total")),
    "bias of keys": Core(bias=("batch", 1, 1, "total"), window=9),
    "bias of pairs": Core(bias=("seq", "total"), heads=4, kv_heads=2),
    "full": Core(is_causal=False),
    "full with bias": Core(is_causal=False, bias=("batch", 2, "seq", "total"), softcap=2.0),
}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form[0]}{form[1]}")
@pytest.mark.parametrize("name", CORES)
def test_every_form_equals_a_loop_over_queries(name: str, form: tuple[str, int]) -> None:
    errors = {seq: CORES[name].error(form, batch=2, seq=seq) for seq in (1, 13, 65, 131)}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("name", sorted(CORES))
def test_long_sequences_of_the_ort_form(name: str) -> None:
    errors = {seq: CORES[name].error(("ort", 24), batch=1, seq=seq) for seq in (257, 321, 2049)}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("name", ["plain", "window", "grouped", "alibi", "full"])
def test_blocks_fit_together_at_every_length(name: str) -> None:
    errors = {seq: CORES[name].error(("tiled", 20), batch=1, seq=seq) for seq in LENGTHS}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("name", ["plain", "window", "grouped", "bias of pairs"])
@pytest.mark.parametrize("form", [("portable", 20), ("tiled", 20), ("portable", 24)])
def test_forms_agree_after_a_past(name: str, form: tuple[str, int]) -> None:
    core = replace(CORES[name], has_past=True)
    lengths = [(1, 0), (1, 7), (5, 70), (66, 3), (130, 65)]
    errors = {n: core.error(form, batch=2, seq=n[0], past=n[1]) for n in lengths}
    assert max(errors.values()) < TOLERANCE, errors


@pytest.mark.parametrize("form", [("portable", 20), ("portable", 24), ("tiled", 20)])
@pytest.mark.parametrize("window", [0, 7, 80])
def test_rows_of_different_lengths(form: tuple[str, int], window: int) -> None:
    core = Core(heads=4, window=window, has_past=True, has_rows=True)
    model, cores = core.model(form[1])
    lower(model, cores, form[0])
    for seq, past, held, new in ((1, 9, (9, 0), (1, 1)), (130, 40, (0, 33), (130, 71))):
        given = core.inputs(2, seq, past)
        lengths = {"row_past": np.array(held), "row_total": np.array(held) + new}
        everything = {**given, **lengths}
        got = run_model(model, [everything[v.name or ""] for v in model.graph.inputs])[0]
        assert np.isfinite(got).all()
        for row in range(2):
            own = {name: x[row : row + 1, :, : new[row]] for name, x in given.items()}
            for name in ("past_key", "past_value"):
                own[name] = given[name][row : row + 1, :, : held[row]]
            error = np.abs(got[row : row + 1, :, : new[row]] - core.expected(own)).max()
            assert error < TOLERANCE, (row, seq, error)


@pytest.mark.parametrize("opset", [18, 24])
def test_a_sink_takes_weight_in_blocks_too(opset: int) -> None:
    core = Core(has_sink=True, heads=4, kv_heads=2, window=9)
    assert max(core.error(("tiled", opset), batch=2, seq=n) for n in (1, 65, 131)) < TOLERANCE


@pytest.mark.parametrize("seed", range(8))
def test_random_cores_agree_in_blocks(seed: int) -> None:
    random = np.random.default_rng(seed)
    kv_heads, width = int(random.integers(1, 4)), int(random.integers(1, 12))
    core = Core(
        heads=kv_heads * int(random.integers(1, 4)),
        kv_heads=kv_heads,
        width=width,
        value_width=int(random.integers(1, 12)),
        window=int(random.choice([0, 1, 3, 64, 100])),
        softcap=float(random.choice([0.0, 1.5])),
        bias=(None, (1, 1, "seq", "total"), ("batch", 1, 1, "total"))[random.integers(3)],
        has_past=bool(random.integers(2)),
    )
    seq, past = int(random.integers(1, 200)), int(random.integers(0, 90)) * core.has_past
    assert core.error(("tiled", 20), batch=2, seq=seq, past=past) < TOLERANCE, (core, seq, past)


def test_blocks_hold_no_square_of_the_length() -> None:
    model, cores = Core().model(20)
    lower(model, cores, "tiled")
    (choice,) = [node for node in model.graph if node.op_type == "If"]
    looped = choice.attributes["then_branch"].as_graph()
    assert "Softmax" not in {node.op_type for node in looped}
    (loop,) = [node for node in looped if node.op_type == "Loop"]
    assert [node.op_type for node in loop.attributes["body"].as_graph()].count("Softmax") == 1


def attention(max_seq_len: int = 150) -> MultiHeadAttention:
    config = AttentionConfig(embed_dim=16, num_heads=2, max_seq_len=max_seq_len)
    return MultiHeadAttention(config, seed=0).eval()


@pytest.mark.parametrize("cached", [False, True], ids=["plain", "cached"])
def test_forms_of_one_module_are_equal(cached: bool, tmp_path: Path) -> None:
    x = torch.randn(2, 131, 16, generator=torch.Generator().manual_seed(0))
    exact = attention().double()(x.double()).detach().numpy()
    for target, opset in (("ort", None), ("portable", 18), ("portable", 24), ("tiled", None)):
        path = tmp_path / f"{target}{opset}.onnx"
        report = export(attention(), path, target=target, opset=opset, cache=cached)
        assert report.certificate.verdict == "causal"
        got = load(path)(x.numpy())
        np.testing.assert_allclose(got, exact, rtol=0, atol=2e-6, err_msg=path.name)


def shift_in_blocks(shift: int, patch: pytest.MonkeyPatch) -> None:
    """Let every block but that of short sequences think it stands `shift` positions later."""
    places = tiled.Blocks.places

    def moved(self: Any, write: Any, start: ir.Value, count: ir.Value) -> ir.Value:
        found = places(self, write, start, count)
        return write("Add", found, write.ints(shift)) if write.graph.name == "body" else found

    patch.setattr(tiled.Blocks, "places", moved)


@pytest.mark.parametrize("shift", [1, -1])
def test_a_wrong_boundary_of_blocks_is_caught(
    shift: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_in_blocks(shift, monkeypatch)
    with pytest.raises(RewriteError, match="attention rewritten for target='tiled' disagrees"):
        export(attention(), tmp_path / "m.onnx", target="tiled")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("shift", "verdict"), [(0, "causal"), (1, "not_causal")])
def test_proof_alone_sees_a_block_that_looks_ahead(
    shift: int, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift_in_blocks(shift, monkeypatch)
    model = captured("attn_sdpa_is_causal", 20)
    cores, _ = canonicalise(model, None)
    lower(model, cores, "tiled")
    assert attest(model, dynamic=False).verdict == verdict
