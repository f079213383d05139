from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.cli.main import main
from tests.runtime.artifacts import fixture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sessions are kept on Linux alone")


def run(folder: Path, output: Path) -> int:
    x = folder.parent / "x.npy"
    np.save(x, np.ones((2, 3, 8), np.float32))
    model = str(fixture("one_head"))
    return main(["run", model, str(x), "-o", str(output), "--prepared", str(folder)])


def test_a_command_starts_from_what_the_one_before_prepared(tmp_path: Path) -> None:
    first, second, shelf = tmp_path / "1.npy", tmp_path / "2.npy", tmp_path / "shelf"
    assert [run(shelf, output) for output in (first, second)] == [0, 0]
    assert len(list(shelf.iterdir())) == 1
    assert first.read_bytes() == second.read_bytes()


def test_a_folder_where_others_write_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shelf").mkdir()
    (tmp_path / "shelf").chmod(0o777)
    assert run(tmp_path / "shelf", tmp_path / "y.npy") != 0
    assert "prepared must be a folder in which only this user writes" in capsys.readouterr().err
