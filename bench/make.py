"""Make files that need PyTorch: `python -m bench.make JOB`.

Runs in a process of its own, so that the driver never holds PyTorch. JOB is JSON with the name of a
job below under "job", and its arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.client import worker_environment
from bench.peers import run_quietly
from bench.sizes import ModelSizes, ModuleSizes

if TYPE_CHECKING:
    from causal_onnx.models import MultiHeadAttention

__all__ = [
    "MODULE_ARTIFACT",
    "MODULE_WEIGHTS",
    "job",
    "main",
    "make_module",
    "plain_name",
]

MODULE_ARTIFACT = "module.onnx"
MODULE_WEIGHTS = "module.pt"


def plain_name(opset: int) -> str:
    return f"plain{opset}.onnx"


def job(name: str, **arguments: object) -> None:
    """Do one of the jobs below in a process of its own.

    Raises:
        RuntimeError: It failed; carries what was said last.
    """
    text = json.dumps({"job": name, **arguments})
    run_quietly([sys.executable, "-m", "bench.make", text], worker_environment(1))


def make_module(sizes: ModuleSizes) -> MultiHeadAttention:
    """The same weights in every process; attention by `scaled_dot_product_attention`."""
    from causal_onnx.models import AttentionConfig, MultiHeadAttention  # noqa: PLC0415 - torch

    config = AttentionConfig(embed_dim=sizes.embed_dim, num_heads=sizes.num_heads)
    return MultiHeadAttention(config, seed=sizes.seed).eval()


def attention(*, folder: str, sizes: dict[str, Any], opsets: Sequence[int] = ()) -> None:
    """The attention module as our file, as PyTorch saves its weights, and as it exports itself."""
    import torch  # noqa: PLC0415 - not in the driver

    from causal_onnx.export import export  # noqa: PLC0415

    shape = ModuleSizes(**sizes)
    module = make_module(shape)
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    export(module, target / MODULE_ARTIFACT, target="ort")
    torch.save({**module.state_dict(), "num_heads": sizes["num_heads"]}, target / MODULE_WEIGHTS)
    for opset in opsets:
        # At the arguments that are right for the most modules. Names make both axes dynamic, and
        # an example of sizes >= 2, different from each other, keeps them so.
        torch.onnx.export(
            make_module(shape),
            (torch.randn(3, 7, sizes["embed_dim"]),),
            target / plain_name(opset),
            dynamo=True,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_shapes=({0: "batch", 1: "seq"},),
            external_data=False,
            optimize=True,
            verbose=False,
        )


def model(*, folder: str, sizes: dict[str, Any]) -> None:
    """A Llama with random weights, and a tokenizer of single characters for the builder."""
    import torch  # noqa: PLC0415 - not in the driver
    import transformers  # noqa: PLC0415
    from tokenizers import Tokenizer, models  # noqa: PLC0415

    shape = ModelSizes(**sizes)
    torch.manual_seed(shape.seed)
    config = transformers.LlamaConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.embed_dim,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        intermediate_size=shape.mlp_dim,
        max_position_embeddings=shape.max_seq_len,
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


def artifact(*, model: str, path: str, max_seq_len: int, options: dict[str, Any]) -> None:
    """Our file of a saved language model, with all proofs."""
    import transformers  # noqa: PLC0415 - not in the driver

    from causal_onnx.export import export  # noqa: PLC0415

    module = transformers.AutoModelForCausalLM.from_pretrained(model)
    export(module, path, cache=True, max_seq_len=max_seq_len, **options)


def main(text: str) -> None:
    """Do one job."""
    arguments = json.loads(text)
    jobs: dict[str, Callable[..., None]] = {
        "model": model,
        "artifact": artifact,
        "attention": attention,
    }
    jobs[arguments.pop("job")](**arguments)


if __name__ == "__main__":
    main(sys.argv[1])
