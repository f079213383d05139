"""The lock files say exactly what is installed, alike in both environments."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from tools.lock import OLDEST

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements.lock", "requirements-thin.lock", "requirements-suites.lock")


def pins_of(text: str) -> dict[str, str]:
    """Name -> version; fails on a line that is not one exact pin."""
    pins = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9]+(?:-[a-z0-9]+)*)==([0-9][0-9a-z.]*)", line)
            assert match is not None, f"not an exact pin: {line}"
            assert match[1] not in pins, f"pinned twice: {line}"
            pins[match[1]] = match[2]
    return pins


def names_of(text: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [re.split(r"[=<>!~\[ ]", line)[0] for line in lines if line]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("lock", LOCKS)
def test_every_package_has_one_exact_version(lock: str) -> None:
    pins = pins_of(read(lock))
    assert set(names_of(read(lock.replace(".lock", ".in")))) <= set(pins)


@pytest.mark.parametrize(
    "line", ["numpy>=2", "torch==2.13.0+cpu", "-i https://example.org", "numpy", "a==1 --hash=x"]
)
def test_what_is_no_exact_pin_is_refused(line: str) -> None:
    with pytest.raises(AssertionError, match="not an exact pin"):
        pins_of(line)


def test_every_package_installs_on_the_oldest_python() -> None:
    oldest = tomllib.loads(read("pyproject.toml"))["project"]["requires-python"].strip(">=") + ".0"
    assert oldest == OLDEST
    needs = {name: metadata(name)["Requires-Python"] or "" for name in pins_of(read(LOCKS[0]))}
    assert {n: need for n, need in needs.items() if oldest not in SpecifierSet(need)} == {}


def test_the_thin_environment_has_the_same_versions_and_no_pytorch() -> None:
    thin = pins_of(read("requirements-thin.lock"))
    assert thin.items() <= pins_of(read("requirements.lock")).items()
    assert not set(thin) & {"torch", "onnx", "onnx-ir", "onnxscript", "rich", "safetensors"}


def test_pytorch_is_the_measured_version() -> None:
    assert pins_of(read("requirements.lock"))["torch"] == "2.13.0"


def test_what_an_install_may_bring_is_what_is_measured() -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    torch = next(Requirement(text) for text in extras["export"] if text.startswith("torch"))
    assert pins_of(read("requirements.lock"))["torch"] in torch.specifier
    assert "2.14.0" not in torch.specifier
