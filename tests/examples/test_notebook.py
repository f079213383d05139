"""The notebook runs from top to bottom, and shows what its text says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the notebook exports")

PATH = Path(__file__).resolve().parents[2] / "examples" / "tour.ipynb"
CELLS: list[dict[str, Any]] = json.loads(PATH.read_text(encoding="utf-8"))["cells"]
MARK = "---- next cell"


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What each code cell prints, in one process, as a kernel runs them."""
    folder = tmp_path_factory.mktemp("notebook")
    cells = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
    program = f"\nprint({MARK!r})\n".join(cells)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == ["decoder.onnx"]
    return [text.strip() for text in done.stdout.split(MARK)]


def test_the_cells_show_what_the_text_says(shown: list[str]) -> None:
    _, report, proof, refusal, run, check = shown
    assert "max_seq_len 32" in report
    assert re.match(r"causal for every length.*\n1 causal \(.*\ncache: \d+ ways", proof)
    assert "masked_fill" in refusal or "softmax" in refusal.lower()
    assert float(run.splitlines()[0]) < 1e-5
    assert check == "True"


def test_the_notebook_is_kept_without_outputs() -> None:
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["id"] for cell in code if cell["outputs"] or cell["execution_count"]] == []


def test_the_links_of_the_notebook_lead_somewhere() -> None:
    text = "".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert [link for link in links if not (PATH.parent / link).exists()] == []
