"""Large models have their weights beside them in a model's folder, and compute the same."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import load, verify_bundle, write_bundle
from causal_onnx.runtime.bundle import weights, write
from tests.runtime.artifacts import fixture

X = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
PAGE = 64
"""Bytes; the weights of a fixture are smaller than a page of the system."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One model that counts as large, as do its tensors."""
    monkeypatch.setattr(write, "BESIDE_FROM_BYTES", 1)
    monkeypatch.setattr(weights, "LEAST_BYTES", PAGE)
    write_bundle(fixture("one_head"), tmp_path / "model")
    return tmp_path / "model"


def data_of(folder: Path) -> Path:
    (data,) = folder.glob("model.onnx.*.data")
    return data


def offsets_in(folder: Path) -> list[int]:
    """Where the tensors begin that lie beside the model."""
    content = (folder / "model.onnx").read_bytes()
    return [int(found) for found in re.findall(rb"\x0a\x06offset\x12.(\d+)", content)]


def test_a_large_model_has_its_weights_beside_it_and_passes(folder: Path) -> None:
    assert data_of(folder).stat().st_size == 3 * 4 * 8 * 8  # q, k, v
    assert len(offsets_in(folder)) == 3
    assert verify_bundle(folder).passed


def test_it_computes_the_same_bits(folder: Path) -> None:
    assert load(folder)(X).tobytes() == load(fixture("one_head"))(X).tobytes()


def test_its_weights_are_mapped_from_their_pages(folder: Path) -> None:
    offsets = offsets_in(folder)
    assert offsets == sorted(set(offsets))
    assert not any(offset % PAGE for offset in offsets)


def test_weights_that_were_changed_are_found(folder: Path) -> None:
    content = bytearray(data_of(folder).read_bytes())
    content[100] ^= 1
    data_of(folder).write_bytes(content)
    report = verify_bundle(folder)
    assert f"{data_of(folder).name} was changed" in report.findings[0]


def test_a_folder_of_a_folder_keeps_both_files(folder: Path, tmp_path: Path) -> None:
    write_bundle(folder, tmp_path / "again")
    for file in (folder / "model.onnx", data_of(folder)):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_the_same_model_is_written_as_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    weights.write_beside(fixture("one_head"), tmp_path)
    for file in (folder / "model.onnx", data_of(folder)):
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    write_bundle(fixture("one_head"), tmp_path / "model")
    assert (tmp_path / "model" / "model.onnx").read_bytes() == fixture("one_head").read_bytes()
