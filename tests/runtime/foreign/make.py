"""Make foreign.zip: tiny decoders that other exporters wrote, and what transformers makes of them.

Run each step in an environment that has the exporter, then `pack`:

    python make.py optimum OUT   # optimum-onnx 0.1.0, transformers 4.57.6
    python make.py genai OUT     # onnxruntime-genai 0.18.0, transformers 5.23.0
    python make.py mobius OUT    # mobius-onnx 0.1.0, transformers 5.23.0
    python make.py pack OUT      # writes foreign.zip beside this file

all with torch 2.13.0, onnx 1.23.2 and onnxruntime 1.32.0. The weights are random, of few different
values, so that the files are small when packed. `reference.json` of each folder holds what
transformers' own `generate` continued with: greedy, and the best of three beams.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

PROMPTS = [[1, 5, 9, 20, 33, 7, 8], [1, 44, 3], [1, 17, 2, 30, 12, 6, 41, 19, 27, 4, 11, 50]]
GREEDY, BEAMED = 120, 24
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 160,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
GPT2 = {
    "vocab_size": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 160,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BLOOM = {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 2, "eos_token_id": 2}


def checkpoint(kind: str, folder: Path) -> Path:
    """A model of random weights, as save_pretrained writes it."""
    import torch
    import transformers

    names = {"llama": "Llama", "gpt2": "GPT2", "bloom": "Bloom", "qwen2": "Qwen2"}
    name = {**names, "qwen3": "Qwen3"}[kind]
    sizes = dict({"gpt2": GPT2, "bloom": BLOOM}.get(kind, SIZES))
    if kind in ("llama", "qwen2", "qwen3"):
        sizes["num_key_value_heads"] = 1
    if kind == "qwen3":
        sizes["head_dim"] = 16
    config = getattr(transformers, f"{name}Config")(**sizes)
    model_class = {"gpt2": "GPT2LMHeadModel"}.get(kind, f"{name}ForCausalLM")
    model = getattr(transformers, model_class)(config).eval()
    generator = torch.Generator().manual_seed(len(kind))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            levels = torch.randint(-3, 4, parameter.shape, generator=generator)
            parameter.data = levels.float() / {"bloom": 2, "qwen3": 3}.get(kind, 8)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    return folder


def reference(source: Path, target: Path) -> None:
    """What transformers continues the prompts with."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    found: dict[str, list[list[int]]] = {"greedy": [], "beams": []}
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        shared = {"attention_mask": torch.ones_like(ids), "do_sample": False}
        for key, count, beams in (("greedy", GREEDY, 1), ("beams", BEAMED, 3)):
            rows = model.generate(
                ids, max_new_tokens=count, min_new_tokens=count, num_beams=beams, **shared
            )
            found[key].append(rows[0, len(prompt) :].tolist())
    text = json.dumps({"prompts": PROMPTS, **found}, separators=(",", ":"))
    (target / "reference.json").write_text(text)


def optimum(out: Path) -> None:
    from optimum.exporters.onnx import export, main_export
    from optimum.exporters.tasks import TasksManager
    from optimum.onnx.graph_transformations import merge_decoders
    from transformers import AutoModelForCausalLM

    for kind in ("llama", "gpt2", "qwen2"):
        with tempfile.TemporaryDirectory() as temporary:
            source = checkpoint(kind, Path(temporary))
            target = out / f"optimum-{kind}"
            main_export(str(source), target, task="text-generation-with-past", do_validation=False)
            reference(source, target)
    for kind in ("llama", "gpt2", "bloom"):
        with tempfile.TemporaryDirectory() as temporary:
            source = checkpoint(kind, Path(temporary))
            target = out / f"merged-{kind}"
            target.mkdir(parents=True, exist_ok=True)
            model = AutoModelForCausalLM.from_pretrained(source).float()
            make = TasksManager.get_exporter_config_constructor(
                "onnx", model=model, task="text-generation"
            )
            parts = []
            for name, has_past in (("decoder_model", False), ("decoder_with_past_model", True)):
                parts.append(Path(temporary) / f"{name}.onnx")
                config = make(model.config, use_past=True, use_past_in_inputs=has_past)
                export(model, config, parts[-1], opset=18)
            merge_decoders(*parts, save_path=target / "decoder_model_merged.onnx")
            if kind == "llama":
                shutil.copy(parts[0], target)
            for name in ("config.json", "generation_config.json"):
                shutil.copy(source / name, target)
            reference(source, target)


def genai(out: Path) -> None:
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    for kind, precision in (
        ("llama", "fp32"),
        ("qwen3", "fp32"),
        ("qwen2", "fp32"),
        ("llama", "int4"),
    ):
        with tempfile.TemporaryDirectory() as temporary:
            source = checkpoint(kind, Path(temporary) / "model")
            # The builder copies a tokenizer, and fails where there is none.
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(Path(sys.argv[3]) / name, source)
            target = out / (f"genai-{kind}" if precision == "fp32" else f"genai-{kind}-{precision}")
            given = ("", str(source), str(target), precision, "cpu", temporary)
            create_model(*given, **parse_extra_options(*given, []))
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (target / name).unlink()
            if precision == "fp32":
                reference(source, target)


def mobius(out: Path) -> None:
    import subprocess

    command = [str(Path(sys.executable).with_name("mobius")), "build"]
    for kind, target, options in (
        ("llama", "mobius-llama", []),
        ("gpt2", "mobius-gpt2", []),
        ("qwen3", "mobius-qwen3", ["--ep", "cpu", "--runtime", "ort-genai"]),
        ("llama", "mobius-llama-fp16", ["--dtype", "f16"]),
    ):
        with tempfile.TemporaryDirectory() as temporary:
            source = checkpoint(kind, Path(temporary))
            subprocess.run(
                [*command, "--config", str(source), *options, str(out / target)], check=True
            )
            for stray in (out / target).glob("tokenizer*"):
                stray.unlink()
            shutil.copy(source / "config.json", out / target)
            if "fp16" not in target:
                reference(source, out / target)


def pack(out: Path) -> None:
    path = Path(__file__).with_name("foreign.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        for file in sorted(out.rglob("*")):
            if file.is_file():
                info = zipfile.ZipInfo(str(file.relative_to(out)), (2026, 1, 1, 0, 0, 0))
                info.compress_type = zipfile.ZIP_LZMA
                archive.writestr(info, file.read_bytes())


if __name__ == "__main__":
    steps = {"optimum": optimum, "genai": genai, "mobius": mobius, "pack": pack}
    steps[sys.argv[1]](Path(sys.argv[2]))
