from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.cli.main import main
from tests.runtime.foreign.files import unpack


@pytest.mark.slow
def test_every_command_takes_an_adopted_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx_ir", reason="adopt needs the extra attest")
    source, folder = unpack("merged-llama", tmp_path).parent, str(tmp_path / "model")
    assert main(["adopt", str(source), "-o", folder]) == 0
    printed = capsys.readouterr().out
    assert (
        "causal for every length with seq + past_seq <= 160; not compared with PyTorch" in printed
    )
    assert "changed: position_ids, use_cache_branch computed in the graph" in printed
    ids = tmp_path / "ids.npy"
    np.save(ids, np.array([[1, 5, 9]]))
    for command in (
        ["run", folder, str(ids), "-o", str(tmp_path / "y.npz")],
        ["generate", folder, "--ids", "1,5,9", "--max-new-tokens", "4"],
        ["inspect", folder],
        ["selftest", folder],
        ["report", folder, "-o", str(tmp_path / "report.html")],
        ["bench", folder, "--lengths", "1,4"],
        ["profile", folder, "--seq", "4"],
        ["verify-bundle", folder],
        ["attest", folder],
    ):
        assert main(command) == 0, (command, capsys.readouterr().err)


def test_commands_take_a_file_of_another_exporter_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(unpack("genai-llama", tmp_path))
    assert main(["inspect", path]) == 0
    assert "contract (derived from the graph" in capsys.readouterr().out
    assert main(["generate", path, "--ids", "1,5,9", "--max-new-tokens", "4", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["ids"]) <= 4
    assert main(["bench", path, "--lengths", "1,4"]) == 0


def test_a_folder_without_a_decoder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx_ir", reason="adopt needs the extra attest")
    assert main(["adopt", str(tmp_path), "-o", str(tmp_path / "model")]) == 1
    assert "has no decoder with a cache: it has no .onnx file" in capsys.readouterr().err
