"""The examples of the page on chats run, and its commands are understood."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_chat import write_folder
from tests.test_readme import blocks_of, commands_of, complaint

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "chat.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="text needs the extra `text`")
    write_folder(tmp_path / "model")
    script = "\n".join(blocks_of(PAGE, "python"))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "'role': 'assistant'" in done.stdout


def test_commands_are_understood() -> None:
    commands = commands_of(PAGE)
    assert "causal-onnx chat model/" in commands
    assert [complaint(command) for command in commands if complaint(command)] == []


def test_the_templates_that_it_counts_are_there() -> None:
    templates = Path(__file__).with_name("export") / "chat_templates"
    assert f"Tests compare the two on {len(list(templates.glob('*.jinja')))} templates" in PAGE
