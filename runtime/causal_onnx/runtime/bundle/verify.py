"""Check a bundle: every byte, its contract, and what this machine computes with it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from causal_onnx.runtime.artifact.artifact import Artifact
from causal_onnx.runtime.artifact.folder import MODEL
from causal_onnx.runtime.artifact.golden import GoldenSet, json_number, relative_error
from causal_onnx.runtime.artifact.graph_parts import GraphParts, read_graph_parts
from causal_onnx.runtime.artifact.header import read_header
from causal_onnx.runtime.artifact.held import identity
from causal_onnx.runtime.artifact.selftest import SelfTestCase, SelfTestReport
from causal_onnx.runtime.bundle import tensor_proto
from causal_onnx.runtime.bundle.manifest import (
    CONTRACT,
    GOLDENS,
    file_entry,
    files_below,
    goldens_bytes,
    manifest_bytes,
)
from causal_onnx.runtime.bundle.replay import replay_streams, stream_plans
from causal_onnx.runtime.contract import LAST_ONLY, read_document
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.model import Model, load
from causal_onnx.runtime.session.trial import TrialLimits

__all__ = ["BundleReport", "verify_bundle"]

MAX_MANIFEST_BYTES = 64 << 20
"""As much as a file's whole metadata may hold."""

MAX_CONTENT_BYTES = 256 << 20
"""Of goldens.json, and of a tensor among the test data: logits of 500 positions of 128k tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleReport:
    """What was found in a bundle."""

    files: tuple[str, ...]
    """Those that its contract.json lists."""
    findings: tuple[str, ...]
    """What is wrong, one sentence each; empty if nothing is."""
    selftest: SelfTestReport | None = None
    """The golden vectors, replayed; None where the files are not what they should be: then nothing
    is run."""
    streams: tuple[SelfTestCase, ...] = ()
    """The golden vectors chunk by chunk through the KV cache."""
    test_data_error: float | None = None
    """Of `test_data_set_*`, as of the golden vectors."""

    @property
    def passed(self) -> bool:
        return not self.findings and self.selftest is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON: an infinite error is None."""
        return {
            "passed": self.passed,
            "findings": list(self.findings),
            "files": list(self.files),
            "selftest": None if self.selftest is None else self.selftest.to_dict(),
            "streams": [{**asdict(c), "error": json_number(c.error)} for c in self.streams],
            "test_data_error": None
            if self.test_data_error is None
            else json_number(self.test_data_error),
        }


def verify_bundle(
    folder: str | os.PathLike[str],
    *,
    device: str = "cpu",
    threads: int | None = None,
    isolated: bool | TrialLimits = False,
) -> BundleReport:
    """Check every hash, compare the contract with the model's own, and replay the golden vectors.

    A hash protects against damage. Whoever changes a bundle on purpose can change its hashes too;
    the model is then still compared with golden vectors, but with those of the changed bundle.

    Args:
        folder: The bundle.
        device: Where the model runs, as for `load`.
        threads: As for `load`.
        isolated: First load and run the model in a separate process, with limits, as
            `load(..., isolated_trial=...)` does.

    Raises:
        FileNotFoundError: There is no such folder.
        ArtifactError: It has no readable contract.json, so it is not a bundle.
        DeviceError: The device cannot be used.
    """
    place = Path(folder)
    with _Folder(place) as files:
        manifest = files.manifest()
        listed = _listed_files(manifest, place)
        findings = _check_files(place, files, listed)
        if findings:
            return BundleReport(files=tuple(listed), findings=tuple(findings))
        artifact, parts = files.model()
        golden, findings = _check_metadata(artifact, files, manifest)
        if findings or golden is None or artifact.contract is None:
            return BundleReport(files=tuple(listed), findings=tuple(findings))
        try:
            model = load(place / MODEL, device=device, threads=threads, isolated_trial=isolated)
            files.check_loaded(model)
            selftest = model.selftest()
            streams = replay_streams(model, golden, stream_plans(golden, artifact.contract))
            sets = _test_data_folders(listed)
            test_data = max(
                (_replay_test_data(model, parts, files, name) for name in sets), default=None
            )
        except (ArtifactError, ValueError) as error:
            return BundleReport(files=tuple(listed), findings=(str(error),))
    limit = golden.tolerance
    worst = {
        "the golden vectors": selftest.max_error,
        "the golden vectors through the cache": max((c.error for c in streams), default=0.0),
        "test_data_set_*": test_data or 0.0,
    }
    return BundleReport(
        files=tuple(listed),
        findings=tuple(
            f"{what}: largest error {error:.1e} on {model.device}, limit {limit:.0e}"
            for what, error in worst.items()
            if not error <= limit
        ),
        selftest=selftest,
        streams=streams,
        test_data_error=test_data,
    )


