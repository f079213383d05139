"""Products in fp16 of rows that were transposed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from causal_onnx.export import export
from causal_onnx.export.passes.transposed_products import part_transposes

BARE = "import onnxruntime, sys; onnxruntime.InferenceSession(sys.argv[1])"
CHECKS = (
    "import sys; from causal_onnx.export.analysis.session import plain_session;"
    "plain_session(sys.argv[1])"
)
RUNTIME = (
    "import sys; from causal_onnx.runtime import Contract, TensorSpec, load;"
    "axes = ('batch', 'seq', 8);"
    "x, y = (TensorSpec(name=name, dtype='float16', axes=axes) for name in 'xy');"
    "load(sys.argv[1], contract=Contract(inputs=(x,), outputs=(y,)))"
)


def transposed(perm: tuple[int, ...], weight: type[np.generic] = np.float16) -> ir.Model:
    dtype = ir.DataType.from_numpy(np.dtype(weight))
    shape = (*["batch", "seq", "more"][: len(perm) - 1], 8)
    x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(dtype))
    w = ir.Value(name="w", const_value=ir.tensor(np.ones((8, 8), weight)))
    w.shape, w.type = ir.Shape((8, 8)), ir.TensorType(dtype)
    rows = ir.node("Transpose", [x], {"perm": list(perm)})
    product = ir.node("MatMul", [rows.outputs[0], w])
    y = product.outputs[0]
    y.name, y.type = "y", ir.TensorType(dtype)
    y.shape = ir.Shape([None] * (len(perm) - 1) + [8])
    graph = ir.Graph([x], [y], nodes=[rows, product], initializers=[w], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


def opened(model: ir.Model, folder: Path, how: str) -> int:
    """The exit code of a process that opens it: a crash would end this one."""
    ir.save(model, folder / "model.onnx")
    command = [sys.executable, "-c", how, str(folder / "model.onnx")]
    return subprocess.run(command, check=False, capture_output=True).returncode


@pytest.mark.parametrize("perm", [(1, 0, 2), (1, 2, 0), (1, 2, 0, 3), (1, 2, 3, 0)])
def test_what_ends_the_process_loads_after_the_pass(perm: tuple[int, ...], tmp_path: Path) -> None:
    model = transposed(perm)

    assert part_transposes(model) == 1

    assert opened(model, tmp_path, BARE) == 0


@pytest.mark.parametrize("how", [CHECKS, RUNTIME], ids=["checks", "runtime"])
def test_files_of_others_do_not_end_the_process(how: str, tmp_path: Path) -> None:
    assert opened(transposed((1, 0, 2)), tmp_path, how) == 0


@pytest.mark.parametrize("perm", [(0, 2, 1), (2, 0, 1), (0, 2, 1, 3), (2, 3, 0, 1)])
def test_other_transposes_stay_where_they_are_fused(perm: tuple[int, ...]) -> None:
    assert part_transposes(transposed(perm)) == 0


def test_graphs_in_fp32_are_left_alone() -> None:
    assert part_transposes(transposed((1, 0, 2), np.float32)) == 0


def test_an_encoder_with_a_decoder_is_exported_in_fp16(tmp_path: Path) -> None:
    sizes = {"d_model": 16, "nhead": 2, "dim_feedforward": 16, "dropout": 0.0, "batch_first": True}

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoderLayer(**sizes)
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**sizes), 2)

        def forward(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return self.decoder(x, self.encoder(source), tgt_mask=mask, tgt_is_causal=True)

    torch.manual_seed(0)
    example = {"x": torch.randn(2, 5, 16), "source": torch.randn(2, 7, 16)}
    axes = [{0: "batch", 1: "seq"}, {0: "batch", 1: "source_seq"}]
    path = tmp_path / "both.onnx"

    export(Both().eval(), path, example=example, axes=axes, precision="fp16", effort="quick")

    command = [sys.executable, "-c", BARE, str(path)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
