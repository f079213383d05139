"""Writing the file: metadata in, the same bytes for the same module, whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import nn

from causal_onnx.runtime.artifact.drafts import draft_folder, locked, sync
from causal_onnx.runtime.artifact.graph_parts import read_graph_parts
from causal_onnx.runtime.contract import FORMAT, SOURCE_KEY
from causal_onnx.runtime.errors import ArtifactError

__all__ = [
    "describe_source",
    "read_back",
    "source_document",
    "staged",
    "weights_in_memory",
    "write_mapped",
    "write_model",
]

IR_VERSION = 10
"""What onnxruntime-node, -web and older wheels still read; newer helpers write more."""

EXTERNAL_DATA_FROM_BYTES = 1_900_000_000
"""Weights go into a file beside the model from here on: a protobuf ends at 2 GiB."""

STREAMED_FROM_BYTES = 1 << 12
"""Smaller tensors are not worth a piece of their own."""

_HASH_DIGITS = 16

_PAGE = 1 << 12


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
    _remove_data(path)
    _describe(model, metadata)
    weights = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )
    if weights <= EXTERNAL_DATA_FROM_BYTES:
        return _write_streamed(model, path)
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


def write_mapped(model: ir.Model, path: Path, metadata: Mapping[str, str]) -> None:
    """Write `model` for checks of it, into a folder of its own, with all weights in a file beside.

    onnxruntime maps that file, and so does not read a weight as a whole that it only looks rows up
    in, nor copy one before it arranges it for its kernels. It computes the same as from the file
    that `write_model` writes.
    """
    _remove_data(path)
    _describe(model, metadata)
    data = path.with_name(f"{path.name}.draft.data")
    stand_ins = {}
    with data.open("wb") as file:
        for value, tensor in _large(model):
            file.seek(-file.tell() % _PAGE, os.SEEK_CUR)
            stand_ins[value] = _elsewhere(tensor, data.name, offset=file.tell())
            file.write(_numbers(tensor))
    if not stand_ins:
        data.unlink()
    _write_proto(_with_stand_ins(model, stand_ins), path)


def weights_in_memory(model: ir.Model) -> dict[str, np.ndarray[Any, Any]]:
    """The weights of `model` that lie in memory as `write_mapped` writes them, by name."""
    found = {}
    for value, tensor in _large(model):
        if value.name is None or tensor.dtype.bitwidth < 8:
            continue
        array, again = tensor.numpy(), tensor.numpy()
        lies = array.ctypes.data == again.ctypes.data and array.flags.c_contiguous
        if lies and array.dtype.isbuiltin == 1:  # 2: a type that numpy was taught
            found[value.name] = array
    return found


def _remove_data(path: Path) -> None:
    """Remove what an earlier model at `path`, a draft of its own folder, had beside it."""
    for earlier in path.parent.glob(f"{glob.escape(path.name)}.*.data"):
        earlier.unlink()


def read_back(model: ir.Model, metadata: Mapping[str, str]) -> ir.Model:
    """What reading the file would give that `write_model` writes; the weights are shared."""
    _describe(model, metadata)
    large = dict(_large(model))
    read = ir.from_proto(_without_numbers(model, large))
    for value, tensor in large.items():
        assert value.name is not None
        read.graph.initializers[value.name].const_value = tensor
    return read


def _describe(model: ir.Model, metadata: Mapping[str, str]) -> None:
    model.ir_version = IR_VERSION
    model.metadata_props.clear()
    model.metadata_props.update(sorted(metadata.items()))


def _write_streamed(model: ir.Model, path: Path) -> int:
    """Write what `_write_proto(ir.to_proto(model), path)` would, without a copy of the weights.

    A message in a message is its fields in the order of their numbers, after its length; so the
    weights go between what comes before and after them, straight from where they lie.
    """
    large = dict(_large(model))
    proto = _without_numbers(model, large)
    before, after = _parted(proto, "graph")
    graph_before, graph_after = _parted(proto.graph, "initializer")
    by_name = {value.name: tensor for value, tensor in large.items()}
    parts: list[bytes | ir.TensorProtocol] = []
    length = len(graph_before) + len(graph_after)
    for stored in proto.graph.initializer:
        tensor = by_name.get(stored.name)
        if tensor is None:
            body: list[bytes | ir.TensorProtocol] = [stored.SerializeToString(deterministic=True)]
        else:
            first, last = _parted(stored, "raw_data")
            body = [first + _header(stored, "raw_data", tensor.nbytes), tensor, last]
        size = sum(len(part) if isinstance(part, bytes) else part.nbytes for part in body)
        header = _header(proto.graph, "initializer", size)
        length += len(header) + size
        parts += [header, *body]
    with path.open("wb") as file:
        file.write(before + _header(proto, "graph", length) + graph_before)
        for part in parts:
            file.write(part if isinstance(part, bytes) else _numbers(part))
        file.write(graph_after + after)
        return file.tell()


def _large(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """The initializers whose numbers are not copied to be written."""
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < STREAMED_FROM_BYTES:
            continue
        if not isinstance(tensor, ir.TensorProtoTensor | ir.ExternalTensor | ir.StringTensor):
            yield value, tensor


def _without_numbers(
    model: ir.Model, large: Mapping[ir.Value, ir.TensorProtocol]
) -> onnx.ModelProto:
    """`model` with nothing for the numbers of its `large` initializers."""
    proto = _with_stand_ins(model, {value: _elsewhere(tensor) for value, tensor in large.items()})
    for stored in proto.graph.initializer:
        if stored.data_location == onnx.TensorProto.EXTERNAL and not stored.external_data[0].value:
            stored.ClearField("data_location")
            stored.ClearField("external_data")
    return proto


def _elsewhere(
    tensor: ir.TensorProtocol, location: str = "", *, offset: int | None = None
) -> ir.ExternalTensor:
    """What says of `tensor` that its numbers lie in a file."""
    return ir.ExternalTensor(
        location,
        offset=offset,
        length=None if offset is None else tensor.nbytes,
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name or "",
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _with_stand_ins(
    model: ir.Model, stand_ins: Mapping[ir.Value, ir.TensorProtocol]
) -> onnx.ModelProto:
    """`model` with other tensors for some of its initializers."""
    held = {value: value.const_value for value in stand_ins}
    try:
        for value, tensor in stand_ins.items():
            value.const_value = tensor
        return ir.to_proto(model)
    finally:
        for value, original in held.items():
            value.const_value = original


def _numbers(tensor: ir.TensorProtocol) -> Any:
    """The bytes of a tensor as they are stored; where they lie, if they lie so."""
    if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        return tensor.tobytes()
    return np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data


_Message = onnx.ModelProto | onnx.GraphProto | onnx.TensorProto


def _parted(message: _Message, field: str) -> tuple[bytes, bytes]:
    """The serialised fields of `message` before `field` and after it, by number."""
    number = message.DESCRIPTOR.fields_by_name[field].number
    before, after = type(message)(), type(message)()
    before.CopyFrom(message)
    after.CopyFrom(message)
    for other in message.DESCRIPTOR.fields:
        if other.number >= number:
            before.ClearField(other.name)
        if other.number <= number:
            after.ClearField(other.name)
    return before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True)


def _header(message: _Message, field: str, length: int) -> bytes:
    """What stands before the `length` bytes of a field: its number and kind, and the length."""
    return _varint(message.DESCRIPTOR.fields_by_name[field].number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


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
