"""Scans in chunks are causal, and proved: what a product meets at a zero leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from causal_onnx.export import export
from causal_onnx.export.attestation import attest
from causal_onnx.runtime import read_artifact
from tests.export.analysis import chunked
from tests.export.analysis.exporting import export_dynamo
from tests.export.analysis.graphs import build, static

AXES = {"x": {0: "batch", 1: "seq"}}


def exported(module: nn.Module, path: Path) -> Path:
    torch.manual_seed(0)
    example = (torch.randn(3, 7, chunked.WIDTH),)
    return export_dynamo(module.eval(), example, [AXES["x"]], path, names=["x"], opset=20)


QUICK = (chunked.PrefixSum, chunked.LinearAttention, chunked.StateSpace)

WAYS = [
    pytest.param(
        make,
        size,
        id=f"{make.__name__}-{size}",
        marks=[] if make in QUICK and size == 4 else [pytest.mark.slow],
    )
    for make in chunked.CAUSAL
    for size in (4, 5)
]


@pytest.mark.parametrize(("make", "size"), WAYS)
def test_what_is_causal_in_chunks_is_proved(make, size: int, tmp_path: Path) -> None:
    found = attest(exported(make(size), tmp_path / "m.onnx"), axes=AXES)
    assert (found.verdict, found.every_length) == ("causal", True), str(found)
    assert found.confirmation is None
    assert found.dynamic.cases


def test_a_triangle_of_chunks_that_includes_the_chunk_is_found_out(tmp_path: Path) -> None:
    found = attest(exported(chunked.Peeking(3), tmp_path / "m.onnx"), axes=AXES, dynamic=False)
    assert found.verdict == "not_causal"
    assert found.confirmation is not None
    assert found.confirmation.confirmed
    assert "it moved by" in found.offence.witness


@pytest.mark.parametrize("zero", ["0.0", "1e-30"])
def test_only_a_factor_that_is_zero_carries_nothing_over(zero: str) -> None:
    body = f"""
        n1 = Shape <start = 1, end = 2> (x) s = Constant <value_float = {zero}> ()
        one = Constant <value_ints = [1]> () goal = Concat <axis = 0> (n1, n1)
        w0 = ConstantOfShape <value = float[1] {{1.0}}> (goal) w1 = Mul(w0, s)
        t = Trilu <upper = 0> (w0) above = Sub(w0, t) z = Mul(above, s) w2 = Add(t, z)
        y = MatMul(w2, x)
    """
    assert static(build(body)).verdict == ("causal" if zero == "0.0" else "not_causal")


def test_export_says_where_the_proof_ends_and_so_does_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randn(2, 7, chunked.WIDTH)
    report = export(chunked.Cancelled(), tmp_path / "m.onnx", example=example)
    assert "static proof: undecided" in str(report)
    assert "at ReduceMax" in str(report)
    stored = read_artifact(tmp_path / "m.onnx").certificate
    assert stored["verdict"] == "undecided"
    assert stored["offence"]["op_type"] == "ReduceMax"
    assert stored["confirmation"]["confirmed"] is False
