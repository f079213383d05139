"""The scan of one file: the messages decoded, then metadata, tensors and graphs judged."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from causal_onnx.runtime.artifact import Artifact
from causal_onnx.runtime.contract import CERTIFICATE_KEY, CONTRACT_KEY, GOLDEN_KEY, SOURCE_KEY
from causal_onnx.runtime.errors import ArtifactError, UnsafeFileError
from causal_onnx.runtime.scan.decode import Decoder
from causal_onnx.runtime.scan.graph import GraphChecker
from causal_onnx.runtime.scan.limits import Limits, Refused
from causal_onnx.runtime.scan.tensors import TensorChecker
from causal_onnx.runtime.wire import Source, WireError

__all__ = ["check_unchanged", "scan"]

KEYS = frozenset((CONTRACT_KEY, SOURCE_KEY, GOLDEN_KEY, CERTIFICATE_KEY))

Files = Mapping[Path, os.stat_result]


def scan(artifact: Artifact, limits: Limits) -> Files:
    """Judge a model; weights are not read.

    Args:
        artifact: The model, by its path or as bytes.
        limits: What it may hold.

    Returns:
        The files that were judged, as they were then, for `check_unchanged`.

    Raises:
        ArtifactError: The file is damaged, or is not the one whose header was read.
        UnsafeFileError: It holds something that exports do not, or more than `limits`.
    """
    if isinstance(artifact.location, bytes):
        _scan(io.BytesIO(artifact.location), artifact, None, limits)
        return {}
    # Unbuffered, since Source has a window of its own.
    with artifact.location.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        beside = _scan(file, artifact, artifact.location, limits)
    return {artifact.location: found, **beside}


def check_unchanged(artifact: Artifact, files: Files) -> None:
    """Check that the files that onnxruntime has read are those that were judged.

    Raises:
        ArtifactError: One of them was replaced or written to in the meantime.
    """
    for path, before in files.items():
        try:
            # Following links: of a link that was allowed, the file behind it was judged.
            now = path.stat()
        except OSError:
            now = None
        if now is None or _identity(now) != _identity(before):
            raise ArtifactError(
                f"{artifact.name}: {path.name} changed while it was being loaded; load it again "
                "when nothing writes to it"
            )


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _scan(file: BinaryIO, artifact: Artifact, path: Path | None, limits: Limits) -> Files:
    name = artifact.name
    try:
        source = Source(file)
        if source.size != artifact.header.size_bytes:
            raise ArtifactError(f"{name} changed while it was being loaded; load it again")
        tensors = TensorChecker(limits, model=path)
        _check_model(source, tensors, limits, artifact)
    except WireError as error:
        raise ArtifactError(
            f"{name} is not an ONNX model, or the file is damaged: {error}; export or download it "
            "again"
        ) from error
    except Refused as refusal:
        remedy = f"{refusal.remedy}. " if refusal.remedy else ""
        raise UnsafeFileError(
            f"{name} was not loaded: {refusal.found}. {remedy[:1].upper()}{remedy[1:]}If you trust "
            "where the file comes from, trusted=True loads it without this check"
        ) from refusal
    return tensors.files


def _check_model(
    source: Source, tensors: TensorChecker, limits: Limits, artifact: Artifact
) -> None:
    if source.size > limits.max_file_bytes:
        raise Refused(
            f"it has {source.size} bytes, more than {limits.max_file_bytes}",
            "raise it: limits=Limits(max_file_bytes=...)",
        )
    model = Decoder(source).message("model", 0, source.size)
    unknown = sorted(set(artifact.header.metadata) - KEYS)
    if unknown:
        raise Refused(
            f"its metadata has the key {unknown[0]!r}, which causal-onnx does not write",
            "remove it from the file",
        )
    if "functions" in model:
        raise Refused(
            f"it has {len(model['functions'])} local functions, of which a few can make any number "
            "of nodes",
            "inline them: onnx.inliner.inline_local_functions",
        )
    if "training_info" in model or "configuration" in model:
        raise Refused("it has training graphs or placements on devices, which exports do not have")
    domains = ["" if x == "ai.onnx" else x for x in artifact.header.opsets]
    GraphChecker(source, tensors, limits, domains=domains).check(model["graph"])
