"""Read a LoRA adapter: a folder that PEFT wrote, or a file of matrices by name."""

from __future__ import annotations

import math
import os
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.json_text import read_json

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["ADAPTER_CONFIG", "LowRank", "is_adapter", "read_adapter"]

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MOST_HEADER = 100_000_000
"""Bytes; as safetensors' own reader has it."""

_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}

_READ = ("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
_WITHOUT_EFFECT = (
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "target_modules", "exclude_modules", "lora_dropout", "fan_in_fan_out"),
    *("layers_to_transform", "layers_pattern", "megatron_core", "runtime_config", "eva_config"),
    *("qalora_group_size", "ensure_weight_tying", "init_lora_weights"),
)
"""Where the weights are, and how they were trained, shows in the weights."""
_INITIAL = (True, False, None, "gaussian", "eva")
"""Ways to begin training that leave the weights of the model as they are."""
_REMEDY = (
    "merge it into a file of its own: causal-onnx export MODEL --adapter ADAPTER (which needs peft)"
)


@dataclass(frozen=True, slots=True)
class LowRank:
    """What is added to a layer's weight: up @ down."""

    down: Array
    """(rank, features in), float32."""
    up: Array
    """(features out, rank), float32, with the adapter's scale in it."""


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Whether this is the folder of a PEFT adapter."""
    return (Path(path) / ADAPTER_CONFIG).is_file()


def read_adapter(path: str | os.PathLike[str]) -> dict[str, LowRank]:
    """The layers that an adapter changes, by their names in the model.

    Args:
        path: A folder with adapter_config.json and adapter_model.safetensors, as PEFT writes it; or
            an .npz or .safetensors file with two arrays for each layer, `<layer>.lora_A` (rank,
            features in) and `<layer>.lora_B` (features out, rank), the scale in the latter.

    Raises:
        FileNotFoundError: There is no such file.
        ArtifactError: It is damaged, or of a kind that is not two matrices for each layer.
    """
    place = Path(path)
    if place.is_dir():
        return _read_folder(place)
    if place.suffix == ".npz":
        return _paired(_read_npz(place), place, lambda layer: 1.0)
    if place.suffix == ".safetensors":
        return _paired(_read_safetensors(place), place, lambda layer: 1.0)
    if not place.exists():
        raise FileNotFoundError(f"there is no adapter {place}")
    raise ArtifactError(
        f"{place} is no adapter: expected the folder of a PEFT adapter, or an .npz or .safetensors "
        "file"
    )


def _read_folder(folder: Path) -> dict[str, LowRank]:
    config = folder / ADAPTER_CONFIG
    if not config.is_file():
        raise ArtifactError(f"{folder} is not a PEFT adapter: it has no {ADAPTER_CONFIG}")
    try:
        settings = read_json(config.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{config} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ArtifactError(f"{config} holds no JSON object")
    _refuse_other_kinds(settings, folder)
    if not (folder / WEIGHTS).is_file():
        raise ArtifactError(
            f"{folder} has no {WEIGHTS}; where it has adapter_model.bin, load it with peft and "
            "save it with save_pretrained(folder)"
        )
    tensors: dict[str, Array] = {}
    for key, value in _read_safetensors(folder / WEIGHTS).items():
        found = re.fullmatch(r"base_model\.model\.(.+\.lora_[AB])\.weight", key)
        if found is None:
            raise ArtifactError(
                f"{folder / WEIGHTS} holds {key!r}, which is neither lora_A nor lora_B of a linear "
                f"layer; {_REMEDY}"
            )
        tensors[found[1]] = value
    scale = _Scale(settings, folder)
    layers = _paired(tensors, folder, scale)
    for name, layer in layers.items():
        scale.check_rank(name, len(layer.down))
    return layers


def _refuse_other_kinds(settings: Mapping[str, Any], folder: Path) -> None:
    """Check that the adapter is two matrices for each layer, and nothing else.

    Raises:
        ArtifactError: It is not.
    """
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise ArtifactError(f"{folder} is an adapter of type {kind!r}, expected 'LORA'; {_REMEDY}")
    begun = settings.get("init_lora_weights")
    if begun not in _INITIAL:
        raise ArtifactError(
            f"{folder} has init_lora_weights {begun!r}, which changes the model's own weights too; "
            f"{_REMEDY}"
        )
    for key, value in settings.items():
        if key in _READ or key in _WITHOUT_EFFECT or not value or (key, value) == ("bias", "none"):
            continue
        raise ArtifactError(
            f"{folder} has {key} {value!r}, which is more than two matrices for each layer; "
            f"{_REMEDY}"
        )


class _Scale:
    """What the product of a layer's matrices is multiplied by."""

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        self._folder = folder
        self._rank = self._number("r", settings.get("r"))
        self._alpha = self._number("lora_alpha", settings.get("lora_alpha"))
        self._ranks = self._pattern("rank_pattern", settings)
        self._alphas = self._pattern("alpha_pattern", settings)
        self._by_root = settings.get("use_rslora") is True

    def __call__(self, layer: str) -> float:
        rank = self._of(layer, self._ranks, self._rank)
        return self._of(layer, self._alphas, self._alpha) / (
            math.sqrt(rank) if self._by_root else rank
        )

    def check_rank(self, layer: str, rank: int) -> None:
        """Check that the weights have the rank that the settings state."""
        stated = self._of(layer, self._ranks, self._rank)
        if rank != stated:
            raise ArtifactError(
                f"{self._folder}: {layer} has rank {rank}, and {ADAPTER_CONFIG} says {stated:g}"
            )

    def _number(self, name: str, value: Any) -> float:
        if (
            type(value) not in (int, float)
            or not math.isfinite(value)
            or (name == "r" and value < 1)
        ):
            raise ArtifactError(f"{self._folder}: {name} must be a number, got {value!r}")
        return float(value)

    def _pattern(self, name: str, settings: Mapping[str, Any]) -> dict[re.Pattern[str], float]:
        given = settings.get(name) or {}
        if not isinstance(given, dict):
            raise ArtifactError(f"{self._folder}: {name} must be an object, got {given!r}")
        kind = "r" if name == "rank_pattern" else "lora_alpha"
        try:
            return {
                re.compile(rf"(.*\.)?({key})"): self._number(kind, value)
                for key, value in given.items()
            }
        except re.error as error:
            raise ArtifactError(f"{self._folder}: {name} is no pattern: {error}") from error

    def _of(self, layer: str, patterns: Mapping[re.Pattern[str], float], usual: float) -> float:
        found = (value for pattern, value in patterns.items() if pattern.fullmatch(layer))
        return next(found, usual)


