"""Find out what is installed here, which devices really work, and what to do about the rest.

`diagnose()` never raises for what it finds: a broken installation is a finding.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from causal_onnx.runtime import __version__
from causal_onnx.runtime.artifact.protobuf import field_bytes
from causal_onnx.runtime.contract import Contract, TensorSpec
from causal_onnx.runtime.errors import CausalOnnxError
from causal_onnx.runtime.model import load
from causal_onnx.runtime.session.denormals import can_flush
from causal_onnx.runtime.session.device import PROVIDERS
from causal_onnx.runtime.session.ort import (
    NOT_INSTALLED,
    TELEMETRY_VARIABLE,
    import_onnxruntime,
    installed_wheels,
)
from causal_onnx.runtime.session.threads import available_cores, cpu_quota

__all__ = ["DeviceFinding", "Diagnosis", "ExtraFinding", "Problem", "diagnose"]

MAX_GPUS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFinding:
    """One device, tried with a session and a matrix product."""

    name: str
    """As `load(device=...)` takes it."""
    works: bool
    detail: str
    """What it is, or why it does not work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtraFinding:
    """One extra of this package, as in `pip install 'causal-onnx[export]'`."""

    name: str
    installed: bool
    missing: tuple[str, ...]
    """Requirements that are not met, e.g. "onnx>=1.19"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that does not work, and the way out."""

    what: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """Everything found."""

    platform: str
    versions: dict[str, str]
    """Distribution -> version, of those that are installed; "python" too."""
    extras: tuple[ExtraFinding, ...]
    providers: tuple[str, ...]
    """What this onnxruntime was built with, which is more than what works."""
    devices: tuple[DeviceFinding, ...]
    processors: int | None
    """Of the machine, as the operating system counts them."""
    usable_cores: int
    """What `threads=None` means here."""
    cpu_quota: float | None
    """Processors that the container may use; None: no limit."""
    flushes_denormals: bool
    """On the calling thread too; elsewhere only on the threads of the pool."""
    telemetry: str
    problems: tuple[Problem, ...]

    @property
    def healthy(self) -> bool:
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "healthy": self.healthy}


def diagnose() -> Diagnosis:
    """Look at this installation and try its devices; takes a second or two, more with a GPU.

    PyTorch and onnx are looked up, and not imported.
    """
    problems: list[Problem] = []
    requirements = _requirements()
    extras = tuple(_extra(name, needs) for name, needs in requirements.items())
    telemetry = _telemetry()  # before onnxruntime is imported, which switches it off
    providers = _providers(problems)
    devices = _devices(providers, problems) if providers else ()
    problems += _partly_installed(extras)
    names = [
        "numpy",
        *(need.name for needs in requirements.values() for need in needs),
    ]
    found = {name: _version(name) for name in dict.fromkeys(names)} | installed_wheels()
    return Diagnosis(
        platform=platform.platform(),
        versions={
            "python": platform.python_version(),
            "causal-onnx": __version__,
            **{name: version for name, version in found.items() if version is not None},
        },
        extras=extras,
        providers=providers,
        devices=devices,
        processors=os.cpu_count(),
        usable_cores=available_cores(),
        cpu_quota=cpu_quota(),
        flushes_denormals=can_flush(),
        telemetry=telemetry,
        problems=tuple(problems),
    )


@dataclass(frozen=True, slots=True)
class _Requirement:
    name: str
    least: str  # empty: any version

    def __str__(self) -> str:
        return f"{self.name}>={self.least}" if self.least else self.name

    def is_met(self) -> bool:
        version = _version(self.name)
        return version is not None and _numbers(version) >= _numbers(self.least)


def _requirements() -> dict[str, list[_Requirement]]:
    """What each extra needs, from this package's own metadata; empty where it is not installed."""
    try:
        lines = importlib.metadata.requires("causal-onnx") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[_Requirement]] = {}
    for line in lines:
        # Lines such as: onnxruntime-gpu[cuda,cudnn]<2,>=1.28; extra == 'gpu'
        needed, _, condition = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", condition)
        name = re.match(r"[\w.-]+", needed.strip())
        if extra and name:
            least = re.search(r">=\s*([\d.]+)", needed)
            requirement = _Requirement(name[0], least[1] if least else "")
            found.setdefault(extra[1], []).append(requirement)
    return found


def _extra(name: str, needs: list[_Requirement]) -> ExtraFinding:
    missing = tuple(str(need) for need in needs if not need.is_met())
    return ExtraFinding(name=name, installed=not missing, missing=missing)


