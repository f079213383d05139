"""The revision that results are measured at."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench import machine


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("path", "is_dirty"),
    [("bench/README.md", False), ("README.md", True), ("bench/run.py", True), ("a.py", True)],
)
def test_what_a_bench_writes_does_not_change_the_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, is_dirty: bool
) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / path).write_text("before\n")
    git(tmp_path, "init")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-m", "a")
    (tmp_path / path).write_text("after\n")
    monkeypatch.setattr(machine, "HERE", tmp_path / "bench")
    revision = machine._revision()
    assert revision is not None
    assert revision.endswith("-dirty") == is_dirty


def test_without_a_repository_there_is_no_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "HERE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert machine._revision() is None
