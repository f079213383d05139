"""What figures were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from dataclasses import dataclass
from pathlib import Path

from causal_onnx.runtime.session.ort import installed_wheels
from causal_onnx.runtime.session.threads import available_cores

__all__ = [
    "Machine",
    "describe_machine",
    "load_average",
    "now_text",
    "processor",
    "this_machine",
]


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
            f"other work was running on this machine (load {self.load_before:g}, {cores} cores): "
            "this affects wall times, and processor times less"
        )


def this_machine(threads: int | None) -> Machine:
    """Look at this machine, before it is given work."""
    return Machine(
        processor=processor()[0],
        system=describe_machine(threads),
        load_before=load_average(),
        when=now_text(),
    )


def describe_machine(threads: int | None) -> str:
    """System, processor, threads and onnxruntime, on one line."""
    wheels = ", ".join(f"{name} {version}" for name, version in installed_wheels().items())
    count = threads or available_cores()
    return (
        f"{platform.system()} {platform.machine()}, {count} thread{'' if count == 1 else 's'}, "
        f"{wheels}, Python {platform.python_version()}"
    )


def now_text() -> str:
    """The time by this machine's clock."""
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")


def load_average() -> float | None:
    """Processes that wait for a processor, over a minute; None: the system does not say."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def processor() -> tuple[str, set[str]]:
    """The processor's name, and its features where the system tells them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features", ""))
    name = fields.get("model name") or platform.processor() or platform.machine()
    return name, set(flags.split())
