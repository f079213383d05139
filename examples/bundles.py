"""Export the bundles that the clients run: `python -m examples.bundles [FOLDER]`.

Three models that differ in what a client must do: one head without a cache, a block whose cache
takes features, and a language model over bytes with its tokenizer. The fourth is for the page in
`examples/browser`: the same language model, which gives its attention weights as well.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from causal_onnx.export import export
from causal_onnx.models import (
    AttentionConfig,
    CausalMechanismV1,
    DecoderBlock,
    DecoderConfig,
    DecoderLM,
)
from causal_onnx.runtime import write_bundle
from examples.demo.corpus import load_corpus
from examples.demo.train import train

__all__ = [
    "BLOCK",
    "LANGUAGE_MODEL",
    "MAPS",
    "MECHANISM",
    "PORTABLE",
    "PREFIX",
    "SERVED",
    "TRAIN_STEPS",
    "make_bundles",
]

MECHANISM, BLOCK, LANGUAGE_MODEL = "mechanism", "block", "language_model"
MAPS = "attention_maps"
SERVED = (MECHANISM, BLOCK, LANGUAGE_MODEL)
PREFIX = "portable/"
PORTABLE = tuple(PREFIX + name for name in SERVED)
"""The same in standard operators, for runtimes other than onnxruntime."""

TRAIN_STEPS = 400
"""Half a minute on one core: enough for words."""

CONFIG = DecoderConfig(
    vocab_size=256,
    num_layers=3,
    attention=AttentionConfig(
        embed_dim=96, num_heads=4, num_kv_heads=2, max_seq_len=256, rotary="half"
    ),
    mlp_dim=256,
    activation="swiglu",
    norm="rms",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """What is exported to a bundle, and how."""

    module: nn.Module
    settings: dict[str, Any]


class WithWeights(nn.Module):
    """A decoder that gives its attention weights beside the logits."""

    def __init__(self, decoder: DecoderLM) -> None:
        super().__init__()
        self.decoder = decoder

    @property
    def max_seq_len(self) -> int | None:
        """The decoder's."""
        return self.decoder.max_seq_len

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and weights.

        Args:
            input_ids: (batch, seq).

        Returns:
            (batch, seq, vocab_size) and (num_layers, batch, num_heads, seq, seq).
        """
        return self.decoder(input_ids), self.decoder.attention_weights(input_ids)

    def example_input(self, batch: int, seq: int) -> Tensor:
        """The decoder's."""
        return self.decoder.example_input(batch, seq)


def make_bundles(
    folder: Path, *, train_steps: int, only: Sequence[str] = (), config: DecoderConfig = CONFIG
) -> list[Path]:
    """Export the bundles, in place of older ones. The same arguments make the same bits.

    Args:
        folder: Each bundle is a folder in it.
        train_steps: Of the training of the language model; 0: it keeps random weights.
        only: Names of the bundles to make; none: all.
        config: Of the language model, over bytes; the block is one of its layers.
    """
    wanted = list(only or (*SERVED, MAPS, *PORTABLE))
    decoder = DecoderLM(config, seed=0)
    if train_steps > 0:
        decoder = train(
            load_corpus(),
            config,
            steps=train_steps,
            seed=0,
            update=lambda share, what: None,
        ).model
    bundles = {
        MECHANISM: Bundle(module=CausalMechanismV1(16, 8, 64, seed=0), settings={}),
        BLOCK: Bundle(module=DecoderBlock(config, seed=0), settings={"cache": True}),
        LANGUAGE_MODEL: Bundle(module=decoder, settings={"cache": True}),
        MAPS: Bundle(module=WithWeights(decoder), settings={"target": "portable"}),
    }
    for name in wanted:
        bundle = bundles[name.removeprefix(PREFIX)]
        settings = bundle.settings
        if name in PORTABLE:
            settings = {**settings, "target": "portable"}
        with tempfile.TemporaryDirectory() as place:
            exported = Path(place, "model.onnx")
            export(bundle.module.eval(), exported, **settings)
            if name.endswith((LANGUAGE_MODEL, MAPS)):
                write_tokenizer(exported.parent, config)
            write_bundle(exported, folder / name, replace=True)
    return [folder / name for name in wanted]


def write_tokenizer(folder: Path, config: DecoderConfig) -> None:
    """Write a tokenizer of Hugging Face's layout whose ids are the bytes of UTF-8."""
    characters = byte_characters()
    model = {
        "type": "BPE",
        "vocab": {characters[byte]: byte for byte in range(256)},
        "merges": [],
        "fuse_unk": False,
        "byte_fallback": False,
    }
    bytes_only = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    document: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", **bytes_only},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", **bytes_only},
        "model": model,
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def byte_characters() -> list[str]:
    """The printable character that stands for each byte in GPT-2's vocabularies.

    Printable bytes of Latin-1 stand for themselves, the others for the characters from U+0100 on.
    Source: Radford et al. 2019, https://github.com/openai/gpt-2, encoder.py, `bytes_to_unicode`.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def main() -> None:
    """Make them all."""
    parser = argparse.ArgumentParser(description="Export the bundles that the clients run.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/bundles"))
    parser.add_argument(
        "--train-steps", type=int, default=TRAIN_STEPS, help="of the language model (%(default)s)"
    )
    args = parser.parse_args()
    for path in make_bundles(args.folder, train_steps=args.train_steps):
        print(path)


if __name__ == "__main__":
    main()
