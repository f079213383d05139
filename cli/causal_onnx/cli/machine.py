"""What figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from causal_onnx.cli.proof import describe_machine
from causal_onnx.runtime.threads import available_cores

__all__ = ["Machine", "this_machine"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The machine, when it was used, and what else it did then."""

    processor: str
    system: str
    """System, threads and versions, on one line."""
    load_before: float | None
    """Processes that waited for a processor in the minute before; None: the system does not say."""
    when: str

    def warning(self) -> str | None:
        """What to think of figures that were taken beside other work; None: nothing."""
        cores = available_cores()
        if self.load_before is None or self.load_before < cores / 2:
            return None
        return (
            f"other work ran on this machine before (load {self.load_before:g}, {cores} cores): "
            "wall times tell of that too, processor time less"
        )


def this_machine(threads: int | None) -> Machine:
    """Look at this machine, before it is given work."""
    return Machine(
        processor=_processor(),
        system=describe_machine(threads),
        load_before=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        when=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
