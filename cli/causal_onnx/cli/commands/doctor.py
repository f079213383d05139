"""Show what is installed, which devices work, and what to do about those that do not.

Every device is tried with a session and a matrix product. Exit code 0 if models can be run on the
CPU, 1 if not.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import CommandError

if TYPE_CHECKING:
    from causal_onnx.runtime.doctor import Diagnosis

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
example:
  causal-onnx doctor
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Look, try, and print."""
    try:
        from causal_onnx.runtime.doctor import diagnose
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise CommandError("numpy is not installed: pip install numpy") from error

    with console.progress() as tell:
        tell("trying the devices", 0.0)
        diagnosis = diagnose()
    if args.json:
        console.json(diagnosis.to_dict())
    else:
        _print(diagnosis, console)
    if not any(device.works and device.name == "cpu" for device in diagnosis.devices):
        # The first problem is the one that the others follow from.
        first = diagnosis.problems[0] if diagnosis.problems else None
        reason = f"{first.what}. To do: {first.remedy}" if first else "no device was found"
        raise CommandError(f"models cannot be run here: {reason}")
    return 0


def _print(diagnosis: Diagnosis, console: Console) -> None:
    console.print(diagnosis.platform)
    console.heading("installed")
    console.pairs(list(diagnosis.versions.items()))
    console.heading("extras, as in pip install 'causal-onnx[name]'")
    console.pairs(
        [
            (extra.name, "yes" if extra.installed else f"no, missing {', '.join(extra.missing)}")
            for extra in diagnosis.extras
        ]
    )
    console.heading("devices")
    console.pairs(
        [
            (device.name, f"{'works' if device.works else 'does not work'}: {device.detail}")
            for device in diagnosis.devices
        ]
    )
    console.heading("processor")
    console.pairs(_processor(diagnosis))
    console.heading("problems" if diagnosis.problems else "no problems found")
    for problem in diagnosis.problems:
        console.print(f"  {problem.what}\n    to do: {problem.remedy}")


def _processor(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    quota = diagnosis.cpu_quota
    return [
        ("processors", str(diagnosis.processors or "unknown")),
        ("limit of the container", "none" if quota is None else f"{quota:g}"),
        ("threads of one call", f"{diagnosis.usable_cores} unless you say otherwise"),
        (
            "denormal numbers",
            "computed as zero"
            if diagnosis.flushes_denormals
            else "computed as zero on the pool's threads only",
        ),
        ("onnxruntime's telemetry", diagnosis.telemetry),
    ]
