"""Make the files that subjects run: `python -m bench.attention.files FOLDER SIZES`.

Runs in a process of its own, so that the driver never holds PyTorch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench.attention.cases import ModuleSizes
from bench.client import ROOT, worker_environment

if TYPE_CHECKING:
    from causal_onnx.models import MultiHeadAttention

__all__ = ["OURS", "PLAIN_OPSETS", "make_files", "make_module", "plain_name"]

OURS = "ours.onnx"
PLAIN_OPSETS = (20, 24)
"""20 is the default of `torch.onnx.export`; 24 has the `Attention` operator, and is the newest
that onnxruntime computes quickly (25 is expanded into primitives there)."""


def plain_name(opset: int) -> str:
    return f"plain{opset}.onnx"


def make_module(sizes: ModuleSizes) -> MultiHeadAttention:
    """The same weights in every process; attention by `scaled_dot_product_attention`."""
    from causal_onnx.models import AttentionConfig, MultiHeadAttention  # noqa: PLC0415 - torch

    config = AttentionConfig(embed_dim=sizes.embed_dim, num_heads=sizes.num_heads)
    return MultiHeadAttention(config, seed=sizes.seed).eval()


def make_files(folder: Path, sizes: ModuleSizes) -> None:
    """Export in a process of its own.

    Raises:
        RuntimeError: An export failed; carries what it said last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "bench.attention.files", str(folder), json.dumps(asdict(sizes))],
        cwd=ROOT,
        env=worker_environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-5:])
        raise RuntimeError(f"the exports failed with code {done.returncode}:\n{tail}")


def _export_ours(path: Path, sizes: ModuleSizes) -> None:
    from causal_onnx.export import export  # noqa: PLC0415 - torch

    export(make_module(sizes), path, target="ort")


def _export_plain(path: Path, sizes: ModuleSizes, opset: int) -> None:
    """`torch.onnx.export` at the arguments that are right for the most modules.

    Names make both axes dynamic, and an example of sizes >= 2, different from each other, keeps
    them so.
    """
    import torch  # noqa: PLC0415 - not in the driver

    torch.onnx.export(
        make_module(sizes),
        (torch.randn(3, 7, sizes.embed_dim),),
        path,
        dynamo=True,
        opset_version=opset,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: "batch", 1: "seq"},),
        external_data=False,
        optimize=True,
        verbose=False,
    )


def main(folder_text: str, sizes_text: str) -> None:
    """Write all files."""
    folder, sizes = Path(folder_text), ModuleSizes(**json.loads(sizes_text))
    _export_ours(folder / OURS, sizes)
    for opset in PLAIN_OPSETS:
        _export_plain(folder / plain_name(opset), sizes, opset)


if __name__ == "__main__":
    main(*sys.argv[1:])
