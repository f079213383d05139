"""The README's examples run, and the commands and files that it names exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from causal_onnx.cli.errors import UsageError
from causal_onnx.cli.parser import build_parser

ROOT = Path(__file__).resolve().parent.parent


BETWEEN = re.compile(r"""(?:&&|;|\|)(?=(?:[^"']|"[^"]*"|'[^']*')*$)""")
"""What stands between two commands; within quotes it stands for itself."""


def blocks_of(text: str, *languages: str) -> list[str]:
    """The fenced blocks of these languages, in order."""
    found = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def commands_of(text: str) -> list[str]:
    """The lines of all shell blocks, continued lines joined, without comments and prompts."""
    commands = []
    for block in blocks_of(text, "sh", "bash", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("$ ")
            commands += [part.strip() for part in BETWEEN.split(command) if part.strip()]
    return commands


def complaint(command: str) -> str | None:
    """What is wrong with a command that the README shows; None if it would be understood."""
    words = shlex.split(command)
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        missing = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"make has no target {', '.join(missing)}" if missing else None
    if words[0] == "causal-onnx":
        try:
            build_parser().parse_args(words[1:])
        except UsageError:
            return f"{command!r} is not understood"
        except SystemExit:  # --help or --version
            return None
    if words[:2] == ["pip", "install"]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        asked = re.findall(r"causal-onnx\[([\w,-]+)\]", command)
        extras = {extra for names in asked for extra in names.split(",")}
        unknown = extras - set(project["optional-dependencies"])
        return f"there is no extra {', '.join(sorted(unknown))}" if unknown else None
    return None


def missing_files(text: str) -> list[str]:
    """Relative links and `folder/file` names in the text that do not exist."""
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    named = re.findall(r"`([\w.-]+/[\w./-]*)`", text)
    # What a command writes is not there before it ran.
    wanted = [name for name in links + named if not name.startswith(("build/", ".venv"))]
    return [name for name in wanted if not (ROOT / name).exists()]


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(readme: str, tmp_path: Path) -> None:
    blocks = blocks_of(readme, "python")
    assert blocks
    # In order, in one process, as a reader would paste them.
    (tmp_path / "readme.py").write_text("\n".join(blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_shell_commands_are_understood(readme: str) -> None:
    commands = commands_of(readme)
    assert {"make demo", "make test"} <= set(commands)
    assert [complaint(command) for command in commands if complaint(command)] == []


def test_links_and_named_files_exist(readme: str) -> None:
    assert missing_files(readme) == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("make coffee", "make has no target coffee"),
        ("causal-onnx run m.onnx --fast -o y.npy", "is not understood"),
        ("causal-onnx brew", "is not understood"),
        ("pip install 'causal-onnx[warp]'", "there is no extra warp"),
    ],
)
def test_a_wrong_command_is_found(command: str, message: str) -> None:
    assert message in (complaint(command) or "")


@pytest.mark.parametrize(
    "command",
    [
        "make test JOBS=4",
        "causal-onnx run m.onnx x.npy -o y.npy",
        "causal-onnx --help",
        "pip install 'causal-onnx[cpu]'",
        "git clone x",
    ],
)
def test_a_right_command_is_left_alone(command: str) -> None:
    assert complaint(command) is None


def test_blocks_commands_and_files_are_found() -> None:
    text = "```python\na\n```\n```sh\nmake setup && make \\\n  test  # both\n```\n"
    text += "`no/such.py` [x](gone)"
    assert blocks_of(text, "python") == ["a\n"]
    assert commands_of(text) == ["make setup", "make    test"]
    assert missing_files(text) == ["gone", "no/such.py"]