class _Folder:
    """The files of a bundle, each opened from the folder as it was at first, without links."""

    def __init__(self, place: Path) -> None:
        if not place.is_dir():
            raise FileNotFoundError(f"there is no folder {place}")
        self._place = place
        self._descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.entries: dict[str, dict[str, Any]] = {}
        """What is hashed so far, as contract.json says it."""
        self._identities: dict[str, tuple[int, ...]] = {}

    def __enter__(self) -> _Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def open(self, name: str) -> BinaryIO:
        """Open a regular file.

        Raises:
            OSError: It is not there, or is a link.
            ArtifactError: It is something else.
        """
        *folders, last = name.split("/")
        with contextlib.ExitStack() as opened:
            parent = self._descriptor
            for folder in folders:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                parent = os.open(folder, flags, dir_fd=parent)
                opened.callback(os.close, parent)
            # A named pipe would wait for its other end.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            file = os.fdopen(os.open(last, flags, dir_fd=parent), "rb", buffering=0)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise ArtifactError(f"{self._place / name} is not a regular file")
        return file

    def manifest(self) -> bytes:
        """The bytes of contract.json."""
        try:
            file = self.open(CONTRACT)
        except (OSError, ArtifactError) as error:
            raise ArtifactError(
                f"{self._place} is not a bundle: it has no file {CONTRACT}"
            ) from error
        with file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
        if len(content) > MAX_MANIFEST_BYTES:
            raise ArtifactError(
                f"{self._place / CONTRACT} is larger than {MAX_MANIFEST_BYTES} bytes"
            )
        return content

    def hash(self, name: str) -> dict[str, Any]:
        """What contract.json should say of a file."""
        with self.open(name) as file:
            before = identity(os.fstat(file.fileno()))
            self.entries[name] = file_entry(file)
            self._identities[name] = identity(os.fstat(file.fileno()))
            if self._identities[name] != before:
                raise ArtifactError(_changed(self._place / name))
        return self.entries[name]

    def model(self) -> tuple[Artifact, GraphParts]:
        """What the model, which was hashed, says of itself."""
        path = self._place / MODEL
        with self.open(MODEL) as file:
            artifact = Artifact(location=path, header=read_header(file, name=str(path)))
            parts = read_graph_parts(file, name=str(path))
            if identity(os.fstat(file.fileno())) != self._identities[MODEL]:
                raise ArtifactError(_changed(path))
        return artifact, parts

    def content(self, name: str) -> bytes:
        """The bytes of a file that was hashed.

        Raises:
            ArtifactError: It is not there any more, is too large, or was written to.
        """
        path = self._place / name
        if name not in self.entries:
            raise ArtifactError(f"{path} is missing")
        try:
            with self.open(name) as file:
                content = file.read(MAX_CONTENT_BYTES + 1)
        except OSError as error:
            raise ArtifactError(_changed(path)) from error
        if len(content) > MAX_CONTENT_BYTES:
            raise ArtifactError(f"{path} is larger than {MAX_CONTENT_BYTES} bytes")
        if file_entry(io.BytesIO(content)) != self.entries[name]:
            raise ArtifactError(_changed(path))
        return content

    def check_loaded(self, model: Model) -> None:
        """Check that a model was loaded from the files that were hashed."""
        for name, found in model.runner.loaded_from.items():
            if self._identities.get(name) != found:
                raise ArtifactError(_changed(self._place / name))


