"""The examples of the pages on chats and on generation run, and their commands are understood."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli.test_chat import write_folder
from tests.export.quick import quick_export
from tests.exported.depth_modules import (
    AtFirst,
    Everywhere,
    MainWithFirst,
    export_depth,
    export_main,
)
from tests.test_readme import blocks_of, commands_of, complaint
from tests.zoo.codebooks import DIM, First

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "chat.md").read_text(encoding="utf-8")


class FourBooks(First):
    """As large in its ids as MusicGen."""

    sizes = (2048,) * 4

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Embedding(520, DIM)


def write_codes(path: Path) -> None:
    torch.manual_seed(0)
    example = torch.randint(0, 2048, (2, 4, 5))
    axes = [{0: "batch", 2: "seq"}]
    quick_export(FourBooks().eval(), path, example=example, axes=axes, cache=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "printed"), [("chat", "'role': 'assistant'"), ("generation", "PrefixStats(")]
)
def test_python_blocks_run(tmp_path: Path, page: str, printed: str) -> None:
    for needed in ("tokenizers", "llguidance"):
        pytest.importorskip(needed, reason="text needs the extra `text`")
    for folder in ("model", "small"):
        write_folder(tmp_path / folder)
    if page == "generation":
        write_codes(tmp_path / "codes.onnx")
        export_main(MainWithFirst().eval(), tmp_path / "frames.onnx")
        export_depth(AtFirst().eval(), tmp_path / "depth.onnx")
        export_depth(Everywhere().eval(), tmp_path / "beside.onnx")
    script = "\n".join(blocks_of((DOCS / f"{page}.md").read_text(encoding="utf-8"), "python"))
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout


def test_commands_are_understood() -> None:
    commands = commands_of(PAGE)
    assert "causal-onnx chat model/" in commands
    assert [complaint(command) for command in commands if complaint(command)] == []


def test_the_templates_that_it_counts_are_there() -> None:
    templates = Path(__file__).with_name("export") / "chat_templates"
    assert f"Tests compare the two on {len(list(templates.glob('*.jinja')))} templates" in PAGE
