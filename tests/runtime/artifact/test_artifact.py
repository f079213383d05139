from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from causal_onnx.runtime import ArtifactError, read_artifact
from causal_onnx.runtime.contract import CERTIFICATE_KEY, CONTRACT_KEY, GOLDEN_KEY, SOURCE_KEY
from tests.runtime.artifacts import fixture, metadata


@pytest.mark.parametrize("as_bytes", [False, True], ids=["path", "bytes"])
def test_every_part_of_the_metadata_is_given(as_bytes: bool) -> None:
    path = fixture("one_head")
    artifact = read_artifact(path.read_bytes() if as_bytes else str(path))
    assert artifact.contract is not None
    assert artifact.contract.max_seq_len == 16
    assert artifact.source["class"] == "OneHead"
    assert artifact.certificate == {"verdict": "causal"}
    assert artifact.golden is not None
    assert len(artifact.golden.cases) == 3


def test_a_file_of_another_exporter_has_no_parts() -> None:
    artifact = read_artifact(fixture("foreign"))
    assert artifact.contract is None
    assert artifact.source == {}
    assert artifact.certificate is None
    assert artifact.golden is None


@pytest.mark.parametrize(
    ("key", "part"),
    [
        (CONTRACT_KEY, "contract"),
        (SOURCE_KEY, "source"),
        (CERTIFICATE_KEY, "certificate"),
        (GOLDEN_KEY, "golden"),
    ],
)
@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not JSON"), ('{"format": 2}', "of format 2, .* reads up to 1"), ("[]", "no format")],
)
def test_a_damaged_or_newer_part_is_refused_with_the_file_named(
    tmp_path: Path, key: str, part: str, text: str, message: str
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(fixture("foreign").read_bytes() + metadata(key, text))
    artifact = read_artifact(path)
    with pytest.raises(ArtifactError, match=rf"m\.onnx: .*{message}"):
        getattr(artifact, part)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nothing\.onnx"):
        read_artifact(tmp_path / "nothing.onnx")


def test_a_folder_stands_for_the_model_in_it(tmp_path: Path) -> None:
    shutil.copy(fixture("one_head"), tmp_path / "model.onnx")
    assert read_artifact(tmp_path).location == tmp_path / "model.onnx"


@pytest.mark.parametrize(
    ("holds", "message"),
    [
        (None, r"without model\.onnx; expected a folder that causal-onnx wrote, or an \.onnx file"),
        ("other.onnx", r"name the file, such as .*other\.onnx"),
        ("config.json", r"looks like a checkpoint. Export it first: causal-onnx export .* -o"),
    ],
)
def test_a_folder_without_a_model_is_refused(
    holds: str | None, message: str, tmp_path: Path
) -> None:
    if holds is not None:
        (tmp_path / holds).write_text("{}")
    with pytest.raises(ArtifactError, match=message):
        read_artifact(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ArtifactError, match="not a regular file"):
        read_artifact(tmp_path / "pipe.onnx")


def test_something_that_is_no_path_is_refused() -> None:
    with pytest.raises(TypeError, match="path must be a path or bytes, got int"):
        read_artifact(3)  # type: ignore[arg-type]
