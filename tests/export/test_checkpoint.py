"""Checkpoints of every layout, and those that are refused by name."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from causal_onnx.export import ExportError, export, export_checkpoint
from causal_onnx.export.checkpoint.huggingface import open_huggingface, open_tokenizer
from causal_onnx.models import CausalMechanismV1
from causal_onnx.runtime import load, verify_bundle
from tests.export.real import SORTER, reference

LLAMA: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
}


def write_llama(folder: Path, **settings: Any) -> Path:
    config = transformers.LlamaConfig(**LLAMA, **settings)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value != "absent"}))


def opened(folder: Path) -> Any:
    return open_huggingface(folder, trust_remote_code=False)[0]


def test_a_checkpoint_in_half_precision_is_loaded_in_fp32(tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).bfloat16()
    model.save_pretrained(tmp_path)
    weight = opened(tmp_path).lm_head.weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, model.lm_head.weight.float())


def test_shards_are_one_checkpoint(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**LLAMA)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    ids = torch.tensor([[5, 3, 8]])
    with torch.no_grad():
        assert torch.equal(opened(tmp_path)(ids).logits, model(ids).logits)


def rename_one(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["other.weight"] = state.pop("model.layers.0.mlp.up_proj.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "encoder and decoder": (
        lambda f: edit_config(f, is_encoder_decoder=True, architectures=["T5ForConditional"]),
        "describes 'T5ForConditional', an encoder with a decoder; of those, what is supported are",
    ),
    "masked": (
        lambda f: edit_config(f, model_type="bert", architectures=["BertForMaskedLM"]),
        "describes 'BertForMaskedLM', which is not a causal language model; supported",
    ),
    "classifier": (
        lambda f: edit_config(f, architectures=["LlamaForSequenceClassification"]),
        "describes 'LlamaForSequenceClassification', which is not a causal language model",
    ),
    "unknown": (
        lambda f: edit_config(f, model_type="mine", architectures=["MineForCausalLM"]),
        r"of model_type 'mine', for which transformers .* has no causal language model",
    ),
    "code": (
        lambda f: edit_config(f, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"}),
        r"names code of its own in auto_map \(modeling_evil.Evil\), which is not run unless",
    ),
    "packed": (
        lambda f: edit_config(f, quantization_config={"quant_method": "gptq"}),
        "has a quantization_config: the weights are packed. Export the checkpoint",
    ),
    "lacking": (
        rename_one,
        r"lacks 1 weights of LlamaForCausalLM, such as model.layers.0.mlp.up_proj.weight: transfo",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "cannot be loaded by transformers: OSError",
    ),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a JSON object, got list"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_exported_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    break_, message = REFUSED[kind]
    break_(write_llama(tmp_path / "checkpoint"))
    with pytest.raises(ExportError, match=message):
        export_checkpoint(tmp_path / "checkpoint", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_weights_that_belong_to_nothing_are_told(tmp_path: Path) -> None:
    write_llama(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {**state, "extra.weight": torch.zeros(1)},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    (said,) = open_huggingface(tmp_path, trust_remote_code=False)[1]
    assert "weights that LlamaForCausalLM does not have (1, such as extra.weight)" in said


def test_code_of_the_folder_runs_where_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_llama(tmp_path)
    (tmp_path / "own.py").write_text(
        "from transformers import LlamaForCausalLM\n\n\nclass Own(LlamaForCausalLM):\n    pass\n"
    )
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "c"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    edit_config(tmp_path, auto_map={"AutoModelForCausalLM": "own.Own"}, architectures=["Own"])
    assert type(open_huggingface(tmp_path, trust_remote_code=True)[0]).__name__ == "Own"


def test_without_transformers_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"needs the package transformers: .*causal-onnx\[hf\]"):
        export_checkpoint(SORTER, tmp_path / "model")


def test_a_file_has_no_cache_unless_it_is_asked_for(tmp_path: Path) -> None:
    write_llama(tmp_path / "c", eos_token_id=[2, 5])
    plain = export_checkpoint(tmp_path / "c", tmp_path / "m.onnx")
    assert (plain.contract.cache, plain.contract.eos_token_ids) == ((), (2, 5))
    assert sorted(item.name for item in tmp_path.iterdir()) == ["c", "m.onnx"]


def test_the_folder_keeps_every_id_that_ends_a_text(tmp_path: Path) -> None:
    write_llama(tmp_path / "c", eos_token_id=[2, 5])
    (tmp_path / "c" / "generation_config.json").unlink()
    report = export_checkpoint(tmp_path / "c", tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert report.contract.eos_token_ids == (2, 5)
    assert settings["eos_token_id"] == [2, 5]
    genai = json.loads((tmp_path / "model" / "genai_config.json").read_text())
    assert genai["model"]["eos_token_id"] == [2, 5]


def test_nanogpts_file_becomes_a_folder_too(tmp_path: Path) -> None:
    arguments = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 12, "vocab_size": 17}
    config = transformers.GPT2Config(
        vocab_size=17, n_positions=12, n_embd=8, n_layer=1, n_head=2, activation_function="gelu"
    )
    source = transformers.GPT2LMHeadModel(config).eval()
    packed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {
        name: value.t().contiguous() if name.endswith(packed) else value
        for name, value in source.state_dict().items()
    }
    torch.save({"model": state, "model_args": {**arguments, "bias": True}}, tmp_path / "ckpt.pt")
    export_checkpoint(tmp_path / "ckpt.pt", tmp_path / "model")
    ids = torch.tensor([[5, 3, 8, 1]])
    with torch.no_grad():
        expected = source(ids).logits
    found = torch.from_numpy(load(tmp_path / "model")(ids.numpy()))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_module_becomes_a_folder_too(tmp_path: Path) -> None:
    module = CausalMechanismV1(6, 4, 8)
    report = export(module, tmp_path / "model")
    assert report.path == tmp_path / "model" / "model.onnx"
    assert verify_bundle(tmp_path / "model").passed
    with pytest.raises(FileExistsError, match="already holds a bundle; replace=True replaces it"):
        export(module, tmp_path / "model")
    before = (tmp_path / "model" / "model.onnx").read_bytes()
    export(module, tmp_path / "model", replace=True)
    assert (tmp_path / "model" / "model.onnx").read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_a_folder_in_the_way_is_found_before_the_checkpoint_is_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty and not a bundle"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "model", replace=True)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        export_checkpoint(tmp_path / "nowhere", tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision must be one of"),
        ({"target": "metal"}, "target must be one of"),
        ({"opset": 9}, "opset must be in"),
        ({"max_seq_len": 1}, "max_seq_len must be at least 2"),
        ({"max_drift": 0.1}, "max_drift is for a lower precision"),
    ],
)
@pytest.mark.parametrize("place", ["m.onnx", "folder"])
def test_a_wrong_argument_is_found_before_the_checkpoint_is_read(
    options: dict[str, Any], message: str, place: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        export_checkpoint(tmp_path / "not-there", tmp_path / place, **options)


def test_a_file_that_cannot_be_written_is_found_before_the_checkpoint_is_read(
    tmp_path: Path,
) -> None:
    (tmp_path / "m.onnx").mkdir()
    (tmp_path / "plain").touch()
    with pytest.raises(ValueError, match="path must name a file"):
        export_checkpoint(tmp_path / "not-there", tmp_path / "m.onnx")
    with pytest.raises(FileExistsError, match=r"cannot write .*; choose another place"):
        export_checkpoint(tmp_path / "not-there", tmp_path / "plain" / "m.onnx")


def test_an_older_tokenizer_is_converted(tmp_path: Path) -> None:
    letters = "abcdefgh"
    (tmp_path / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate([*letters, "ab"])}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    write_llama(tmp_path)
    (tmp_path / "scratch").mkdir()
    place, told = open_tokenizer(tmp_path, tmp_path / "scratch")
    assert (place, told) == (tmp_path / "scratch", [])
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "scratch" / "tokenizer.json").unlink()
    place, told = open_tokenizer(tmp_path, tmp_path / "scratch")
    assert place is None
    assert told[0].startswith("the tokenizer (vocab.json) could not be converted: ")


def write_adapter(base: Path, folder: Path) -> Any:
    """A LoRA adapter whose every weight matters; the model with it, not merged."""
    peft = pytest.importorskip("peft", reason="adapters need peft")
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"], init_lora_weights=False
    )
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # transformers tells peft of its next version
        model = peft.get_peft_model(reference(base), settings)
        model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("how", ["named", "itself"])
def test_a_merged_adapter_computes_what_peft_does(how: str, tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    adapted = write_adapter(base, tmp_path / "lora")
    if how == "named":
        export_checkpoint(base, tmp_path / "m.onnx", adapter=tmp_path / "lora")
    else:
        export_checkpoint(tmp_path / "lora", tmp_path / "m.onnx")
    ids = torch.tensor([[5, 3, 8, 1, 9]])
    with torch.no_grad():
        expected, without = adapted(ids).logits, reference(base)(ids).logits
    found = torch.from_numpy(load(tmp_path / "m.onnx")(ids.numpy()))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert (expected - without).abs().max() > 1e-2


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    write_adapter(base, tmp_path / "lora")
    with pytest.raises(ExportError, match="lora does not fit GPT2LMHeadModel: "):
        export_checkpoint(SORTER, tmp_path / "m.onnx", adapter=tmp_path / "lora")
    with pytest.raises(ExportError, match=r"base is not a PEFT adapter: it has no adapter_config"):
        export_checkpoint(base, tmp_path / "m.onnx", adapter=base)
    with pytest.raises(ValueError, match=r"lora is an adapter itself, and adapter=.* is another"):
        export_checkpoint(tmp_path / "lora", tmp_path / "m.onnx", adapter=tmp_path / "lora")
    shutil.rmtree(base)
    with pytest.raises(ExportError, match=r"is an adapter of .*base', which is not a local folder"):
        export_checkpoint(tmp_path / "lora", tmp_path / "m.onnx")


def test_an_adapter_without_all_of_its_weights_is_refused(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base")
    write_adapter(base, tmp_path / "lora")
    weights = tmp_path / "lora" / "adapter_model.safetensors"
    state = load_file(weights)
    state.pop(next(iter(state)))
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"lora does not fit LlamaForCausalLM: .*missing adapter"):
        export_checkpoint(base, tmp_path / "m.onnx", adapter=tmp_path / "lora")


def test_an_adapter_that_adds_to_the_input_is_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="adapters need peft")
    base = write_llama(tmp_path / "base")
    settings = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        peft.get_peft_model(reference(base), settings).save_pretrained(tmp_path / "prompt")
    with pytest.raises(ExportError, match="'PROMPT_TUNING', which adds to the input"):
        export_checkpoint(base, tmp_path / "m.onnx", adapter=tmp_path / "prompt")


def test_without_peft_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_llama(tmp_path / "base")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="needs the package peft: pip install peft"):
        export_checkpoint(base, tmp_path / "m.onnx", adapter=tmp_path / "lora")
