"""What a real shell completes with the printed script."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from causal_onnx.cli.main import main
from causal_onnx.cli.parser import COMMANDS

pytest.importorskip("shtab", reason="the extra `completion` is not installed")

ASK = """
source "$1"
COMP_WORDS=({words}) COMP_CWORD={last}
_shtab_causal_onnx
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    quoted = " ".join(f"'{word}'" for word in words)
    ask = ASK.format(words=quoted, last=len(words) - 1)
    done = subprocess.run(
        ["bash", "-c", ask, "bash", str(script)],
        capture_output=True,
        text=True,
        check=True,
        cwd=script.parent,
    )
    return done.stdout.split()


@pytest.fixture
def script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    assert main(["completion", "bash"]) == 0
    path = tmp_path / "causal-onnx"
    path.write_text(capsys.readouterr().out)
    return path


def test_commands_are_completed(script: Path) -> None:
    names = {one.__name__.rpartition(".")[2].replace("_", "-") for one in COMMANDS}
    assert names <= set(completed(script, "causal-onnx", ""))
    assert completed(script, "causal-onnx", "ins") == ["inspect"]


def test_options_of_a_command_are_completed(script: Path) -> None:
    assert completed(script, "causal-onnx", "attest", "--stri") == ["--strict"]


def test_files_are_completed(script: Path) -> None:
    (script.parent / "mine.onnx").touch()
    assert completed(script, "causal-onnx", "inspect", "mi") == ["mine.onnx"]


def test_another_shell_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    assert "invalid choice: 'fish' (choose from bash, zsh)" in capsys.readouterr().err
