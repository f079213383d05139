"""Export a trained language model a second time, so that it returns its attention weights.

The file that generates has fused attention and a cache, and writes no weights down. This one has
neither: the server's page draws its maps beside what the other one writes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from causal_onnx.export import export
from causal_onnx.runtime import write_bundle
from examples.demo.road import CHECKPOINT

__all__ = ["WithMaps", "export_maps"]


class WithMaps(nn.Module):
    """A language model of Hugging Face's layout that returns its attention weights, too."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def max_seq_len(self) -> int:
        """The model's."""
        return int(self.model.config.max_position_embeddings)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and weights.

        Args:
            input_ids: (batch, seq).

        Returns:
            (batch, seq, vocab_size) and (layers, batch, heads, seq, seq).
        """
        found = self.model(input_ids=input_ids, use_cache=False, output_attentions=True)
        return found.logits, torch.stack(found.attentions)

    def example_input(self, batch: int, seq: int) -> Tensor:
        """Ids in order, so that rows and positions differ."""
        vocab = int(self.model.config.vocab_size)
        return torch.arange(batch * seq).reshape(batch, seq) % vocab


def export_maps(folder: Path, checkpoint: Path = CHECKPOINT) -> Path:
    """Write the folder of such a model, in place of an older one, with the tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, attn_implementation="eager", dtype=torch.float32
    )
    with TemporaryDirectory() as place:
        exported = Path(place, "model.onnx")
        export(WithMaps(model).eval(), exported)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(checkpoint / name, place)
        write_bundle(exported, folder, replace=True)
    return folder
