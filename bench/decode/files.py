"""Make the two graphs of one model: `python -m bench.decode.files FOLDER SIZES`.

Runs in a process of its own, so that the driver never holds PyTorch. The builder lies in a folder
of its own, `build/peers`, made from bench/requirements.txt.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from bench.client import worker_environment
from bench.decode.cases import ModelSizes
from bench.peers import PEERS, install_peers, run_quietly

__all__ = ["BUILT", "OURS", "make_files", "save_model"]

OURS = "ours.onnx"
BUILT = "built/model.onnx"


def make_files(folder: Path, sizes: ModelSizes) -> None:
    """Save the model, export it, and have the builder build it.

    Raises:
        RuntimeError: One of them failed; carries what it said last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    install_peers()
    text = json.dumps(asdict(sizes))
    run_quietly(
        [sys.executable, "-m", "bench.decode.files", str(folder), text], worker_environment(1)
    )
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(folder / "model"), "-o", str((folder / BUILT).parent)]
    command += ["-p", "fp32", "-e", "cpu", "-c", str(folder / "cache")]
    run_quietly(command, {**worker_environment(1), "PYTHONPATH": str(PEERS), "HF_HUB_OFFLINE": "1"})


def save_model(folder: Path, sizes: ModelSizes) -> None:
    """Write a Llama with random weights, and a tokenizer of single characters for the builder."""
    import torch  # noqa: PLC0415 - not in the driver
    import transformers  # noqa: PLC0415
    from tokenizers import Tokenizer, models  # noqa: PLC0415

    torch.manual_seed(sizes.seed)
    config = transformers.LlamaConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.embed_dim,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_kv_heads,
        intermediate_size=sizes.mlp_dim,
        max_position_embeddings=sizes.max_seq_len,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    vocabulary = {"<s>": 0, "</s>": 1, **{chr(i): i for i in range(32, 127)}}
    tokenizer = transformers.PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="</s>")),
        bos_token="<s>",
        eos_token="</s>",
    )
    tokenizer.save_pretrained(folder)


def main(folder_text: str, sizes_text: str) -> None:
    """Save the model and export it."""
    import transformers  # noqa: PLC0415 - not in the driver

    from causal_onnx.export import export  # noqa: PLC0415

    folder, sizes = Path(folder_text), ModelSizes(**json.loads(sizes_text))
    save_model(folder / "model", sizes)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    export(model, folder / OURS, cache=True, target="ort", max_seq_len=sizes.max_seq_len)


if __name__ == "__main__":
    main(*sys.argv[1:])