def _partly_installed(extras: tuple[ExtraFinding, ...]) -> list[Problem]:
    """An extra of which something is there and something is not was probably wanted."""
    return [
        Problem(
            what=f"the extra {extra.name!r} is installed in part; missing: "
            f"{', '.join(extra.missing)}",
            remedy=f"pip install 'causal-onnx[{extra.name}]'",
        )
        for extra in extras
        if extra.name == "export" and extra.missing and _version("torch") is not None
    ]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _telemetry() -> str:
    value = os.environ.get(TELEMETRY_VARIABLE)
    if value in ("1", "true"):
        return f"off: {TELEMETRY_VARIABLE}={value}"
    if value is not None:
        return f"on: {TELEMETRY_VARIABLE}={value} was set, and is kept"
    if "onnxruntime" in sys.modules:
        return "started by whoever imported onnxruntime first; its events are disabled"
    return f"off: {TELEMETRY_VARIABLE}=1 is set before onnxruntime is imported"


def _providers(problems: list[Problem]) -> tuple[str, ...]:
    try:
        return tuple(import_onnxruntime().get_available_providers())
    except (ImportError, CausalOnnxError, OSError) as error:
        what, _, remedy = str(error).partition(". ")
        if str(error) == NOT_INSTALLED:
            remedy = "pip install 'causal-onnx[cpu]', or for NVIDIA GPUs 'causal-onnx[gpu]'"
        problems.append(Problem(what=what, remedy=remedy or "reinstall onnxruntime"))
        return ()


def _devices(providers: tuple[str, ...], problems: list[Problem]) -> tuple[DeviceFinding, ...]:
    cpu = _try_device("cpu")
    if not cpu.works:
        problems.append(
            Problem(
                what=f"the CPU does not work: {cpu.detail}",
                remedy="pip install --force-reinstall onnxruntime",
            )
        )
    if PROVIDERS["cuda"] not in providers:
        detail = "this onnxruntime is built without CUDA"
        if _has_nvidia_driver():
            problems.append(
                Problem(
                    what=f"the machine has an NVIDIA driver, but {detail}",
                    remedy="pip uninstall -y onnxruntime && pip install 'causal-onnx[gpu]'",
                )
            )
        return cpu, DeviceFinding(name="cuda", works=False, detail=detail)
    gpus: list[DeviceFinding] = []
    for index in range(MAX_GPUS):
        gpu = _try_device(f"cuda:{index}")
        if not gpu.works and index > 0:  # one past the last
            break
        gpus.append(gpu)
        if not gpu.works:
            break
    if not gpus[0].works:
        problems.append(
            Problem(
                what=f"CUDA does not work: {gpus[0].detail}",
                remedy="pip install --force-reinstall 'causal-onnx[gpu]' brings CUDA's libraries; "
                "the driver must be as new as they are (nvidia-smi shows its CUDA version)"
                if _has_nvidia_driver()
                else "install NVIDIA's driver, or pip uninstall -y onnxruntime-gpu && "
                "pip install 'causal-onnx[cpu]'",
            )
        )
    return cpu, *gpus


def _has_nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _try_device(name: str) -> DeviceFinding:
    """Run a product of two matrices there, which needs the device's libraries, and check it."""
    square = TensorSpec(name="x", dtype="float32", axes=("batch", 2))
    contract = Contract(
        inputs=(square,), outputs=(TensorSpec(name="y", dtype="float32", axes=("batch", 2)),)
    )
    try:
        model = load(_matrix_product(), device=name, contract=contract)
        result = model(np.array([[1, 2], [3, 4]], np.float32))
    except CausalOnnxError as error:
        return DeviceFinding(name=name, works=False, detail=str(error))
    if result.tolist() != [[7, 10], [15, 22]]:
        return DeviceFinding(name=name, works=False, detail=f"it computed {result.tolist()}")
    detail = (platform.processor() or platform.machine()) if name == "cpu" else "ready"
    return DeviceFinding(name=name, works=True, detail=detail)


def _matrix_product() -> bytes:
    """The ONNX model y = x x, encoded by hand, since the package onnx may not be installed."""

    def tensor(name: str) -> bytes:
        shape = field_bytes(1, field_bytes(2, "batch")) + field_bytes(1, field_bytes(1, 2))
        return field_bytes(1, name) + field_bytes(
            2, field_bytes(1, field_bytes(1, 1) + field_bytes(2, shape))
        )

    node = (
        field_bytes(1, "x") + field_bytes(1, "x") + field_bytes(2, "y") + field_bytes(4, "MatMul")
    )
    graph = (
        field_bytes(1, node)
        + field_bytes(2, "g")
        + field_bytes(11, tensor("x"))
        + field_bytes(12, tensor("y"))
    )
    opset = field_bytes(1, "") + field_bytes(2, 20)
    return field_bytes(1, 10) + field_bytes(7, graph) + field_bytes(8, opset)
