"""Plain `torch.onnx.export`, both exporters, with named dynamic axes."""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from causal_onnx.export.torch_patches.translator import listed_once, tried_where_they_can_match

__all__ = ["export_dynamo", "export_torchscript", "input_names"]

STEMS = {
    "tokens": "x{}",
    "mask": "attention_mask{}",
    "positions": "position_ids{}",
    "lengths": "lengths{}",
    "past": "past_key_values.{}",
}


def input_names(roles: Sequence[str]) -> list[str]:
    return [STEMS[role].format(i) for i, role in enumerate(roles)]


@contextlib.contextmanager
def _quiet() -> object:
    """The exporters warn and print; what they make is judged, not how.

    Python does not look for cycles meanwhile: among the millions of objects of a trace, that takes
    a fifth of the time.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    gc.disable()
    sink = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.enable()
        logging.disable(before)


def export_dynamo(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    axes: Sequence[Mapping[int, str]],
    path: Path,
    *,
    names: Sequence[str],
    opset: int,
) -> Path:
    """The exporter built on torch.export."""
    dynamic = torch.export.Dim.DYNAMIC
    with _quiet(), tried_where_they_can_match(), listed_once():  # the same graph, sooner
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=tuple(dict.fromkeys(own, dynamic) for own in axes),
            input_names=list(names),
            optimize=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=False)
    return path


def export_torchscript(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    axes: Sequence[Mapping[int, str]],
    path: Path,
    *,
    names: Sequence[str],
    opset: int,
) -> Path:
    """The exporter built on tracing."""
    with _quiet():
        torch.onnx.export(
            module.eval(),
            inputs,
            str(path),
            dynamo=False,
            opset_version=opset,
            input_names=list(names),
            dynamic_axes={name: dict(own) for name, own in zip(names, axes, strict=True)},
        )
    return path
