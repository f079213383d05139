"""The files that are mutated: small exports of every form, fixtures, and saved streams."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch

from causal_onnx.export import export
from causal_onnx.models import CausalMechanismV1, DecoderLM, tiny_gpt2_config, tiny_llama_config
from causal_onnx.runtime import load

__all__ = ["build_corpus"]

ROOT = Path(__file__).resolve().parents[2]


def build_corpus(folder: Path, tell: Callable[[str], None]) -> None:
    """Write the files to `folder`, unless they are there and what makes them is unchanged."""
    done, wanted = folder / "complete", _fingerprint()
    if done.exists() and done.read_text(encoding="ascii") == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in sorted((ROOT / "tests/runtime/fixtures").glob("*")):
        # On a CPU nothing runs it.
        if path.stem != "bfloat16":
            shutil.copy(path, folder)
    _export(folder, tell)
    _save_streams(folder)
    done.write_text(wanted, encoding="ascii")


def _fingerprint() -> str:
    """A hash of all that decides what the files are."""
    digest = hashlib.sha256()
    for root in ("export", "models", "runtime", "tests/runtime/fixtures", "tools/fuzz"):
        for path in sorted((ROOT / root).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _export(folder: Path, tell: Callable[[str], None]) -> None:
    torch.manual_seed(0)
    head = CausalMechanismV1(dim_in=8, dim_out=8, context_length=128).eval()
    for target in ("ort", "portable", "tiled"):
        tell(f"export head_{target}")
        export(head, folder / f"head_{target}.onnx", target=target)
    llama = DecoderLM(tiny_llama_config(), seed=0)
    for name, options in {
        "cached": {"cache": True},
        "cached_tiled": {"cache": True, "target": "tiled"},
        "cached_portable": {"cache": True, "target": "portable"},
        "cached_chunked": {"cache": True, "target": "ort-1.32"},
        "cached_int4": {"cache": True, "precision": "int4"},
        "int8": {"precision": "int8"},
        "fp16": {"precision": "fp16"},
    }.items():
        tell(f"export llama_{name}")
        export(llama, folder / f"llama_{name}.onnx", **options)  # type: ignore[arg-type]
    tell("export gpt2_cached")
    export(DecoderLM(tiny_gpt2_config(), seed=0), folder / "gpt2_cached.onnx", cache=True)
    _move_weights_out(folder / "head_ort.onnx", folder / "head_external.onnx")


def _move_weights_out(source: Path, target: Path) -> None:
    """The same model with its weights in a file beside it, as those over 2 GB have them."""
    onnx.save(
        onnx.load(source),
        target,
        save_as_external_data=True,
        location="head_external.data",
        size_threshold=256,  # shapes stay in the file, as they do in exports
    )


def _save_streams(folder: Path) -> None:
    for path in sorted(folder.glob("*cached*.onnx")):
        model = load(path, threads=1)
        if model.contract.cache and model.contract.inputs[0].dtype == "int64":
            stream = model.stream(batch=2)
            stream(np.array([[1, 2, 3], [4, 5, 6]]), lengths=[3, 2])
            stream.save(path.with_suffix(".stream"))
