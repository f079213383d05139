"""The scan of one file: the messages decoded, then metadata, tensors and graphs judged."""

from __future__ import annotations

import contextlib

from causal_onnx.runtime.artifact.artifact import Artifact
from causal_onnx.runtime.artifact.held import Held
from causal_onnx.runtime.artifact.protobuf import WindowedFile, WireError
from causal_onnx.runtime.contract import (
    CERTIFICATE_KEY,
    CONTRACT_KEY,
    GOLDEN_KEY,
    SOURCE_KEY,
    Contract,
)
from causal_onnx.runtime.errors import ArtifactError, UnsafeFileError
from causal_onnx.runtime.scan.decode import Decoder, Message
from causal_onnx.runtime.scan.graph import GraphChecker
from causal_onnx.runtime.scan.limits import Limits, Overrun, Refused
from causal_onnx.runtime.scan.tensors import TensorChecker

__all__ = ["judge", "scan"]

FEWER_ROWS = (2, 4, 8)
"""Batch rows at which a file is judged that takes too much at more. Golden vectors have two."""

KEYS = frozenset((CONTRACT_KEY, SOURCE_KEY, GOLDEN_KEY, CERTIFICATE_KEY))


def scan(
    artifact: Artifact, limits: Limits, contract: Contract | None = None, *, copied: bool = True
) -> Held:
    """Hold the files of a model and judge them.

    Args:
        artifact: The model, by its path or as bytes.
        limits: What it may hold.
        contract: What requests will be checked against; None: that of the file.
        copied: As for `Held`.

    Returns:
        The files that were judged, for `open_session`; to be closed after that. Calls must have no
        more rows than their `largest_batch`.

    Raises:
        ArtifactError: The file is damaged, or is not the one whose header was read.
        UnsafeFileError: It holds something that exports do not, or more than `limits`.
    """
    with contextlib.ExitStack() as undo:
        held = undo.enter_context(
            Held(artifact.location, max_bytes=limits.max_file_bytes, copied=copied)
        )
        judge(held, artifact, limits, contract)
        undo.pop_all()
    return held


def judge(held: Held, artifact: Artifact, limits: Limits, contract: Contract | None = None) -> None:
    """Judge what is held of a model; weights are not read. Raises what `scan` does."""
    name = artifact.name
    try:
        if held.size > limits.max_file_bytes:
            raise Refused(
                f"it has {held.size} bytes, more than {limits.max_file_bytes}",
                "raise it: limits=Limits(max_file_bytes=...)",
            )
        held.check_header(artifact)
        held.largest_batch = _largest_batch(held, artifact, limits, contract)
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


def _largest_batch(
    held: Held, artifact: Artifact, limits: Limits, contract: Contract | None
) -> int | None:
    """Judge what a file holds: the most rows of a call for which it passes; None: any number."""
    source = WindowedFile(held.stream)
    model = Decoder(source, max_fields=limits.max_fields).message("model", 0, source.size)
    _check_model(model, artifact)
    contract = artifact.contract if contract is None else contract

    def check(rows: int | None) -> None:
        GraphChecker(
            source,
            TensorChecker(limits, held),
            limits,
            opsets=model.get("opset_import", []),
            ir_version=model.get("ir_version", 0),
            contract=contract,
            rows=rows,
        ).check(model["graph"])

    try:
        check(None)
    except Overrun as overrun:
        if contract is None or not any("batch" in spec.axes for spec in contract.inputs):
            raise
        found = None
        for rows in FEWER_ROWS:
            try:
                check(rows)
            except Refused:
                break
            found = rows
        if found is None:
            raise overrun
        return found
    return None


def _check_model(model: Message, artifact: Artifact) -> None:
    unknown = sorted(set(artifact.header.metadata) - KEYS)
    if unknown:
        raise Refused(
            f"its metadata has the key {unknown[0]!r}, which causal-onnx does not write",
            "remove it from the file",
        )
    if "functions" in model:
        raise Refused(
            f"it has local functions ({len(model['functions'])}), of which a few can make any "
            "number of nodes",
            "inline them: onnx.inliner.inline_local_functions; `causal-onnx adopt` does so too",
        )
    if "training_info" in model or "configuration" in model:
        raise Refused("it has training graphs or placements on devices, which exports do not have")
