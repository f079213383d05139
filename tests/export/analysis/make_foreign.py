"""Write the graphs in fixtures/, as other exporters make them of tiny Hugging Face models.

    pip install onnxruntime-genai==0.18.0; python -m tests.export.analysis.make_foreign genai
    pip install optimum-onnx==0.1.0;       python -m tests.export.analysis.make_foreign optimum

Each in an environment of its own: optimum-onnx 0.1.0 wants transformers below 4.58.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"

SIZES = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 16,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GENAI = (("llama", "fp32"), ("llama", "int4"), ("gemma2", "fp32"))
OPTIMUM = ("mistral",)


def save_model(kind: str, folder: str) -> None:
    """A tiny model with random weights, and a tokenizer of its vocabulary."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models

    torch.manual_seed(0)
    if kind == "llama":
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(**SIZES, num_hidden_layers=1)
        )
    elif kind == "mistral":
        config = transformers.MistralConfig(**SIZES, num_hidden_layers=1, sliding_window=4)
        model = transformers.MistralForCausalLM(config)
    else:
        config = transformers.Gemma2Config(**SIZES, num_hidden_layers=2, sliding_window=4)
        model = transformers.Gemma2ForCausalLM(config)
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(SIZES["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="w0", eos_token="w1"
    ).save_pretrained(folder)


def write_genai() -> None:
    """The builder of onnxruntime-genai."""
    import onnx
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    for kind, precision in GENAI:
        with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as made:
            save_model(kind, source)
            call = ("", source, made, precision, "cpu", made)
            create_model(*call, **parse_extra_options(*call, ["hf_token=false"]))
            onnx.save(onnx.load(f"{made}/model.onnx"), FIXTURES / f"genai_{kind}_{precision}.onnx")


def write_optimum() -> None:
    """The exporter of optimum-onnx, with a past."""
    import onnx
    from optimum.exporters.onnx import main_export

    for kind in OPTIMUM:
        with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as made:
            save_model(kind, source)
            main_export(source, output=made, task="text-generation-with-past", framework="pt")
            model = onnx.load(f"{made}/model.onnx")
            for node in model.graph.node:
                node.doc_string = ""  # paths of the exporting machine
            del model.graph.value_info[:]
            onnx.save(model, FIXTURES / f"optimum_{kind}.onnx")


if __name__ == "__main__":
    FIXTURES.mkdir(exist_ok=True)
    {"genai": write_genai, "optimum": write_optimum}[sys.argv[1]]()
