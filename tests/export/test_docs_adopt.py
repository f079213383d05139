"""docs/adopt.md: its Python runs, and the command line understands its commands."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

from causal_onnx.cli.parser import build_parser
from tests.runtime.foreign.files import unpack
from tests.test_readme import blocks_of, commands_of

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "adopt.md").read_text(encoding="utf-8")


def test_the_python_of_the_page_runs(tmp_path: Path) -> None:
    unpack("optimum-llama", tmp_path).parent.rename(tmp_path / "their")
    (tmp_path / "page.py").write_text("\n".join(blocks_of(PAGE, "python")), encoding="utf-8")
    command = [sys.executable, "page.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "left (2, 3)\n"


def test_the_commands_of_the_page_are_understood() -> None:
    (command,) = commands_of(PAGE)
    assert build_parser().parse_args(shlex.split(command)[1:]).output == Path("model")
