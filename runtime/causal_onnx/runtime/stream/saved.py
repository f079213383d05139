"""Streams on disk: one line of JSON with a hash, and an uncompressed .npz of lengths and cache.

What is read back is checked to be what a stream of the contract can hold, array by array and before
its memory is taken: a hash finds damage, but whoever writes a file on purpose can write it too.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import LARGEST_AXIS, Contract
from causal_onnx.runtime.errors import ArtifactError

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["encode", "read_saved"]

SAVED_FORMAT = 1
"""Version of the files."""

_DAMAGE = (
    zipfile.BadZipFile,
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    OverflowError,
    TypeError,
    struct.error,
)
"""What zipfile and numpy raise on damaged content; NotImplementedError is a RuntimeError."""


def encode(
    contract: Contract,
    lengths: Array,
    held: Mapping[str, Array],
    adapters: Sequence[tuple[str, str] | None] = (),
) -> bytes:
    """The state of a stream as a file holds it.

    Args:
        contract: Of the stream's model.
        lengths: (batch,) int64, positions of each row.
        held: Name of the past -> its used slots; name of an input that is read once -> what the
            rows began with.
        adapters: The name and the digest of each row's adapter; empty: the file takes none.
    """
    content = io.BytesIO()
    np.savez(content, lengths=lengths, **held)  # type: ignore[arg-type]
    payload = content.getvalue()
    head = {
        "format": SAVED_FORMAT,
        "contract": _fingerprint(contract),
        "sha256": hashlib.sha256(payload).hexdigest(),
        **({"adapters": list(adapters)} if any(adapters) else {}),
    }
    return json.dumps(head).encode() + b"\n" + payload


def read_saved(
    path: str | os.PathLike[str],
    contract: Contract,
    *,
    model: str,
    loaded: Mapping[str, str] | None = None,
) -> tuple[Array, dict[str, Array], list[str | None] | None]:
    """Read what `encode` made.

    Gives the lengths, the past and the inputs that are read once by name, and the adapter of each
    row; None: no row has one.

    Args:
        path: The file.
        contract: Of the model that takes the stream up.
        model: How messages call that.
        loaded: The digests of its adapters, by name.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: The file is damaged, no saved stream, of another contract, holds what no
            stream of that contract can hold, or was read with an adapter that is not loaded.
    """
    data = Path(path).read_bytes()
    first, _, payload = data.partition(b"\n")
    try:
        head = json.loads(first)
        version, fingerprint, digest = head["format"], head["contract"], head["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a saved stream") from error
    if version != SAVED_FORMAT:
        raise ArtifactError(
            f"{path} is of format {version!r}, this version of causal-onnx reads {SAVED_FORMAT}"
        )
    if digest != hashlib.sha256(payload).hexdigest():
        raise ArtifactError(f"{path} is damaged: its content does not have the hash that it states")
    if fingerprint != _fingerprint(contract):
        raise ArtifactError(f"{path} was saved with a model of another contract than {model}")
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            lengths, held = _read(archive, contract)
            adapters = _adapters(head.get("adapters"), len(lengths))
    except _DAMAGE as error:
        raise ArtifactError(f"{path} is damaged: {error}; save the stream again") from error
    for name, digest in filter(None, adapters):
        if (loaded or {}).get(name) != digest:
            raise ArtifactError(
                f"{path} was read with the adapter {name!r}, and {model} has "
                f"{'another one' if name in (loaded or {}) else 'none'} of that name; load it: "
                f"load(path, adapters={{{name!r}: folder}})"
            )
    return lengths, held, [item and item[0] for item in adapters] if adapters else None


def _adapters(stated: Any, rows: int) -> list[tuple[str, str] | None]:
    """The name and digest of each row's adapter; empty: no row has one."""
    if stated is None:
        return []
    found: list[tuple[str, str] | None] = []
    for item in stated:
        if item is not None and [type(part) for part in item] != [str, str]:
            raise ValueError(f"an adapter is stated as {item!r}")
        found.append(None if item is None else (item[0], item[1]))
    if len(found) != rows:
        raise ValueError(f"it states {len(found)} adapters for {rows} rows")
    return found


