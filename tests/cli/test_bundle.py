from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from causal_onnx.cli.main import main
from tests.cli.onnx_file import make_golden, write_model


def test_writes_and_checks_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, folder = write_model(tmp_path / "m.onnx"), tmp_path / "bundle"
    assert main(["bundle", str(model), "-o", str(folder)]) == 0
    assert "test_data_set_0: 2 files" in capsys.readouterr().out
    assert main(["verify-bundle", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "as contract.json says" in out
    assert "passed on cpu" in out


@pytest.mark.skipif(sys.platform != "linux", reason="a trial needs Linux")
def test_a_bundle_is_tried_in_a_process_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder = write_model(tmp_path / "m.onnx"), tmp_path / "bundle"
    assert main(["bundle", str(model), "-o", str(folder)]) == 0
    assert main(["verify-bundle", str(folder), "--isolated", "--wall-s", "200"]) == 0
    assert main(["verify-bundle", str(folder), "--isolated", "--memory-bytes", "5000000"]) == 1
    assert "raise the limit: --memory-bytes" in capsys.readouterr().err
    assert main(["verify-bundle", str(folder), "--wall-s", "5"]) == 2
    assert "--wall-s needs --isolated" in capsys.readouterr().err


def test_a_changed_bundle_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, folder = write_model(tmp_path / "m.onnx"), tmp_path / "bundle"
    assert main(["bundle", str(model), "-o", str(folder), "--json"]) == 0
    assert "model.onnx" in json.loads(capsys.readouterr().out)["files"]
    (folder / "extra").write_text("x")
    assert main(["verify-bundle", str(folder), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["findings"]
    assert "extra does not belong to the bundle" in captured.err


def test_the_remedy_is_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, folder = write_model(tmp_path / "m.onnx"), tmp_path / "bundle"
    assert main(["bundle", str(model), "-o", str(folder)]) == 0
    assert main(["bundle", str(model), "-o", str(folder)]) == 1
    assert "--replace" in capsys.readouterr().err
    assert main(["bundle", str(model), "-o", str(folder), "--replace"]) == 0


def test_wrong_goldens_are_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "m.onnx", golden=make_golden(wrong_by=0.01))
    assert main(["bundle", str(model), "-o", str(tmp_path / "bundle")]) == 1
    assert "does not repeat its golden vectors" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
