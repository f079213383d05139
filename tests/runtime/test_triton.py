"""What Triton's Python backend runs, with what Triton gives to it played by the test."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from causal_onnx.runtime import load
from causal_onnx.runtime.triton import UTILITIES, write_repository
from tests.runtime.artifacts import fixture


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class TritonError:
    INVALID_ARG = 3

    def __init__(self, message: str, code: int) -> None:
        self.message, self.code = message, code


def answer(output_tensors: object = (), error: object = None) -> SimpleNamespace:
    return SimpleNamespace(outputs=output_tensors, error=error)


def asked(wanted: list[str], **inputs: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(
        inputs=lambda: [Tensor(name, array) for name, array in inputs.items()],
        requested_output_names=lambda: wanted,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "language").mkdir()
    shutil.copy(fixture("language"), tmp_path / "language" / "model.onnx")
    return tmp_path / "language"


@pytest.fixture
def running(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The model as Triton starts it: by the file that was written."""
    utilities = ModuleType(UTILITIES)
    utilities.Tensor, utilities.TritonError = Tensor, TritonError
    utilities.InferenceResponse = answer
    monkeypatch.setitem(sys.modules, UTILITIES, utilities)
    place = write_repository(folder, tmp_path / "repository")
    names: dict[str, type] = {}
    exec((place / "1" / "model.py").read_text(), names)
    model = names["TritonPythonModel"]()
    model.initialize({"model_repository": str(place), "model_version": "1"})
    return model


def test_each_request_has_the_bits_of_a_call(running, folder: Path) -> None:
    given = [np.array([[5, 3]]), np.array([[1]])]
    found = running.execute([asked(["logits"], input_ids=ids) for ids in given])
    model = load(folder)
    for ids, response in zip(given, found, strict=True):
        (tensor,) = response.outputs
        assert np.array_equal(tensor.as_numpy(), model.run(input_ids=ids)["logits"])


def test_a_request_that_does_not_fit_is_an_error_and_others_are_answered(running) -> None:
    wrong, right = running.execute(
        [asked(["logits"], odd=np.array([[1]])), asked(["logits"], input_ids=np.array([[1]]))]
    )
    assert (wrong.error.code, "odd" in wrong.error.message) == (TritonError.INVALID_ARG, True)
    assert right.error is None


def test_the_configuration_says_which_inputs_may_be_left_out(folder: Path, tmp_path: Path) -> None:
    place = write_repository(folder, tmp_path / "repository", name="other")
    lines = (place / "config.pbtxt").read_text().splitlines()
    optional = {line.split('"')[1] for line in lines if "optional: true" in line}
    assert lines[0] == 'backend: "python"'
    assert optional == load(folder).contract.optional_names


def test_packages_are_found_where_they_are_said_to_be(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    packages = tmp_path / "it's here"
    packages.mkdir()
    place = write_repository(folder, tmp_path / "repository", packages=packages)
    exec((place / "1" / "model.py").read_text(), {})
    assert sys.path[0] == str(packages)


def test_a_repository_in_the_model_or_over_another_model_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="must not lie in the model's folder"):
        write_repository(folder, folder / "repository")
    write_repository(folder, tmp_path / "repository")
    with pytest.raises(FileExistsError):
        write_repository(folder, tmp_path / "repository")


def test_a_copy_that_fails_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("causal_onnx.runtime.triton.triton_config", full)
    with pytest.raises(OSError, match="No space left"):
        write_repository(folder, tmp_path / "repository")
    assert list((tmp_path / "repository").iterdir()) == []


def test_bfloat16_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    shutil.copy(fixture("bfloat16"), tmp_path / "model" / "model.onnx")
    with pytest.raises(ValueError, match="has no arrays of bfloat16"):
        write_repository(tmp_path / "model", tmp_path / "repository")
