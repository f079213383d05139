"""The one place that imports onnxruntime: checked, with its telemetry off."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from causal_onnx.runtime.contract import CHUNKED
from causal_onnx.runtime.errors import ArtifactError, DeviceError

__all__ = [
    "first_line",
    "import_onnxruntime",
    "installed_wheels",
    "is_older",
    "onnxruntime_errors",
    "refuse_older",
]

TELEMETRY_VARIABLE = "ORT_DISABLE_TELEMETRY"

OLDEST = (1, 28)
"""Against a float64 reference, the Attention of 1.23 to 1.27 was wrong in every case of a fully
masked row, in 14 to 72 % of those with softcap, and in a third of those with unequal lengths; from
1.28 in none of 12,000."""

NOT_INSTALLED = (
    "onnxruntime is not installed. For the CPU: pip install 'causal-onnx[cpu]'; "
    "for NVIDIA GPUs: pip install 'causal-onnx[gpu]'"
)


@functools.cache
def import_onnxruntime() -> ModuleType:
    """Import onnxruntime, which must be installed exactly once.

    Telemetry is on by default in onnxruntime's Linux wheels from 1.29: it writes files below the
    user's cache folder and starts threads. It reads its switch once, while being imported, so the
    switch is set before; a value that the user has set is kept. Where the host imported
    onnxruntime first, only its events can still be turned off.

    Raises:
        ImportError: It is not installed, or does not load.
        DeviceError: Several of its wheels are installed over each other.
    """
    wheels = installed_wheels()
    if len(wheels) > 1:
        both = ", ".join(f"{name} {version}" for name, version in wheels.items())
        raise DeviceError(
            f"several wheels of onnxruntime are installed over each other ({both}); they overwrite "
            "each other's files. Keep one: "
            f"pip uninstall -y {' '.join(wheels)} && pip install 'causal-onnx[cpu]' "
            "(or 'causal-onnx[gpu]')"
        )
    already_imported = "onnxruntime" in sys.modules
    telemetry_unset = TELEMETRY_VARIABLE not in os.environ
    if telemetry_unset:
        os.environ[TELEMETRY_VARIABLE] = "1"
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ImportError(NOT_INSTALLED, name=error.name) from error
    # What is left of two wheels after one of them is uninstalled: a folder that still imports.
    if not hasattr(onnxruntime, "InferenceSession"):
        raise ImportError(
            "onnxruntime is installed incompletely (it has no InferenceSession), perhaps "
            "because one of "
            "two wheels was uninstalled. Reinstall it: pip install --force-reinstall "
            f"{next(iter(wheels), 'onnxruntime')}"
        )
    _check_version(onnxruntime.__version__)
    if already_imported and telemetry_unset:
        onnxruntime.disable_telemetry_events()
    return onnxruntime


def is_older(version: str, needed: str) -> bool:
    """Whether a version comes before another, by their first two numbers."""
    return _two_numbers(version) < _two_numbers(needed)


def _two_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _check_version(version: str) -> None:
    if _two_numbers(version) < OLDEST:
        raise ImportError(
            f"onnxruntime {version} is too old: its Attention operator gives wrong numbers for "
            f"masked rows, softcap and unequal lengths. Update it to {OLDEST[0]}.{OLDEST[1]} or "
            "newer: pip install -U onnxruntime"
        )


def refuse_older(version: str, needed: str | None, name: str, form: str) -> None:
    """See that an onnxruntime has what a file needs.

    Args:
        version: Of the onnxruntime that would run it.
        needed: The contract's `min_onnxruntime`.
        name: The file's.
        form: The contract's.

    Raises:
        ArtifactError: It is older.
    """
    if needed is not None and is_older(version, needed):
        other = "ort" if form == CHUNKED else "portable"
        raise ArtifactError(
            f"{name} needs onnxruntime {needed} or newer, and this is {version}: the file holds an "
            "operator, or an input of one, that older versions lack. Update onnxruntime: pip "
            f"install -U 'onnxruntime>={needed}'; or export with target={other!r}, which older "
            "versions run"
        )


def installed_wheels() -> dict[str, str]:
    """Name -> version of every wheel whose files are in the folder that onnxruntime comes from.

    pip does not see that they clash, since their names differ: onnxruntime, onnxruntime-gpu,
    onnxruntime-directml, ort-nightly and so on all write the folder `onnxruntime`. Each leaves a
    record of its own beside it. (`importlib.metadata` finds those too, and takes 20 ms to import.)
    """
    spec = importlib.util.find_spec("onnxruntime")
    places = (spec.submodule_search_locations or ()) if spec else ()
    found = {}
    for place in places:
        for folder in Path(place).parent.iterdir():
            is_ours = folder.name.startswith(("onnxruntime", "ort_"))
            if not is_ours or not (folder / "RECORD").is_file():
                continue
            # Companions such as onnxruntime-genai have a folder of their own.
            listed = "\n" + (folder / "RECORD").read_text(encoding="utf-8")
            if folder.suffix == ".dist-info" and "\nonnxruntime/__init__.py," in listed:
                name, _, version = folder.stem.partition("-")
                found[name.replace("_", "-")] = version
    return dict(sorted(found.items()))


@functools.cache
def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """What onnxruntime raises: a dozen classes with no base of their own, and RuntimeError.

    Also UnicodeDecodeError, in place of an error whose message quotes bytes of a damaged file.
    """
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    found = [
        value
        for value in vars(state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    ]
    return (*found, RuntimeError, UnicodeDecodeError)


def first_line(error: Exception) -> str:
    """An onnxruntime error in one line, without the C++ signature that some begin with."""
    text = str(error).strip().partition("\n")[0]
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^/\S+:\d+ .+?\)(?: const)? (?=[A-Z])", "", text)
    return text or type(error).__name__