def _read(archive: zipfile.ZipFile, contract: Contract) -> tuple[Array, dict[str, Array]]:
    names = [item.filename.removesuffix(".npy") for item in archive.infolist()]
    specs = {spec.name: spec for spec in contract.inputs}
    bounds = {pair.past: pair.bounded for pair in contract.cache}
    once = sorted(contract.once_names)
    if len(set(names)) != len(names) or not set(names) <= {"lengths", *bounds, *once}:
        raise ValueError(f"it holds {', '.join(sorted(names))}")
    lengths = _array(archive, "lengths", np.dtype(np.int64), None)
    if not len(lengths) or (lengths < 0).any():
        raise ValueError(f"the rows have the lengths {lengths}")
    most, batch = int(lengths.max()), len(lengths)
    if contract.max_seq_len is not None and most > contract.max_seq_len:
        raise ValueError(f"a row has {most} positions, the model takes {contract.max_seq_len}")
    if batch > 1 and not any("batch" in spec.axes for spec in contract.inputs):
        raise ValueError(f"it has {batch} rows, this model takes one sequence at a time")
    if contract.mask is None and (lengths != most).any():
        raise ValueError("its rows differ in length, which this model's must not")
    held = {}
    free = {axis.name: axis.largest or LARGEST_AXIS for axis in contract.free_axes}
    sizes = {"batch": batch}
    for name in (*once, *bounds):
        if name not in names:
            if most:
                raise ValueError(f"it has no {name!r}")
            continue
        bounded = bounds.get(name)
        slots = most if bounded is None else min(most, bounded)
        spec = specs[name]
        for axis, size in zip(spec.axes, _shape(archive, name), strict=False):
            if axis in free and 1 <= size <= free[str(axis)]:
                sizes.setdefault(str(axis), size)
        missing = [axis for axis in spec.axes if axis in free and axis not in sizes]
        if missing:
            raise ValueError(f"{name!r} has no valid size of the axis {missing[0]!r}")
        shape = spec.shape({**sizes, "past_seq": slots, "past_slots": slots})
        held[name] = _array(archive, name, np.dtype(spec.host_dtype), shape)
    return lengths, held


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(archive.getinfo(f"{name}.npy")) as stream:
        return _header(stream)[0]


def _array(
    archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...] | None
) -> Array:
    """One array of the archive; `shape` None: one axis of any length."""
    info = archive.getinfo(f"{name}.npy")
    # `np.savez` does not compress, and a compressed file can hold any amount of zeros.
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name!r} is compressed")
    with archive.open(info) as stream:
        found_shape, is_fortran, found_dtype = _header(stream)
        if found_dtype != dtype or (shape is not None and found_shape != shape):
            raise ValueError(
                f"{name!r} is {found_dtype} {found_shape}, expected {dtype} {shape or '(batch,)'}"
            )
        if shape is None and len(found_shape) != 1:
            raise ValueError(f"{name!r} has the shape {found_shape}, expected (batch,)")
        raw = stream.read()
    expected = dtype.itemsize * int(np.prod(found_shape, dtype=object))
    if len(raw) != expected:
        raise ValueError(f"{name!r} holds {len(raw)} bytes, expected {expected}")
    flat = np.frombuffer(raw, dtype)
    # Stored by columns, an array is the transpose of its reverse.
    whole = flat.reshape(found_shape[::-1]).T if is_fortran else flat.reshape(found_shape)
    return whole.copy()


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype of a .npy file."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"an array of format {version}, expected (1, 0)")
    try:
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except (RecursionError, MemoryError, TypeError) as error:
        raise ValueError(f"an array's header: {error!r}") from error
    return shape, is_fortran, dtype


def _fingerprint(contract: Contract) -> str:
    return hashlib.sha256(contract.to_json().encode()).hexdigest()
