"""Every command that takes a model takes its folder too."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.cli.main import main
from causal_onnx.runtime import write_bundle
from tests.cli.onnx_file import random_input, write_model
from tests.runtime.artifacts import fixture

COMMANDS = {
    "run": ["{x}", "-o", "{tmp}/y.npy"],
    "inspect": [],
    "selftest": [],
    "report": ["-o", "{tmp}/report.html"],
    "bench": ["--lengths", "2"],
    "profile": ["--seq", "2"],
    "bundle": ["-o", "{tmp}/again"],
    "verify-bundle": [],
    "attest": [],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_the_folder(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "attest":
        pytest.importorskip("onnx_ir", reason="attest needs the extra `attest`")
    write_bundle(write_model(tmp_path / "m.onnx"), tmp_path / "model")
    np.save(tmp_path / "x.npy", random_input())
    places = {"x": tmp_path / "x.npy", "tmp": tmp_path}
    arguments = [text.format(**places) for text in COMMANDS[command]]
    assert main([command, str(tmp_path / "model"), *arguments]) == 0, capsys.readouterr().err


def test_generate_takes_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(fixture("language"), tmp_path / "model.onnx")
    arguments = ["--ids", "5,3", "--max-new-tokens", "4"]
    outputs = []
    for model in (tmp_path, fixture("language")):
        assert main(["generate", str(model), "--draft", str(model), *arguments]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("command", ["run", "inspect", "bench", "bundle", "attest"])
def test_a_folder_without_a_model_is_an_error_of_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "attest":
        pytest.importorskip("onnx_ir", reason="attest needs the extra `attest`")
    arguments = ["-o", str(tmp_path / "y.npy")] if command in ("run", "bundle") else []
    assert main([command, str(tmp_path), *arguments]) in (1, 3)
    said = capsys.readouterr().err
    assert "is a folder without model.onnx; expected a folder that causal-onnx wrote" in said


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["decoder_model.onnx", "decoder_model_merged.onnx"], "decoder_model_merged.onnx"),
        (["decoder_model.onnx", "decoder_with_past_model.onnx"], "decoder_with_past_model.onnx"),
        (["onnx/model.onnx", "onnx/model_fp16.onnx"], "onnx/model.onnx"),
        (["a.onnx", "b.onnx"], "a.onnx"),
    ],
)
def test_a_folder_of_another_exporter_is_answered_with_the_file_that_continues(
    names: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "config.json").write_text("{}")
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert main(["inspect", str(tmp_path)]) == 1
    assert f"name the file, such as {tmp_path / named}\n" in capsys.readouterr().err
