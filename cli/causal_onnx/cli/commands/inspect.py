"""Show what a file takes and returns, what it was made from, and what was proved of it.

Reads the file's metadata only: nothing is run, and files of any size open at once.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from causal_onnx.cli.console import Console
from causal_onnx.cli.options import add_model_argument

if TYPE_CHECKING:
    from causal_onnx.cli.certificate import StoredCertificate
    from causal_onnx.runtime import Artifact, Contract

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
example:
  causal-onnx inspect model.onnx
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_argument(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Read and print the metadata."""
    from causal_onnx.cli.certificate import read_certificate
    from causal_onnx.runtime import read_artifact

    artifact = read_artifact(args.model)
    certificate = read_certificate(artifact.certificate)
    if args.json:
        console.json(_document(artifact))
    else:
        _print(artifact, certificate, console)
    return 0


def _document(artifact: Artifact) -> dict[str, Any]:
    header, golden = artifact.header, artifact.golden
    contract = artifact.contract
    derived = _derived(artifact)[0] if contract is None else None
    return {
        "path": str(artifact.location),
        "size_bytes": header.size_bytes,
        "ir_version": header.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in header.opsets.items()},
        "producer": header.producer,
        "contract": None if contract is None else json.loads(contract.to_json()),
        "derived_contract": None if derived is None else json.loads(derived.to_json()),
        "source": artifact.source,
        "certificate": artifact.certificate,
        "golden": None
        if golden is None
        else {"cases": len(golden.cases), "tolerance": golden.tolerance},
    }


def _derived(artifact: Artifact) -> tuple[Contract | None, str]:
    """The contract of a file of another exporter; None, and why there is none."""
    from causal_onnx.runtime import ArtifactError

    try:
        return artifact.derived_contract, ""
    except ArtifactError as error:
        return None, str(error)


def _print(artifact: Artifact, certificate: StoredCertificate | None, console: Console) -> None:
    from causal_onnx.cli import describe

    console.print(artifact.name)
    console.pairs(describe.file_pairs(artifact))
    if artifact.contract is None:
        derived, reason = _derived(artifact)
        if derived is None:
            console.heading("contract")
            console.print("  none: causal-onnx did not write this file")
            console.note(reason)
        else:
            console.heading(
                "contract (derived from the graph and the files beside it; the file has none)"
            )
            console.pairs(describe.contract_pairs(derived))
            console.print(
                "\nmake a folder with a certificate and golden vectors from it: causal-onnx adopt "
                f"{artifact.name} -o model/"
            )
        return
    console.heading("contract")
    console.pairs(describe.contract_pairs(artifact.contract))
    if artifact.source:
        console.heading("source")
        console.pairs(describe.source_pairs(artifact.source))
    console.heading("certificate (as the file states; attest and selftest judge it as it is now)")
    if certificate is None:
        console.print("  none")
    else:
        proof = certificate.proof
        console.pairs(
            [
                ("causality", certificate.verdict_text),
                *(("attention", core) for core in (proof.cores if proof else ())),
                *([("cache", certificate.cache.summary)] if certificate.cache else []),
                ("parity", describe.parity_summary(certificate)),
                *certificate.precision,
            ]
        )
    golden = artifact.golden
    if golden is None:
        console.print("\nno golden vectors: `selftest` has nothing to replay")
    else:
        console.print(
            f"\n{len(golden.cases)} golden vectors (limit {golden.tolerance:.0e}); replay them "
            f"here: causal-onnx selftest {artifact.name}"
        )
