"""Collect what a file states about itself and what can be found out by opening it here."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from causal_onnx.cli.certificate import StoredCertificate, read_certificate
from causal_onnx.cli.machine import describe_machine, now_text
from causal_onnx.cli.timing import Timing, default_lengths, time_lengths
from causal_onnx.runtime import (
    Artifact,
    ArtifactError,
    Contract,
    RunError,
    SelfTestReport,
    load,
    read_artifact,
)

__all__ = ["Proof", "gather"]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """All that a reader needs to judge a file."""

    artifact: Artifact
    contract: Contract
    certificate: StoredCertificate | None
    selftest: SelfTestReport | None
    """None: the file has no golden vectors."""
    timings: tuple[Timing, ...]
    left_out: tuple[str, ...]
    """Lengths that were not timed, each with its reason."""
    device: str
    machine: str
    when: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        header = self.artifact.header
        return {
            "path": self.artifact.name,
            "size_bytes": header.size_bytes,
            "opsets": {name or "ai.onnx": version for name, version in header.opsets.items()},
            "contract": json.loads(self.contract.to_json()),
            "source": self.artifact.source,
            "certificate": self.artifact.certificate,
            "selftest": None if self.selftest is None else self.selftest.to_dict(),
            "timings": [asdict(timing) for timing in self.timings],
            "left_out": list(self.left_out),
            "device": self.device,
            "machine": self.machine,
            "when": self.when,
        }


def gather(
    path: Path,
    *,
    device: str,
    threads: int | None,
    trusted: bool,
    lengths: Sequence[int] | None,
    tell: Callable[[str, float], None],
) -> Proof:
    """Read, replay and time the file.

    Args:
        path: The .onnx file; it needs a contract.
        device: As for `load`.
        threads: As for `load`.
        trusted: As for `load`.
        lengths: To time; None: `default_lengths`.
        tell: Called with (step, fraction done).

    Raises:
        ArtifactError: Damaged, foreign, or without a contract.
        DeviceError: The device cannot be used.
        ValueError: A length is not one that the contract allows.
    """
    tell("load", 0.0)
    artifact = read_artifact(path)
    certificate = read_certificate(artifact.certificate)
    model = load(path, device=device, threads=threads, trusted=trusted)
    contract = model.contract
    if lengths is None:
        lengths = default_lengths(contract)
    longest, shortest = max(lengths), min(lengths)
    if shortest < contract.min_seq_len or longest > (contract.max_seq_len or longest):
        raise ValueError(
            f"{path} takes lengths from {contract.min_seq_len} to {contract.max_seq_len}, asked "
            f"to time {', '.join(str(length) for length in lengths)}"
        )
    tell("selftest", 0.0)
    try:
        selftest = model.selftest() if artifact.golden is not None else None
    except ArtifactError:  # an empty set of golden vectors
        selftest = None
    try:
        timings, left_out = time_lengths(model, lengths, tell=tell)
    except (RunError, ValueError) as error:
        # What an input may hold can be narrower than its contract says, such as lengths in order.
        timings, left_out = [], [f"made-up inputs do not run: {error}"]
    return Proof(
        artifact=artifact,
        contract=contract,
        certificate=certificate,
        selftest=selftest,
        timings=tuple(timings),
        left_out=tuple(left_out),
        device=model.device,
        machine=describe_machine(threads),
        when=now_text(),
    )
