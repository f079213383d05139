"""Writing the file: metadata in, the same bytes for the same module, whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import nn

from causal_onnx.runtime.artifact.drafts import draft_folder, locked, sync
from causal_onnx.runtime.artifact.graph_parts import read_graph_parts
from causal_onnx.runtime.contract import FORMAT, SOURCE_KEY
from causal_onnx.runtime.errors import ArtifactError

__all__ = ["describe_source", "staged", "write_model"]

IR_VERSION = 10
"""What onnxruntime-node, -web and older wheels still read; newer helpers write more."""

EXTERNAL_DATA_FROM_BYTES = 1_900_000_000
"""Weights go into a file beside the model from here on: a protobuf ends at 2 GiB."""

_HASH_DIGITS = 16


@contextlib.contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A place to write and test the artifact before it appears under `path`.

    Yields a path of the same file name in a temporary folder beside the target. On success the
    model is moved into place, and before it the files that hold its weights, whose names nobody
    uses yet (see `write_model`): whoever reads finds the old model or the new one, each with its
    own weights. The files that the old one alone used go last. On an error nothing appears and the
    old file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(path) as folder:
        draft = folder / path.name
        yield draft
        names = sorted(item.name for item in folder.iterdir() if item != draft)
        for name in (*names, path.name):
            sync(folder / name)
        with locked(path.parent):
            before = _data_files(path)
            for name in names:
                (folder / name).replace(path.parent / name)
            draft.replace(path)
            for name in before - set(names):
                path.with_name(name).unlink(missing_ok=True)
        sync(path.parent)


def _data_files(path: Path) -> set[str]:
    """The files beside a model that exports to `path` made for its weights, abandoned ones too."""
    pattern = re.compile(re.escape(path.name) + rf"\.[0-9a-f]{{{_HASH_DIGITS}}}\.data")
    found = {item.name for item in path.parent.iterdir() if pattern.fullmatch(item.name)}
    # What exports before this naming made is known by the model that uses it.
    with contextlib.suppress(OSError, ArtifactError), path.open("rb") as file:
        found |= {f"{path.name}.data"} & set(read_graph_parts(file, name=str(path)).data_files)
    return found


def write_model(model: ir.Model, path: Path, metadata: Mapping[str, str]) -> int:
    """Write `model` with `metadata` into a folder of its own; returns the size in bytes.

    Weights that are too large for the file go into one beside it, `model.onnx.<hash>.data`, named
    by its content: another model never reads it by mistake.
    """
    for earlier in path.parent.glob(f"{glob.escape(path.name)}.*.data"):
        earlier.unlink()
    model.ir_version = IR_VERSION
    model.metadata_props.clear()
    model.metadata_props.update(sorted(metadata.items()))
    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    if weights <= EXTERNAL_DATA_FROM_BYTES:
        return _write_proto(ir.to_proto(model), path)
    unnamed = path.with_name(path.name + ".data")
    ir.save(model, path, external_data=unnamed.name, size_threshold_bytes=1024)
    with unnamed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:_HASH_DIGITS]
    data = unnamed.replace(path.with_name(f"{path.name}.{digest}.data"))
    proto = onnx.load(path, load_external_data=False)
    for tensor in _tensors(proto.graph):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data.name
    return _write_proto(proto, path) + data.stat().st_size


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Those of the graph's branches and loops too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)


def _write_proto(proto: onnx.ModelProto, path: Path) -> int:
    # Protobuf promises equal bytes for equal messages only when asked to be deterministic.
    return path.write_bytes(proto.SerializeToString(deterministic=True))


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
