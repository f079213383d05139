"""contract.json and goldens.json: a model's metadata, for readers of JSON alone.

Both are functions of the model and the other files, so that checking one is making it again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from causal_onnx.runtime.artifact.artifact import Artifact
from causal_onnx.runtime.artifact.folder import MODEL
from causal_onnx.runtime.artifact.golden import GoldenSet
from causal_onnx.runtime.bundle.replay import stream_plans
from causal_onnx.runtime.contract import FORMAT, Contract

__all__ = [
    "CONTRACT",
    "GOLDENS",
    "file_entry",
    "files_below",
    "goldens_bytes",
    "manifest_bytes",
]

CONTRACT = "contract.json"
GOLDENS = "goldens.json"


def manifest_bytes(artifact: Artifact, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    """contract.json: contract, certificate and source as in the model, and a hash of each file.

    Args:
        artifact: The model.
        files: Each file's `file_entry`, by its name relative to the bundle, with "/".
    """
    assert artifact.contract is not None
    return _canonical(
        {
            "format": FORMAT,
            "model": MODEL,
            "contract": json.loads(artifact.contract.to_json()),
            "certificate": artifact.certificate,
            "source": artifact.source,
            "files": files,
        }
    )


def goldens_bytes(golden: GoldenSet, contract: Contract) -> bytes:
    """goldens.json: the golden vectors as in the model, and how to stream them through the cache.

    `streams` says for a case into how many positions each chunk is cut: together they must give
    what the case gives in one call. It is empty where an input or output has no positions, or an
    output has a column for each position so far: clients cut and join along `seq` alone.
    """
    without = contract.without_cache()
    axes = [spec.axes for spec in (*without.inputs, *without.outputs)]
    is_joined = all("seq" in given and "total_seq" not in given for given in axes)
    plans = [
        {"case": index, "chunks": list(chunks)}
        for index, chunks in stream_plans(golden, contract).items()
        if is_joined
    ]
    return _canonical({**json.loads(golden.to_json()), "streams": plans})


def file_entry(file: BinaryIO) -> dict[str, Any]:
    """What contract.json says of a file, which is read from where it stands."""
    digest, size = hashlib.sha256(), 0
    while chunk := file.read(1 << 20):
        digest.update(chunk)
        size += len(chunk)
    return {"sha256": digest.hexdigest(), "size_bytes": size}


def files_below(folder: Path) -> tuple[list[str], list[str]]:
    """The regular files in a folder, and everything else but the folders, both sorted.

    Links are not followed: they are neither.
    """
    files, others = [], []
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                others.append(relative)
            elif path.is_file():
                files.append(relative)
            elif not path.is_dir():
                others.append(relative)
    return sorted(files), sorted(others)


def _canonical(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, sort_keys=True, indent=1) + "\n").encode("ascii")
