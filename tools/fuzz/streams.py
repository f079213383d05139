"""Mutations of saved streams: of their bytes, and of the arrays inside with the hash put right."""

from __future__ import annotations

import hashlib
import io
import json
import random
from typing import Any

import numpy as np
from tools.fuzz.mutate import change_bytes

__all__ = ["change_stream"]


def change_stream(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """A changed file, and the name of the change."""
    head, _, payload = content.partition(b"\n")
    kind = rng.choice(("bytes", "payload", "arrays", "arrays"))
    if kind == "bytes":
        return change_bytes(content, rng), "stream bytes"
    changed = change_bytes(payload, rng) if kind == "payload" else _arrays(payload, rng)
    document = json.loads(head)
    document["sha256"] = hashlib.sha256(changed).hexdigest()
    return json.dumps(document).encode() + b"\n" + changed, f"stream {kind}"


def _arrays(payload: bytes, rng: random.Random) -> bytes:
    """Other arrays, stored as they should be."""
    arrays: dict[str, Any] = dict(np.load(io.BytesIO(payload)))
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(("lengths", *arrays))
        array = arrays.get(name)
        if array is None:
            continue
        kind = rng.randrange(7)
        if kind == 0:
            del arrays[name]
        elif kind == 1:
            arrays[name] = array.astype(rng.choice((">f4", "f8", "i8", "i4", "c16", "U3")))
        elif kind == 2 and array.size and array.ndim:
            axis = rng.randrange(array.ndim)
            size = rng.choice((0, 1, 3, 9))
            arrays[name] = np.take(array, range(size), axis, mode="wrap")
        elif kind == 3:
            arrays[name] = array.reshape(-1) if rng.random() < 0.5 else array[None]
        elif kind == 4:
            arrays[f"{name}.more"] = array
        elif kind == 5 and name == "lengths":
            numbers = (-1, 0, 1, 2, 3, 63, 64, 1 << 31, (1 << 63) - 1)
            arrays[name] = np.array([rng.choice(numbers) for _ in array], np.int64)
        elif array.dtype.kind == "f":
            arrays[name] = np.full_like(array, rng.choice((np.nan, np.inf, 3e38, 0.0)))
    written = io.BytesIO()
    save = np.savez if rng.random() < 0.9 else np.savez_compressed
    save(written, **arrays)
    return written.getvalue()
