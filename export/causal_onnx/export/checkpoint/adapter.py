"""A PEFT adapter, merged into the model that it was trained on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from causal_onnx.export.checkpoint.huggingface import read_config
from causal_onnx.export.errors import ExportError
from causal_onnx.export.outcome import Refusal, ask, handed_over
from causal_onnx.runtime.artifact.adapter import ADAPTER_CONFIG, is_adapter

__all__ = ["base_of", "merge_adapter"]

_LACKING = "missing adapter keys"
"""What peft warns of where an adapter's file has no weights for a part that it adapts."""


def base_of(adapter: Path) -> Path:
    """The folder of the model that an adapter was trained on.

    Raises:
        ExportError: It names none, or none that is a folder here.
    """
    name = read_config(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    for place in (Path(str(name)), adapter / str(name)):
        if isinstance(name, str) and name and place.is_dir():
            return place
    raise ExportError(
        f"{adapter} is an adapter of {name!r}, which is not a local folder. Pass the folder of "
        f"that model, and the adapter as adapter={str(adapter)!r}"
    )


def merge_adapter(model: nn.Module, adapter: Path) -> nn.Module:
    """Add an adapter's weights to those of its model.

    Args:
        model: As transformers gives it; changed in place.
        adapter: A folder with adapter_config.json and adapter_model.safetensors.

    Raises:
        ExportError: It does not fit the model, or is of a kind that cannot be merged.
        ImportError: peft is not installed.
    """
    if not is_adapter(adapter):
        raise ExportError(f"{adapter} is not a PEFT adapter: it has no {ADAPTER_CONFIG}")
    try:
        import peft  # noqa: PLC0415 - only adapters need it
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise ImportError(
            f"merging the adapter {adapter} needs the package peft: pip install peft", name="peft"
        ) from error
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        answer: Any = ask(
            handed_over, peft.PeftModel.from_pretrained, model, adapter, local_files_only=True
        )
        if isinstance(answer, Refusal):
            raise ExportError(
                f"{adapter} does not fit {type(model).__name__}: {answer}"
            ) from answer.error
        lacking = next((str(w.message) for w in said if _LACKING in str(w.message)), None)
        if lacking is not None:
            raise ExportError(f"{adapter} does not fit {type(model).__name__}: {lacking[:300]}")
        merge = getattr(answer.base_model, "merge_and_unload", None)
        if merge is None:
            kind = read_config(adapter / ADAPTER_CONFIG).get("peft_type")
            raise ExportError(
                f"{adapter} is of type {kind!r}, which adds to the input and not to the weights: "
                "it cannot be merged. LoRA adapters and similar ones can"
            )
        merged: Any = ask(handed_over, merge, safe_merge=True)
    if isinstance(merged, Refusal):
        raise ExportError(f"{adapter} cannot be merged: {merged}") from merged.error
    if not isinstance(merged, nn.Module):
        raise ExportError(f"merging {adapter} returned {type(merged).__name__}, expected a module")
    return merged.eval()