def _changed(path: Path) -> str:
    return f"{path} changed while it was being verified; verify it again when nothing writes to it"


def _listed_files(manifest: bytes, place: Path) -> dict[str, Mapping[str, Any]]:
    """File -> what contract.json says of it."""
    path = place / CONTRACT
    try:
        files = read_document(manifest.decode(), what=CONTRACT).get("files")
    except (ArtifactError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    if not isinstance(files, dict) or MODEL not in files:
        raise ArtifactError(f"{path} lists no {MODEL} among its files")
    return files


def _check_files(place: Path, files: _Folder, listed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Compare what is there with the list; nothing is opened that the folder does not hold."""
    found, others = files_below(place)
    findings = [f"{name} is not a regular file" for name in others]
    findings += [f"{name} is missing" for name in sorted(set(listed) - set(found) - set(others))]
    findings += [
        f"{name} does not belong to the bundle: {CONTRACT} does not list it"
        for name in found
        if name not in listed and name != CONTRACT
    ]
    for name in found:
        if name not in listed:
            continue
        try:
            entry = files.hash(name)
        except OSError as error:
            findings.append(f"{name} cannot be read: {error.strerror}")
            continue
        except ArtifactError as error:
            findings.append(str(error))
            continue
        if entry != listed[name]:
            findings.append(
                f"{name} was changed: sha256 {entry['sha256']}, {entry['size_bytes']} bytes; "
                f"{CONTRACT} says {json.dumps(listed[name])}"
            )
    return findings


def _check_metadata(
    artifact: Artifact, files: _Folder, manifest: bytes
) -> tuple[GoldenSet | None, list[str]]:
    """Compare contract.json and goldens.json with the model's metadata, byte by byte."""
    try:
        contract, golden = artifact.contract, artifact.golden
        if contract is None or golden is None or not golden.cases:
            return None, [f"{MODEL} carries no contract or no golden vectors"]
        written = manifest_bytes(artifact, files.entries)
        goldens = goldens_bytes(golden, contract)
    except ArtifactError as error:
        return None, [str(error)]
    findings = []
    if manifest != written:
        findings.append(
            f"{CONTRACT} is not what {MODEL} says of itself: its contract, certificate or source "
            "differ, or its text was changed"
        )
    if GOLDENS not in files.entries or files.content(GOLDENS) != goldens:
        findings.append(f"{GOLDENS} does not hold the golden vectors in {MODEL}")
    return golden, findings


def _test_data_folders(listed: Mapping[str, Any]) -> list[str]:
    return sorted({name.partition("/")[0] for name in listed if name.startswith("test_data_set_")})


def _replay_test_data(model: Model, parts: GraphParts, files: _Folder, folder: str) -> float:
    """Run the inputs of one set; the largest error, relative to each output's scale."""
    inputs = {
        name: _read_tensor(files, f"{folder}/input_{index}.pb", name)
        for index, name in enumerate(parts.inputs)
    }
    if model.contract.last_only is not None and inputs.pop(LAST_ONLY).any():
        raise ArtifactError(f"{folder} asks for the last position only, which the goldens do not")
    outputs = model.run(**inputs)
    return max(
        relative_error(outputs[name], _read_tensor(files, f"{folder}/output_{index}.pb", name))
        for index, name in enumerate(parts.outputs)
        if name in outputs
    )


def _read_tensor(files: _Folder, file: str, expected: str) -> Any:
    try:
        name, values = tensor_proto.decode(files.content(file))
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from error
    if name != expected:
        raise ArtifactError(f"{file} holds {name!r}, the model's tensor there is {expected!r}")
    return values
