"""Keep a trained decoder in a file, sizes and weights together."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from causal_onnx.models import AttentionConfig, DecoderConfig, DecoderLM

__all__ = ["load_decoder", "save_decoder"]


def save_decoder(model: DecoderLM, path: Path) -> None:
    """Write the config and the weights of `model`."""
    torch.save({"config": asdict(model.config), "weights": model.state_dict()}, path)


def load_decoder(path: Path) -> DecoderLM:
    """Read what `save_decoder` wrote, in eval mode."""
    stored = torch.load(path, weights_only=True)
    config = dict(stored["config"])
    attention = AttentionConfig(**config.pop("attention"))
    model = DecoderLM(DecoderConfig(attention=attention, **config), seed=0)
    model.load_state_dict(stored["weights"])
    return model.eval()
