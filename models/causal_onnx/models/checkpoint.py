"""Load a decoder from a checkpoint: config.json and safetensors files, or what torch.save wrote."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causal_onnx.models.config import DecoderConfig
from causal_onnx.models.convert_config import convert_config
from causal_onnx.models.convert_state_dict import convert_state_dict
from causal_onnx.models.decoder import DecoderLM

__all__ = ["load_checkpoint"]

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"


def load_checkpoint(path: str | PathLike[str], *, config: DecoderConfig | None = None) -> DecoderLM:
    """Load a GPT-2, nanoGPT or Llama-style (Llama, Mistral, Qwen2, Qwen3) checkpoint.

    Args:
        path: A folder with config.json and model.safetensors (or model.safetensors.index.json and
            its shards), one .safetensors file with its config.json beside it, or a file of
            torch.save's: what nanoGPT writes (`ckpt.pt`, with its `model_args`), or weights alone
            with config.json beside them. Such files are pickles: they are read by PyTorch's loader
            for weights, which runs none of what they ask for.
        config: Used instead of config.json, or `model_args`.

    Returns:
        The model in eval mode, on the CPU, in float32 whatever the precision of the file. Its
        dropout is 0 unless `config` says otherwise.

    Raises:
        FileNotFoundError: A file is missing; the message names it.
        ValueError: A file is damaged or holds more than weights, or the configuration or the
            weights are not of a model that `DecoderLM` computes.
        ModuleNotFoundError: safetensors is not installed.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    arguments = None
    if path.suffix in PICKLE_SUFFIXES and not path.is_dir():
        state, arguments = _read_torch(path)
    else:
        state = _read_weights(path)
    if config is None and arguments is not None:
        config = _convert(arguments, f"model_args in {path}")
    elif config is None:
        config = _read_config(folder / CONFIG)
    weights = convert_state_dict(state, config)
    # No memory and no time for weights that are replaced at once.
    with torch.device("meta"):
        model = DecoderLM(config)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _read_config(path: Path) -> DecoderConfig:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: put it beside the weights, or give config")
    return _convert(_read_json(path), str(path))


def _convert(data: Mapping[str, Any], where: str) -> DecoderConfig:
    try:
        return convert_config(data)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _read_torch(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any] | None]:
    """Weights that torch.save wrote, and the model's arguments where nanoGPT put them beside."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged, or holds more than weights and plain settings, which is not read: "
            "loading it could run any code. Save its weights by safetensors.torch.save_file, with "
            "config.json beside them"
        ) from error
    arguments = found.get("model_args") if isinstance(found, dict) else None
    state = found["model"] if isinstance(found, dict) and "model" in found else found
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise ValueError(
            f"{path} holds {type(found).__name__}, expected weights by name, or nanoGPT's dict "
            "with 'model' and 'model_args'"
        )
    return state, arguments if isinstance(arguments, Mapping) else None


def _read_weights(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        if (path / INDEX).is_file():
            return _read_shards(path / INDEX)
        if (path / WEIGHTS).is_file():
            return _read_safetensors(path / WEIGHTS)
        pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLE_SUFFIXES)
        hint = (
            f"; give the file, {path / pickles[0]}"
            if pickles
            else "; expected a checkpoint: config.json with the weights beside it"
        )
        raise FileNotFoundError(f"{path} holds neither {WEIGHTS} nor {INDEX}{hint}")
    if path.name.endswith(".safetensors.index.json"):
        return _read_shards(path)
    return _read_safetensors(path)


def _read_shards(index: Path) -> dict[str, Tensor]:
    places = _read_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not places:
        raise ValueError(f"{index} has no weight_map")
    state: dict[str, Tensor] = {}
    for shard in sorted({str(place) for place in places.values()}):
        # A path could leave the folder; an index names files beside itself.
        if Path(shard).name != shard:
            raise ValueError(f"{index} names {shard!r}; expected a file name without a folder")
        content = _read_safetensors(index.parent / shard)
        lacking = [name for name, place in places.items() if place == shard and name not in content]
        if lacking:
            raise ValueError(f"{index.parent / shard} lacks {lacking[0]}, which {index.name} names")
        state.update(content)
    return state


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix != ".safetensors":
        raise ValueError(f"expected a folder, a .safetensors file or a .pt file, got {path}")
    try:
        from safetensors import SafetensorError  # noqa: PLC0415 - only checkpoints need it
        from safetensors.torch import load_file  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "reading checkpoints needs safetensors: pip install 'causal-onnx[export]'",
            name="safetensors",
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(data).__name__}")
    return data
