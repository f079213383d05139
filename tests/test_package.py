"""What is published: a wheel and a source distribution, built, looked into, and installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="the build backend is not installed")

from causal_onnx.runtime import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pip(python: Path | str, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel built from that."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), "-t"]
    subprocess.run([*build, "sdist"], cwd=ROOT, check=True, capture_output=True)
    source = next(folder.glob("*.tar.gz"))
    pip(
        sys.executable, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)
    )
    return folder


def test_the_source_distribution_holds_what_its_tests_need(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "CHANGELOG.md", "LICENSE", "SECURITY.md", "pyproject.toml"} <= names
    assert not [name for name in names if "__pycache__" in name or ".venv" in name]


def test_the_wheel_says_who_it_is(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        name = next(one for one in wheel.namelist() if one.endswith(".dist-info/METADATA"))
        said = Parser().parsestr(wheel.read(name).decode())
    assert said["Version"] == __version__
    assert set(said.get_all("Provides-Extra") or []) == set(PROJECT["optional-dependencies"])
    urls = dict(url.split(", ", 1) for url in said.get_all("Project-URL") or [])
    assert urls == PROJECT["urls"]


def test_the_wheel_holds_every_module_and_mark_of_types(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        held = {name for name in wheel.namelist() if name.startswith("causal_onnx/")}
    roots = [
        Path(root)
        for root in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
            "targets"
        ]["wheel"]["packages"]
    ]
    sources = {
        path.relative_to((ROOT / root).parent).as_posix()
        for root in roots
        for path in (ROOT / root).rglob("*")
        if path.suffix in (".py", ".html", ".css", ".js") or path.name == "py.typed"
    }
    assert held >= sources


@pytest.mark.slow
def test_the_wheel_runs_where_it_alone_is_installed(dist: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip(python, "install", "--no-deps", str(next(dist.glob("*.whl"))))
    # Its one dependency, numpy, is not there; the help needs none.
    command = [str(python.with_name("causal-onnx")), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.startswith("usage: causal-onnx ")
