"""How an encoder with a decoder is called: what `export` is to be told of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from causal_onnx.export.source.inputs import Input

__all__ = ["SPEECH", "ExampleCall", "example_call"]

SPEECH = "whisper"
"""The one kind of model that reads features of sound."""

_ROWS, _SOURCE, _SEQ = 3, 5, 7
_FIRST_ID = 3
"""Lower ids often begin, end or fill a text, and some models look for those in their inputs."""


@dataclass(frozen=True, kw_only=True)
class ExampleCall:
    """The arguments of `export` that say what a module takes."""

    example: Mapping[str, Tensor]
    axes: list[Mapping[int, str]]
    inputs: Mapping[str, Input]


def example_call(model: nn.Module) -> ExampleCall | None:
    """A call with a source and the beginning of what is written; None: the model has no encoder.

    A source text has a mask, so that sources of different lengths can share a call. The features of
    sound that Whisper reads are always of 30 seconds, as its configuration says.
    """
    config: Any = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return None
    vocab = config.get_text_config(decoder=True).vocab_size
    written = torch.arange(_ROWS * _SEQ).reshape(_ROWS, _SEQ) % max(vocab - _FIRST_ID, 1)
    decoder = {"decoder_input_ids": (written + min(_FIRST_ID, vocab - 1)).to(torch.int64)}
    seq: Mapping[int, str] = {0: "batch", 1: "seq"}
    if config.model_type == SPEECH:
        generator = torch.Generator().manual_seed(0)
        encoder: Any = model.get_submodule("model.encoder")
        frames = config.max_source_positions * encoder.conv1.stride[0] * encoder.conv2.stride[0]
        shape = (_ROWS, config.num_mel_bins, frames)
        features = torch.randn(shape, generator=generator)
        return ExampleCall(
            example={"input_features": features, **decoder}, axes=[{0: "batch"}, seq], inputs={}
        )
    source = decoder["decoder_input_ids"][:, :_SOURCE].flip(0)
    text: Mapping[int, str] = {0: "batch", 1: "source"}
    return ExampleCall(
        example={"input_ids": source, "attention_mask": torch.ones_like(source), **decoder},
        axes=[text, text, seq],
        inputs={"attention_mask": Input(kind="keep_mask")},
    )
