"""Check a bundle: every byte, its contract, and what this machine computes with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from causal_onnx.runtime.artifact import Artifact, read_artifact
from causal_onnx.runtime.bundle import tensor_proto
from causal_onnx.runtime.bundle.graph_parts import read_graph_parts
from causal_onnx.runtime.bundle.manifest import (
    CONTRACT,
    GOLDENS,
    MODEL,
    file_entry,
    files_below,
    goldens_bytes,
    manifest_bytes,
)
from causal_onnx.runtime.bundle.replay import replay_streams, stream_plans
from causal_onnx.runtime.contract import LAST_ONLY, read_document
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.golden import GoldenSet, json_number, relative_error
from causal_onnx.runtime.model import Model, SelfTestCase, SelfTestReport, load

__all__ = ["BundleReport", "verify_bundle"]

MAX_MANIFEST_BYTES = 64 << 20
"""As much as a file's whole metadata may hold."""


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
    folder: str | os.PathLike[str], *, device: str = "cpu", threads: int | None = None
) -> BundleReport:
    """Check the hash of every file, that the contract is the model's own, and replay the goldens.

    A hash protects against damage. Whoever changes a bundle on purpose can change its hashes too:
    then what the model computes is still compared with the goldens, which are its own.

    Args:
        folder: The bundle.
        device: Where the model runs, as for `load`.
        threads: As for `load`.

    Raises:
        FileNotFoundError: There is no such folder.
        ArtifactError: It holds no contract.json that can be read: it is no bundle.
        DeviceError: The device cannot be used.
    """
    place = Path(folder)
    listed = _listed_files(place)
    findings = _check_files(place, listed)
    if findings:
        return BundleReport(files=tuple(listed), findings=tuple(findings))
    artifact, golden, findings = _check_metadata(place, listed)
    if findings or golden is None or artifact.contract is None:
        return BundleReport(files=tuple(listed), findings=tuple(findings))
    try:
        model = load(place / MODEL, device=device, threads=threads)
        selftest = model.selftest()
        streams = replay_streams(model, golden, stream_plans(golden, artifact.contract))
        test_data = max(
            (_replay_test_data(model, place / name) for name in _test_data_folders(listed)),
            default=None,
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


def _listed_files(place: Path) -> dict[str, Mapping[str, Any]]:
    """File -> what contract.json says of it."""
    if not place.is_dir():
        raise FileNotFoundError(f"there is no folder {place}")
    path = place / CONTRACT
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{place} is no bundle: it has no file {CONTRACT}")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"{path} is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        files = read_document(path.read_text(encoding="utf-8"), what=CONTRACT).get("files")
    except (ArtifactError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: {error}") from error
    if not isinstance(files, dict) or MODEL not in files:
        raise ArtifactError(f"{path} lists no {MODEL} among its files")
    return files


def _check_files(place: Path, listed: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Compare what is there with the list; nothing is opened that the folder does not hold."""
    found, others = files_below(place)
    findings = [f"{name} is no regular file" for name in others]
    findings += [f"{name} is missing" for name in sorted(set(listed) - set(found) - set(others))]
    findings += [
        f"{name} does not belong to the bundle: {CONTRACT} does not list it"
        for name in found
        if name not in listed and name != CONTRACT
    ]
    for name in found:
        if name not in listed:
            continue
        entry = file_entry(place / name)
        if entry != listed[name]:
            findings.append(
                f"{name} was changed: sha256 {entry['sha256']}, {entry['size_bytes']} bytes; "
                f"{CONTRACT} says {json.dumps(listed[name])}"
            )
    return findings


def _check_metadata(
    place: Path, listed: Mapping[str, Mapping[str, Any]]
) -> tuple[Artifact, GoldenSet | None, list[str]]:
    """Compare contract.json and goldens.json with the model's metadata, byte by byte."""
    artifact = read_artifact(place / MODEL)
    try:
        contract, golden = artifact.contract, artifact.golden
        if contract is None or golden is None or not golden.cases:
            return artifact, None, [f"{MODEL} carries no contract or no golden vectors"]
        written = manifest_bytes(artifact, place, sorted(listed))
        goldens = goldens_bytes(golden, contract)
    except ArtifactError as error:
        return artifact, None, [str(error)]
    findings = []
    if (place / CONTRACT).read_bytes() != written:
        findings.append(
            f"{CONTRACT} is not what {MODEL} says of itself: its contract, certificate or source "
            "differ, or its text was changed"
        )
    if GOLDENS not in listed or (place / GOLDENS).read_bytes() != goldens:
        findings.append(f"{GOLDENS} does not hold the golden vectors in {MODEL}")
    return artifact, golden, findings


def _test_data_folders(listed: Mapping[str, Any]) -> list[str]:
    return sorted({name.partition("/")[0] for name in listed if name.startswith("test_data_set_")})


def _replay_test_data(model: Model, folder: Path) -> float:
    """Run the inputs of one set; the largest error, relative to each output's scale."""
    parts = read_graph_parts(folder.parent / MODEL)
    inputs = {
        name: _read_tensor(folder / f"input_{index}.pb", name)
        for index, name in enumerate(parts.inputs)
    }
    if model.contract.last_only is not None and inputs.pop(LAST_ONLY).any():
        raise ArtifactError(f"{folder} asks for the last position only, which the goldens do not")
    outputs = model.run(**inputs)
    return max(
        relative_error(outputs[name], _read_tensor(folder / f"output_{index}.pb", name))
        for index, name in enumerate(parts.outputs)
        if name in outputs
    )


def _read_tensor(path: Path, expected: str) -> Any:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing")
    try:
        name, values = tensor_proto.decode(path.read_bytes())
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    if name != expected:
        raise ArtifactError(f"{path} holds {name!r}, the model's tensor there is {expected!r}")
    return values
