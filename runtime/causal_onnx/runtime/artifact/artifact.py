"""An ONNX file with its metadata read, before any session is made of it."""

from __future__ import annotations

import functools
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from causal_onnx.runtime.artifact.folder import model_file
from causal_onnx.runtime.artifact.foreign import (
    LOOKED_FOR,
    NotDerivedError,
    Settings,
    derive_contract,
    read_settings,
)
from causal_onnx.runtime.artifact.golden import GoldenSet
from causal_onnx.runtime.artifact.header import OnnxHeader, read_header
from causal_onnx.runtime.artifact.signature import read_signature
from causal_onnx.runtime.contract import (
    CERTIFICATE_KEY,
    CONTRACT_KEY,
    GOLDEN_KEY,
    SOURCE_KEY,
    Contract,
    read_document,
)
from causal_onnx.runtime.errors import ArtifactError

__all__ = ["Artifact", "read_artifact"]


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Where a model lies and what its metadata says; each part is parsed when it is asked for.

    Every property raises `ArtifactError` where its part of the metadata is damaged or of a newer
    format.
    """

    location: Path | bytes
    """The path, or the model itself when it was given as bytes."""
    header: OnnxHeader

    @property
    def name(self) -> str:
        return name_of(self.location)

    @functools.cached_property
    def contract(self) -> Contract | None:
        """The contract in the file; None for an ONNX file that causal-onnx did not write."""
        text = self.header.metadata.get(CONTRACT_KEY)
        if text is None:
            return None
        try:
            return Contract.from_json(text)
        except ArtifactError as error:
            raise ArtifactError(f"{self.name}: {error}") from error

    @functools.cached_property
    def derived_contract(self) -> Contract:
        """What a decoder from another exporter takes and returns; from its graph and its folder.

        Raises:
            ArtifactError: Its layout is not known (docs/adopt.md); the message says why.
        """
        is_path = isinstance(self.location, Path)
        settings = read_settings(self.location) if isinstance(self.location, Path) else Settings()
        with self._open() as stream:
            graph = read_signature(stream, name=self.name)
        try:
            return derive_contract(graph, settings, opset=self.header.opsets.get(""))
        except NotDerivedError as error:
            beside = "" if is_path else " (bytes have no config.json beside them)"
            raise ArtifactError(
                f"{self.name} carries no contract: causal-onnx did not write it, and none "
                f"can be derived from its graph{beside}: {error}. Looked for: {LOOKED_FOR}. If "
                "you know what it "
                "takes and gives, say so: load(path, contract=Contract(inputs=..., outputs=...))"
            ) from error

    def _open(self) -> BinaryIO:
        if isinstance(self.location, bytes):
            return io.BytesIO(self.location)
        return self.location.open("rb", buffering=0)

    @functools.cached_property
    def source(self) -> dict[str, Any]:
        """What was exported: class, versions, sha256 of weights; empty where nothing is said."""
        return self._document(SOURCE_KEY, "source") or {}

    @functools.cached_property
    def certificate(self) -> dict[str, Any] | None:
        """The certificate of causality as it stands in the file, or None."""
        return self._document(CERTIFICATE_KEY, "certificate")

    @functools.cached_property
    def golden(self) -> GoldenSet | None:
        """The golden vectors, or None."""
        text = self.header.metadata.get(GOLDEN_KEY)
        if text is None:
            return None
        try:
            return GoldenSet.from_json(text)
        except ArtifactError as error:
            raise ArtifactError(f"{self.name}: {error}") from error

    def _document(self, key: str, what: str) -> dict[str, Any] | None:
        text = self.header.metadata.get(key)
        if text is None:
            return None
        try:
            return read_document(text, what=what)
        except ArtifactError as error:
            raise ArtifactError(f"{self.name}: {error}") from error


def read_artifact(path: str | os.PathLike[str] | bytes) -> Artifact:
    """Read the metadata of an ONNX file; onnxruntime is neither needed nor imported.

    Args:
        path: The file, the folder of a model, or a whole model as bytes.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: The file is empty, damaged or not an ONNX model, or the folder has no
            model.onnx.
    """
    if isinstance(path, bytes):
        return Artifact(location=path, header=read_header(io.BytesIO(path), name=name_of(path)))
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be a path or bytes, got {type(path).__name__}")
    location = model_file(path)
    with location.open("rb") as stream:
        header = read_header(stream, name=name_of(location))
    return Artifact(location=location, header=header)


def name_of(location: Path | bytes) -> str:
    """How messages call a model."""
    return "the model given as bytes" if isinstance(location, bytes) else str(location)
