from __future__ import annotations

import json
from pathlib import Path

import pytest

from causal_onnx.cli.main import main
from causal_onnx.runtime.artifact.golden import GoldenSet
from tests.cli.onnx_file import make_golden, write_model


def test_passes_on_right_goldens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selftest", str(write_model(tmp_path / "m.onnx"))]) == 0
    out = capsys.readouterr().out
    assert "x (2, 5, 3)" in out
    assert "passed on cpu: largest error" in out


def test_fails_on_wrong_goldens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.onnx", golden=make_golden(wrong_by=0.01))
    assert main(["selftest", str(path)]) == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert "failed its self-test on cpu: 1 of 1 golden vectors" in captured.err


def test_json_tells_failure_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.onnx", golden=make_golden(wrong_by=0.01))
    assert main(["selftest", str(path), "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["passed"] is False
    assert said["max_error"] > said["tolerance"]


def test_an_infinite_error_is_null_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "m.onnx", golden=make_golden(wrong_by=float("nan")))
    assert main(["selftest", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["max_error"] is None


def test_no_goldens_to_replay_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "m.onnx", golden=GoldenSet(cases=[], tolerance=1e-5))
    assert main(["selftest", str(path)]) == 1
    assert "carries no golden vectors to replay" in capsys.readouterr().err
