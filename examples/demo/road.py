"""From the folder of a trained checkpoint to text, by the two commands that a user types."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from causal_onnx.export import ExportReport, export_checkpoint
from causal_onnx.runtime import BundleReport, verify_bundle
from examples.demo.modules import bar_of_export
from examples.demo.screen import Update

__all__ = ["CHECKPOINT", "ROOT", "Road", "continue_text", "make_folder"]

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "tests" / "data" / "real" / "baby105"
"""Trained on short stories by somebody else; its licence lies in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Road:
    """What was made of the checkpoint."""

    report: ExportReport
    verified: BundleReport
    text: str
    """What the folder wrote after the prompt, in a process that cannot import PyTorch."""


def make_folder(folder: Path, update: Update) -> tuple[ExportReport, BundleReport]:
    """Export the checkpoint to a folder that is a model, and verify every byte of it."""
    report = export_checkpoint(
        CHECKPOINT, folder, replace=folder.is_dir(), progress=bar_of_export(update)
    )
    return report, verify_bundle(folder)


def continue_text(folder: Path, prompt: str, *, count: int) -> str:
    """What `causal-onnx generate` writes where importing PyTorch fails.

    Raises:
        RuntimeError: The process failed; what it said is on stderr.
    """
    arguments: Sequence[str] = ("generate", str(folder.resolve()), "--prompt", prompt)
    command = [sys.executable, "-m", "examples.demo.without_torch", *arguments]
    command += ["--max-new-tokens", str(count)]
    finished = subprocess.run(
        command, cwd=ROOT, check=False, stdout=subprocess.PIPE, encoding="utf-8"
    )
    if finished.returncode != 0:
        raise RuntimeError(f"causal-onnx generate ended with exit code {finished.returncode}")
    return finished.stdout.rstrip("\n")
