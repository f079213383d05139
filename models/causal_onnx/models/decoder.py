"""A decoder-only language model: token ids in, logits out."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_onnx.models.block import DecoderBlock
from causal_onnx.models.config import DecoderConfig
from causal_onnx.models.inputs import check_ids, draw_ids
from causal_onnx.models.norm import make_norm
from causal_onnx.models.seeding import seeded

__all__ = ["DecoderLM"]

INIT_STD = 0.02
"""Radford et al. 2019 (GPT-2): standard deviation of the initial matrices."""


class DecoderLM(nn.Module):
    """Embed tokens, run the blocks, and score every token of the vocabulary at each position."""

    def __init__(self, config: DecoderConfig, *, seed: int | None = None) -> None:
        """Build the model with GPT-2's initialisation.

        Args:
            config: Sizes and options.
            seed: The same seed gives the same weights and leaves the caller's random state alone;
                None: drawn from that state, as PyTorch's own modules do.
        """
        super().__init__()
        self.config = config
        with seeded(seed):
            self.token_embedding = nn.Embedding(config.vocab_size, config.embed_dim)
            self.position_embedding = None
            if config.learned_positions and config.max_seq_len is not None:
                self.position_embedding = nn.Embedding(config.max_seq_len, config.embed_dim)
            self.embedding_dropout = nn.Dropout(config.dropout)
            self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
            self.final_norm = make_norm(
                config.norm, config.embed_dim, eps=config.norm_eps, bias=config.norm_bias
            )
            self.head = None
            if not config.tied_head:
                self.head = nn.Linear(config.embed_dim, config.vocab_size, bias=False)
            self._initialise()

    @property
    def max_seq_len(self) -> int | None:
        """The longest sequence accepted; None: no limit."""
        return self.config.max_seq_len

    def forward(self, input_ids: Tensor) -> Tensor:
        """Score the next token at every position.

        Args:
            input_ids: (batch, seq), int64 or int32, in [0, vocab_size).

        Returns:
            Logits (batch, seq, vocab_size), in the dtype of the weights.

        Raises:
            ValueError: `input_ids` has the wrong rank or dtype, is empty, or is longer than
                `max_seq_len`.
        """
        x = self._embed(input_ids)
        for block in self.blocks:
            x = block(x)
        x = self.final_norm(x)
        head = self.token_embedding if self.head is None else self.head
        return functional.linear(x, head.weight)

    def attention_weights(self, input_ids: Tensor) -> Tensor:
        """Compute the attention weights of every layer and head.

        Returns:
            (num_layers, batch, num_heads, seq, seq); each row sums to 1, entries above the diagonal
            are 0. Without dropout on the weights; call it in eval mode for what `forward` uses.

        Raises:
            ValueError: As for `forward`.
        """
        x = self._embed(input_ids)
        layers = []
        for block in self.blocks:
            layers.append(cast(DecoderBlock, block).attention_weights(x))
            x = block(x)
        return torch.stack(layers)

    def example_input(self, batch: int, seq: int) -> Tensor:
        """Draw int64 ids (batch, seq) from the whole vocabulary, the same at every call."""
        return draw_ids(
            batch=batch,
            seq=seq,
            vocab_size=self.config.vocab_size,
            max_seq_len=self.max_seq_len,
            like=self.token_embedding.weight,
        )

    def _embed(self, input_ids: Tensor) -> Tensor:
        check_ids(input_ids, max_seq_len=self.max_seq_len)
        x = self.token_embedding(input_ids)  # (batch, seq, embed_dim)
        if self.position_embedding is not None:
            position = torch.arange(input_ids.shape[1], device=input_ids.device)
            x = x + self.position_embedding(position)
        return self.embedding_dropout(x)  # type: ignore[no-any-return]

    def _initialise(self) -> None:
        """Draw the weights as GPT-2 does.

        Matrices N(0, 0.02), biases 0; the matrices that write into the residual stream are scaled
        by 1 / sqrt(2 num_layers), so that its variance does not grow with the depth.
        """
        residual_std = INIT_STD / math.sqrt(2 * self.config.num_layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                writes_residual = name.endswith(("attention.out_proj", "mlp.down_proj"))
                nn.init.normal_(module.weight, std=residual_std if writes_residual else INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