def _paired(tensors: Mapping[str, Array], place: Path, scale: Any) -> dict[str, LowRank]:
    """Each layer's two matrices, checked against each other."""
    found: dict[str, LowRank] = {}
    for name in tensors:
        layer, _, kind = name.rpartition(".")
        if kind not in ("lora_A", "lora_B") or not layer:
            raise ArtifactError(
                f"{place} holds {name!r}, expected names that end in .lora_A and .lora_B; an "
                "adapter of PEFT is loaded by its folder"
            )
        if layer in found:
            continue
        down, up = tensors.get(f"{layer}.lora_A"), tensors.get(f"{layer}.lora_B")
        if down is None or up is None:
            raise ArtifactError(
                f"{place} has no {'lora_A' if down is None else 'lora_B'} of {layer}"
            )
        if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or not len(down):
            raise ArtifactError(
                f"{place}: {layer} has lora_A {down.shape} and lora_B {up.shape}, expected (rank, "
                f"features in) and (features out, rank); {_REMEDY}"
            )
        with np.errstate(over="ignore", invalid="ignore"):
            whole = LowRank(
                np.asarray(down, np.float32), np.asarray(np.float64(scale(layer)) * up, np.float32)
            )
        if not (np.isfinite(whole.down).all() and np.isfinite(whole.up).all()):
            raise ArtifactError(f"{place}: {layer} holds NaN, infinity, or more than fp32 holds")
        found[layer] = whole
    if not found:
        raise ArtifactError(f"{place} holds no matrices")
    return found


def _read_npz(place: Path) -> dict[str, Array]:
    try:
        with np.load(place, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile, KeyError, EOFError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ArtifactError(f"{place} is not an .npz file: {error}") from error
    for name, value in arrays.items():
        if value.dtype.kind != "f":
            raise ArtifactError(f"{place}: {name} is {value.dtype}, expected floating point")
    return arrays


def _read_safetensors(place: Path) -> dict[str, Array]:
    """The tensors of a safetensors file; bfloat16 as float32.

    Source: https://github.com/huggingface/safetensors, "Format".
    """
    content = place.read_bytes()
    try:
        (length,) = struct.unpack_from("<Q", content)
        if length > min(len(content) - 8, MOST_HEADER):
            raise ValueError(f"its header has {length} bytes, the file {len(content)}")
        header = read_json(content[8 : 8 + length].decode())
        if not isinstance(header, dict):
            raise ValueError("its header is no JSON object")
        data = memoryview(content)[8 + length :]
        return {
            name: _tensor(item, data) for name, item in header.items() if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, struct.error) as error:
        raise ArtifactError(f"{place} is not a safetensors file: {error}") from error


def _tensor(item: Any, data: memoryview) -> Array:
    dtype, shape, (start, end) = item["dtype"], item["shape"], item["data_offsets"]
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r}, expected one of {', '.join(_DTYPES)}")
    numbers = (start, end, *shape)
    if not all(type(n) is int and n >= 0 for n in numbers) or end > len(data):
        raise ValueError(f"shape {shape} at bytes {start} to {end} of {len(data)}")
    if math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize != end - start:
        raise ValueError(f"shape {shape} of {dtype} in {end - start} bytes")
    values = np.frombuffer(data[start:end], _DTYPES[dtype]).reshape(shape)
    if dtype != "BF16":
        return values
    widened: Array = (values.astype(np.uint32) << 16).view(np.float32)
    return widened
