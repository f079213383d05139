"""Tests that share what is slow to make run in one process; the others anywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import BY_FILE, TOGETHER, unit_of

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("place", [*TOGETHER, *BY_FILE])
def test_each_place_exists(place: str) -> None:
    assert (ROOT / place).exists()


def test_the_tests_of_a_place_or_a_file_are_one_unit_and_others_are_alone() -> None:
    states = "tests/export/cache/test_states.py"
    assert unit_of(f"{states}::test_a[x]") == unit_of(f"{states}::test_b") == states
    assert unit_of("tests/serve/test_app.py::test_a") == "tests/serve/"
    assert unit_of("tests/zoo/test_zoo.py::test_a[b]") == "tests/zoo/test_zoo.py::test_a[b]"


def test_processes_get_the_units(tmp_path: Path) -> None:
    place = tmp_path / "tests" / "demo"
    place.mkdir(parents=True)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "tests" / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    case = "import os, pathlib, pytest, time\n@pytest.mark.parametrize('n', range(9))\n"
    (place / "test_together.py").write_text(
        f"{case}def test_it(n):\n    {_note(tmp_path, 'together')}"
    )
    # Each waits for a test of the other process: were they one unit, none would come.
    wait = f"""
    end = time.monotonic() + 60
    while len(list(pathlib.Path({str(tmp_path)!r}).glob('alone-*'))) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)
"""
    alone = f"{case}def test_it(n):\n    {_note(tmp_path, 'alone')}{wait}"
    (tmp_path / "tests" / "test_alone.py").write_text(alone)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert len(list(tmp_path.glob("together-*"))) == 1
    assert len(list(tmp_path.glob("alone-*"))) == 2


def _note(folder: Path, name: str) -> str:
    """A statement that notes in `folder` which process runs it."""
    return f"pathlib.Path({str(folder)!r}, f'{name}-{{os.getpid()}}').touch()"
