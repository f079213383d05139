"""A model in NVIDIA's Triton, by its Python backend: the same checks and the same bits as `load`.

    from causal_onnx.runtime.triton import write_repository

    write_repository("model/", "repository/")

    tritonserver --model-repository repository/

Where Triton runs, this package, numpy and onnxruntime must be installed for its Python, which does
not look at PYTHONPATH; or in a folder that `write_repository` is told of.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from causal_onnx.runtime.artifact.drafts import draft_folder
from causal_onnx.runtime.bundle.triton_config import triton_config
from causal_onnx.runtime.errors import CausalOnnxError
from causal_onnx.runtime.model import load

__all__ = ["TritonPythonModel", "write_repository"]

FOLDER = "model"
"""In the folder of a version: the model, as it was given."""

CODE = '''\
"""What Triton's Python backend runs; written by causal-onnx."""

{path}from causal_onnx.runtime.triton import TritonPythonModel  # noqa: F401
'''

PATH = """\
import site
import sys

before = list(sys.path)
site.addsitedir({folder!r})
sys.path[:] = [*(place for place in sys.path if place not in before), *before]

"""

UTILITIES = "triton_python_backend_utils"
"""The module that Triton gives to what it runs."""


def write_repository(
    model: str | os.PathLike[str],
    repository: str | os.PathLike[str],
    *,
    name: str | None = None,
    packages: str | os.PathLike[str] | None = None,
) -> Path:
    """Copy a model's folder into a repository of Triton's, as version 1.

    Args:
        model: A folder that an export or `write_bundle` wrote.
        repository: It is made where there is none.
        name: What clients call the model; None: the folder's name.
        packages: Where Triton runs, the `site-packages` of an environment with this package; None:
            Triton's own Python has it.

    Returns:
        The model's folder in the repository.

    Raises:
        FileExistsError: A model of that name is there already.
        ArtifactError: The model cannot be loaded.
        ValueError: It has tensors of bfloat16, which Triton's Python backend does not hand over,
            or the repository lies in the model's folder.
    """
    source = Path(model)
    contract = load(source).contract
    wide = [item.name for item in contract.inputs + contract.outputs if item.dtype == "bfloat16"]
    if wide:
        raise ValueError(
            f"Triton's Python backend has no arrays of bfloat16, and {wide[0]} is one: export with "
            "float32 inputs and outputs, or use config.pbtxt with the onnxruntime backend"
        )
    target = Path(repository) / (source.resolve().name if name is None else name)
    if target.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"the repository {repository} must not lie in the model's folder {source}")
    if target.exists():
        raise FileExistsError(f"{target} is there already; remove it, or give another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    path = "" if packages is None else PATH.format(folder=os.fspath(packages))
    with draft_folder(target) as folder:
        whole = folder / target.name
        version = whole / "1"
        shutil.copytree(source, version / FOLDER)
        (version / "model.py").write_text(CODE.format(path=path), encoding="utf-8")
        (whole / "config.pbtxt").write_bytes(triton_config(contract, backend="python"))
        whole.replace(target)
    return target


class TritonPythonModel:
    """What Triton's Python backend calls; one an instance of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model.

        Args:
            args: As Triton says: among others `model_repository`, the model's folder there, and
                `model_version`.
        """
        self._utilities: Any = importlib.import_module(UTILITIES)
        folder = Path(args["model_repository"]) / args["model_version"] / FOLDER
        self._model = load(folder, cast=True)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request by itself, so that no other one changes its bits."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        utilities = self._utilities
        inputs = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        try:
            outputs = self._model.run(**inputs)
        except (ValueError, CausalOnnxError) as error:
            kind = utilities.TritonError
            return utilities.InferenceResponse(error=kind(str(error), kind.INVALID_ARG))
        wanted = set(request.requested_output_names())
        tensors = [
            utilities.Tensor(name, np.ascontiguousarray(array))
            for name, array in outputs.items()
            if name in wanted
        ]
        return utilities.InferenceResponse(output_tensors=tensors)
