"""Writing the file: metadata in, the same bytes for the same module, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import nn

from causal_onnx.runtime.contract import FORMAT, SOURCE_KEY

__all__ = ["describe_source", "staged", "write_model"]

IR_VERSION = 10
"""What onnxruntime-node, -web and older wheels still read; newer helpers write more."""

EXTERNAL_DATA_FROM_BYTES = 1_900_000_000
"""Weights go into a file beside the model from here on: a protobuf ends at 2 GiB."""


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A place to write and test the artifact before it appears under `path`.

    Yields a path of the same file name in a temporary folder beside the target (the name of a data
    file stands inside the model, so it must be final). On success everything written there is moved
    into place, the model last; on an error nothing appears and the old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield folder / path.name
        others = sorted(item for item in folder.iterdir() if item.name != path.name)
        for item in [*others, folder / path.name]:
            item.replace(path.parent / item.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_model(model: ir.Model, path: Path, metadata: Mapping[str, str]) -> int:
    """Write `model` with `metadata`; returns the size of all its files in bytes."""
    model.ir_version = IR_VERSION
    model.metadata_props.clear()
    model.metadata_props.update(sorted(metadata.items()))
    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    if weights > EXTERNAL_DATA_FROM_BYTES:
        data = path.with_name(path.name + ".data")
        ir.save(model, path, external_data=data.name, size_threshold_bytes=1024)
        return path.stat().st_size + data.stat().st_size
    # Protobuf promises equal bytes for equal messages only when asked to be deterministic.
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return path.stat().st_size


def describe_source(module: nn.Module) -> dict[str, Any]:
    """Where a file came from: class, versions, and a hash of the weights.

    Nothing that differs between two exports of one module: no time, no path, no host.
    """
    digest = hashlib.sha256()
    count = 0
    for name, tensor in sorted(module.state_dict().items()):
        raw = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {raw.dtype} {tuple(raw.shape)}\n".encode())
        digest.update(raw.reshape(-1).view(torch.uint8).numpy().data)
    for parameter in module.parameters():
        count += parameter.numel()
    return {
        "class": f"{type(module).__module__}.{type(module).__qualname__}",
        "parameters": count,
        "weights_sha256": digest.hexdigest(),
        "torch": torch.__version__.split("+")[0],
        "onnx": onnx.__version__,
        "python": platform.python_version(),
    }


def source_document(description: Mapping[str, Any]) -> dict[str, str]:
    """`description` as an entry of `metadata_props`."""
    text = json.dumps({"format": FORMAT, **description}, sort_keys=True, separators=(",", ":"))
    return {SOURCE_KEY: text}
