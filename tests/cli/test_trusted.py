from __future__ import annotations

from pathlib import Path

import pytest

from causal_onnx.cli.main import main
from tests.cli.onnx_file import write_model
from tests.runtime.artifacts import metadata


@pytest.mark.parametrize("command", ["selftest", "report"])
def test_a_refused_file_is_loaded_where_it_is_trusted(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes() + metadata("author", "somebody"))
    assert main([command, str(path)]) == 1
    said = capsys.readouterr().err
    assert "its metadata has the key 'author', which causal-onnx does not write" in said
    assert "--trusted loads it without this check" in said
    assert main([command, str(path), "--trusted"]) == 0


def test_a_bundle_is_never_trusted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-bundle", "folder", "--trusted"]) == 2
    assert "unrecognized arguments: --trusted" in capsys.readouterr().err
