"""Write a saved Llama as GGUF, as llama.cpp reads it: `python -m bench.gguf_file MODEL OUT`.

The weights are those of our file. The vocabulary is numbers: benchmarks send token ids.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from bench.command import one_line_errors
from bench.peers import PEERS, install_peers

__all__ = ["TYPES", "main", "write_gguf"]

TYPES = ("f32", "q8_0", "q4_0")

_FILE_TYPES = {"f32": "ALL_F32", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
"""As the file itself says; OpenVINO GenAI reads no file that does not."""

_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_SPECIAL = ("<unk>", "<s>", "</s>")


def write_gguf(folder: Path, path: Path, kind: str) -> None:
    """Write the Llama that transformers saved in `folder` as a GGUF file.

    Args:
        folder: With config.json and weights in safetensors.
        path: Of the new file.
        kind: Of `TYPES`: how matrices are stored. Vectors stay in float32.

    Raises:
        ValueError: The model is no Llama.
        RuntimeError: The gguf package cannot be installed; carries what pip said.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        raise ValueError(f"{folder} holds a {config['model_type']}, expected a llama")
    install_peers()
    sys.path.append(str(PEERS))
    gguf = importlib.import_module("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    _add_sizes(writer, config)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[kind]])
    _add_numbers_as_vocabulary(writer, config["vocab_size"], gguf.TokenType)
    coding = gguf.GGMLQuantizationType[kind.upper()]
    for name, array in _tensors(folder, config):
        if array.ndim > 1 and kind != "f32":
            writer.add_tensor(name, gguf.quants.quantize(array, coding), raw_dtype=coding)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])


def _add_numbers_as_vocabulary(writer: Any, size: int, types: Any) -> None:
    """As pairs of bytes are joined, the only kind that OpenVINO GenAI reads, with one such pair."""
    texts = [*_SPECIAL, "0", "1", "01"]
    texts += [f"t{number}" for number in range(len(texts), size)]
    kinds = [types.UNKNOWN, types.CONTROL, types.CONTROL]
    kinds += [types.NORMAL] * (size - len(kinds))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(texts)
    writer.add_token_types(kinds)
    writer.add_token_merges(["0 1"])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _tensors(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for file in sorted(folder.glob("*.safetensors")):
        for name, array in load_file(file).items():
            layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
            values = array.astype(np.float32)
            if layer is None:
                yield f"{_NAMES[name.removesuffix('.weight')]}.weight", values
                continue
            part = _PARTS[layer[2]]
            if part in heads:
                values = _pairs_side_by_side(values, heads[part])
            yield f"blk.{layer[1]}.{part}.weight", values


def _pairs_side_by_side(array: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Rows in llama.cpp's order: it turns features 2i and 2i + 1 together, not i and i + half."""
    split = array.reshape(heads, 2, len(array) // heads // 2, -1)
    return np.ascontiguousarray(split.swapaxes(1, 2)).reshape(array.shape)


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Write the file; 0 done, 1 it could not be written, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gguf_file", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("model", type=Path, help="folder that transformers saved a Llama in")
    parser.add_argument("out", type=Path, help="the new file")
    parser.add_argument("--type", choices=TYPES, default="q8_0", help="of matrices")
    arguments = parser.parse_args(argv)
    write_gguf(arguments.model, arguments.out, arguments.type)
    print(f"wrote {arguments.out}, {arguments.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
