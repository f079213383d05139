"""Find onnxruntime's library and its C headers, which its Python wheel does not have."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

from examples.clients.client import BUILD, MissingError, run_tool

__all__ = ["find_headers", "find_library"]

HEADER = "onnxruntime_c_api.h"
PACKAGE = "libonnxruntime-dev"
SUITE = "trixie"
"""The first release of Debian with the package."""
PLACES = ("/usr/include/onnxruntime", "/usr/include", "/usr/local/include/onnxruntime")


def find_library() -> Path:
    """Libonnxruntime of the Python environment.

    Raises:
        MissingError: onnxruntime is not installed, or its library lies elsewhere.
    """
    spec = importlib.util.find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        raise MissingError("onnxruntime is not installed")
    found = sorted(Path(spec.origin).parent.glob("capi/libonnxruntime.*"))
    if not found:
        raise MissingError("onnxruntime's wheel has no libonnxruntime on this system")
    return found[0]


def find_headers(install: bool) -> Path:
    """A folder with the headers: ORT_INCLUDE, the system's, or those of Debian's package.

    Args:
        install: Fetch that package where there is no other; nothing is installed.

    Raises:
        MissingError: They are nowhere, and cannot be had.
    """
    unpacked = BUILD / "headers"
    places: list[str | Path] = [
        os.environ.get("ORT_INCLUDE", ""),
        *PLACES,
        unpacked / "usr/include/onnxruntime",
    ]
    for place in places:
        if place and Path(place, HEADER).is_file():
            return Path(place)
    if not install:
        raise MissingError(f"no {HEADER} here: `make examples` fetches it")
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise MissingError(f"no {HEADER}: set ORT_INCLUDE to its folder")
    draft = BUILD / "headers.part"
    shutil.rmtree(draft, ignore_errors=True)
    package = _download(BUILD / "apt")
    run_tool(["dpkg-deb", "-x", package, draft], folder=BUILD, why=f"{PACKAGE} is damaged")
    draft.rename(unpacked)
    return unpacked / "usr/include/onnxruntime"


def _download(folder: Path) -> Path:
    """The package, from this machine's releases or the first that has it; nothing is installed."""
    why = f"no {HEADER}, and apt has no {PACKAGE}: set ORT_INCLUDE to its folder"
    try:
        run_tool(["apt-get", "download", PACKAGE], folder=folder, why=why)
    except MissingError:
        options = _other_release(folder)
        run_tool(["apt-get", *options, "update"], folder=folder, why=why)
        run_tool(["apt-get", *options, "download", PACKAGE], folder=folder, why=why)
    return next(folder.glob("*.deb"))


def _other_release(folder: Path) -> list[str]:
    """Options that let apt read `SUITE` from this machine's mirror, with lists of its own."""
    texts = [path.read_text() for path in Path("/etc/apt").rglob("*") if path.suffix in _SOURCES]
    mirrors = re.findall(r"^(?:URIs:|deb(?: \[.*?\])?) *(\S+/debian/?)\b", "\n".join(texts), re.M)
    if not mirrors:
        raise MissingError(f"no {HEADER}, and no mirror of Debian: set ORT_INCLUDE to its folder")
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (folder / "sources.list").write_text(f"deb [signed-by={key}] {mirrors[0]} {SUITE} main\n")
    settings = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
    }
    return [part for key, value in settings.items() for part in ("-o", f"{key}={value}")]


_SOURCES = {".list", ".sources"}
