"""The gate for other projects: the action and the hook, run as GitHub and pre-commit run them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

onnx = pytest.importorskip("onnx", reason="attest needs onnx")
yaml = pytest.importorskip("yaml", reason="it comes with pre-commit")

from tests.cli.onnx_file import write_model  # noqa: E402 - after the check for packages
from tests.cli.test_attest import write_graph  # noqa: E402 - after the check for packages

ROOT = Path(__file__).resolve().parent.parent


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", *who, "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A commit with a leaking file, and one after it that adds a causal file with an odd name."""
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    write_graph(folder / "old leak.onnx", "Softmax", axis=1)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "old")
    write_model(folder / "new é.onnx")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "new")
    return folder


def attest(repository: Path, **inputs: str) -> tuple[int, str, str]:
    """Exit code, verdict and log of the action's step, as GitHub's runner starts it."""
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    step = next(one for one in action["runs"]["steps"] if one.get("id") == "attest")
    outputs = repository.parent / "outputs"
    outputs.write_text("")
    environment = {name: str(one["default"]) for name, one in action["inputs"].items()} | inputs
    given = {name.upper(): value for name, value in environment.items()}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=repository,
        env=os.environ | given | {"PATH": path, "GITHUB_OUTPUT": str(outputs)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, outputs.read_text().strip(), done.stdout + done.stderr


def test_changed_files_alone_are_judged(repository: Path) -> None:
    code, verdict, log = attest(repository, base=git(repository, "rev-parse", "HEAD~"))
    assert (code, verdict) == (0, "verdict=causal"), log
    assert "::notice file=new é.onnx,title=causal::" in log
    assert "old leak" not in log


@pytest.mark.parametrize("inputs", [{"all": "true"}, {"base": "0" * 40}], ids=["all", "first"])
def test_where_every_file_counts_a_leak_fails(repository: Path, inputs: dict[str, str]) -> None:
    code, verdict, log = attest(repository, **inputs)
    assert (code, verdict) == (1, "verdict=not_causal")
    assert "::error file=old leak.onnx,title=not causal::" in log
    assert 'Softmax "only"' in log


def test_patterns_choose(repository: Path) -> None:
    code, verdict, _ = attest(repository, all="true", files="new*.onnx\n\n")
    assert (code, verdict) == (0, "verdict=causal")


def test_nothing_to_judge_is_said(repository: Path) -> None:
    code, verdict, log = attest(repository, all="true", files="*.bin")
    assert (code, verdict) == (0, "verdict=none")
    assert "no .onnx file to judge" in log


def test_a_base_that_the_checkout_lacks_is_an_error(repository: Path) -> None:
    code, verdict, log = attest(repository, base="1" * 40)
    assert (code, verdict) == (3, "")
    assert "set fetch-depth to 0" in log


def test_the_hook_judges_the_files_that_it_is_given(repository: Path) -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    names = git(repository, "-c", "core.quotePath=false", "ls-files").splitlines()
    assert all(re.search(hook["files"], name) for name in names)
    command = [sys.executable, "-m", "causal_onnx.cli", *shlex.split(hook["entry"])[1:], *names]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "old leak.onnx\nnot causal" in done.stdout


SCHEMAS: dict[str, Any] = {
    "vendor.github-actions": ["action.yml"],
    "vendor.github-workflows": [".github/workflows/ci.yml", ".github/workflows/release.yml"],
}


@pytest.mark.parametrize("schema", list(SCHEMAS))
def test_what_github_reads_is_of_its_form(schema: str) -> None:
    pytest.importorskip("check_jsonschema")
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    done = subprocess.run(
        [*command, *SCHEMAS[schema]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
