"""Checkpoints written by transformers, and by nanoGPT's conventions, give the same logits here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from causal_onnx.models import (
    DecoderConfig,
    DecoderLM,
    convert_config,
    convert_state_dict,
    load_checkpoint,
    tiny_gpt2_config,
    tiny_llama_config,
)
from tests.models.reference import largest_error

VOCAB = 61
GPT2 = {"vocab_size": VOCAB, "n_positions": 32, "n_embd": 24, "n_layer": 2, "n_head": 3}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def llama(**options: Any) -> transformers.PreTrainedConfig:
    return transformers.LlamaConfig(**{**LLAMA, **options})


CONFIGS: dict[str, Callable[[], transformers.PreTrainedConfig]] = {
    "gpt2": lambda: transformers.GPT2Config(**GPT2),
    "gpt2-relu-untied": lambda: transformers.GPT2Config(
        **GPT2,
        activation_function="relu",
        n_inner=40,
        layer_norm_epsilon=1e-3,
        tie_word_embeddings=False,
    ),
    "gpt2-gelu": lambda: transformers.GPT2Config(**GPT2, activation_function="gelu"),
    "llama": llama,
    "llama-bias": lambda: llama(attention_bias=True, mlp_bias=True, rms_norm_eps=1e-2),
    "llama-tied": lambda: llama(tie_word_embeddings=True, num_key_value_heads=None),
    "llama-head-dim": lambda: llama(head_dim=10, num_key_value_heads=1),
    "llama-rope-base": lambda: llama(rope_parameters={"rope_type": "default", "rope_theta": 99.0}),
    "llama-linear": lambda: llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
    ),
    "llama3": lambda: llama(rope_parameters=LLAMA3, head_dim=32),
    "mistral": lambda: transformers.MistralConfig(**LLAMA, sliding_window=5),
    "mistral-full": lambda: transformers.MistralConfig(**LLAMA, sliding_window=None),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA),
    "qwen2-window": lambda: transformers.Qwen2Config(
        **LLAMA, use_sliding_window=True, sliding_window=5, max_window_layers=0
    ),
    "qwen2-window-unused": lambda: transformers.Qwen2Config(
        **LLAMA, use_sliding_window=True, sliding_window=5, max_window_layers=2
    ),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA, head_dim=16),
    "qwen3-bias": lambda: transformers.Qwen3Config(
        **LLAMA, head_dim=16, attention_bias=True, rms_norm_eps=1e-2
    ),
}


def make_source(config: transformers.PreTrainedConfig) -> nn.Module:
    """Build a model whose every parameter matters: large, and none at its initial 0 or 1."""
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            spread = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.7 + 0.3 * spread if parameter.dim() == 1 else 0.25 * spread)
    return model


def ids() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCAB, (3, 29), generator=generator)


def logits_of(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        return model(ids()).logits


def write_nanogpt(folder: Path, *, bias: bool, prefix: str = "") -> Tensor:
    """Write a checkpoint as nanoGPT names and lays it out; return the logits it must give.

    The numbers come from transformers' GPT-2 with the exact GELU that nanoGPT has.
    """
    source = make_source(transformers.GPT2Config(**GPT2, activation_function="gelu"))
    state = {}
    for name, value in source.state_dict().items():
        if name.endswith(".bias") and not bias:
            value.zero_()  # in place: the source computes without it too
            continue
        if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            state[prefix + name] = value.t().contiguous()
        else:
            state[prefix + name] = value.clone()
    state[f"{prefix}transformer.h.0.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    save_file(state, folder / "model.safetensors")
    arguments = {"n_layer": 2, "n_head": 3, "n_embd": 24, "block_size": 32, "vocab_size": VOCAB}
    (folder / "config.json").write_text(json.dumps({**arguments, "bias": bias, "dropout": 0.1}))
    return logits_of(source)


def edit_json(path: Path, **changes: Any) -> None:
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value != "absent"}))


def edit_weights(path: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    state = load_file(path)
    change(state)
    save_file(state, path)


@pytest.fixture
def llama_folder(tmp_path: Path) -> Path:
    make_source(llama()).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("make_config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_equal_those_of_transformers(
    make_config: Callable[[], transformers.PreTrainedConfig], tmp_path: Path
) -> None:
    source = make_source(make_config())
    source.save_pretrained(tmp_path)
    expected = logits_of(source)
    model = load_checkpoint(tmp_path)
    assert not model.training
    # float32 in both; 24 to 40 products a sum. Measured: 0 to 1e-6.
    assert largest_error(model(ids()), expected) < 5e-6
    # The same without a file in between.
    config = convert_config(source.config.to_dict())
    direct = DecoderLM(config).eval()
    direct.load_state_dict(convert_state_dict(source.state_dict(), config))
    assert torch.equal(direct(ids()), model(ids()))


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 6},
        {"sliding_window": None},
        {"rms_norm_eps": 1e-2},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 9000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 1.1}},
    ],
)
def test_comparison_sees_a_wrong_configuration(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = make_source(CONFIGS["mistral"]())
    source.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", **changes)
    assert largest_error(load_checkpoint(tmp_path)(ids()), logits_of(source)) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_files_are_computed_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    make_source(llama()).to(dtype).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}
    source = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    model = load_checkpoint(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert largest_error(model(ids()), logits_of(source.eval())) < 5e-6


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_sharded_files_are_joined(name: str, tmp_path: Path) -> None:
    source = make_source(CONFIGS[name]())
    source.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert largest_error(load_checkpoint(path)(ids()), logits_of(source)) < 5e-6


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."], ids=["plain", "compiled"])
def test_nanogpt_layout_gives_the_numbers_of_gpt2(tmp_path: Path, bias: bool, prefix: str) -> None:
    expected = write_nanogpt(tmp_path, bias=bias, prefix=prefix)
    model = load_checkpoint(tmp_path)
    assert largest_error(model(ids()), expected) < 5e-6
    assert any(name.endswith("bias") for name, _ in model.named_parameters()) == bias


@pytest.mark.parametrize("kept", ["lm_head.weight", "transformer.wte.weight"])
def test_a_tied_weight_may_be_stored_under_either_name(tmp_path: Path, kept: str) -> None:
    expected = write_nanogpt(tmp_path, bias=True)
    dropped = {"lm_head.weight", "transformer.wte.weight"} - {kept}
    edit_weights(tmp_path / "model.safetensors", lambda state: state.pop(dropped.pop()))
    assert largest_error(load_checkpoint(tmp_path)(ids()), expected) < 5e-6


def test_two_different_tied_weights_are_refused(tmp_path: Path) -> None:
    write_nanogpt(tmp_path, bias=True)
    edit_weights(tmp_path / "model.safetensors", lambda state: state["lm_head.weight"].add_(1.0))
    with pytest.raises(ValueError, match=r"lm_head.weight differs from transformer.wte.weight"):
        load_checkpoint(tmp_path)


def test_names_without_the_prefix_of_the_language_model_load_too(tmp_path: Path) -> None:
    source = make_source(CONFIGS["gpt2"]())
    source.transformer.save_pretrained(tmp_path)
    assert "wte.weight" in load_file(tmp_path / "model.safetensors")
    assert largest_error(load_checkpoint(tmp_path)(ids()), logits_of(source)) < 5e-6


def test_older_rope_keys_mean_what_the_newer_ones_mean(tmp_path: Path) -> None:
    source = make_source(CONFIGS["llama3"]())
    source.save_pretrained(tmp_path)
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    edit_json(
        tmp_path / "config.json", rope_parameters="absent", rope_theta=500.0, rope_scaling=scaling
    )
    assert largest_error(load_checkpoint(tmp_path)(ids()), logits_of(source)) < 5e-6
    data = llama().to_dict()
    older = {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}}
    newer = {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}
    assert convert_config({**data, **older}) == convert_config({**data, **newer})


def test_older_window_keys_mean_what_layer_types_mean() -> None:
    data = CONFIGS["qwen2-window"]().to_dict()
    del data["layer_types"]
    assert convert_config(data).attention.window == 5
    assert convert_config({**data, "max_window_layers": 2}).attention.window is None
    assert convert_config({**data, "use_sliding_window": False}).attention.window is None
    with pytest.raises(ValueError, match="got full_attention, sliding_attention"):
        convert_config({**data, "max_window_layers": 1})


def test_loaded_model_can_be_trained_and_owns_its_weights(tmp_path: Path) -> None:
    write_nanogpt(tmp_path, bias=True)
    model = load_checkpoint(tmp_path)
    model(ids()).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    layer = model.blocks[0].attention
    places = {p.weight.untyped_storage().data_ptr() for p in (layer.q_proj, layer.k_proj)}
    assert len(places) == 2
    assert model.config.dropout == model.config.attention.dropout == 0.0


def test_a_given_config_replaces_config_json(llama_folder: Path) -> None:
    config = convert_config(json.loads((llama_folder / "config.json").read_text()))
    expected = load_checkpoint(llama_folder)(ids())
    (llama_folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist: put it beside the"):
        load_checkpoint(llama_folder)
    model = load_checkpoint(llama_folder / "model.safetensors", config=config)
    assert torch.equal(model(ids()), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt_neox"}, "model_type must be one of gpt2, llama, .* got 'gpt_neox'"),
        ({"model_type": "absent"}, "model_type must be one of gpt2, llama, .* got None"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu, got 'gelu'"),
        ({"hidden_size": "absent"}, "the configuration lacks hidden_size"),
        ({"rms_norm_eps": None}, "the configuration lacks rms_norm_eps"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers must be of type int, got 'two'"),
        ({"attention_bias": "no"}, "attention_bias must be of type bool, got 'no'"),
        ({"num_attention_heads": 5}, r"num_heads \(5\) must be a multiple of num_kv_heads \(2\)"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is set: the weights are pac"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            "rope_type must be default, linear or llama3, got 'yarn'",
        ),
        ({"rope_parameters": {"rope_type": "linear"}}, "the configuration lacks factor"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor must be 1.0, got 0.5",
        ),
        (
            {"rope_parameters": {"full_attention": {}, "sliding_attention": {}}},
            "rope_parameters differ between kinds of layers",
        ),
        ({"rope_parameters": "absent", "rope_scaling": "linear"}, "must be an object, got 'lin"),
        ({"model_type": "mistral"}, "the configuration lacks sliding_window; write null"),
        ({"model_type": "qwen3", "head_dim": None}, "the configuration lacks head_dim"),
        ({"model_type": "qwen2", "num_key_value_heads": None}, "lacks num_key_value_heads"),
    ],
)
def test_a_configuration_that_is_not_computed_here_is_refused_by_name(
    llama_folder: Path, changes: dict[str, Any], message: str
) -> None:
    edit_json(llama_folder / "config.json", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_checkpoint(llama_folder)
    assert str(llama_folder / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "silu"}, "activation_function must be one of .* got 'silu'"),
        ({"scale_attn_weights": False}, "scale_attn_weights must be True, got False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "must be False, got True"),
        ({"add_cross_attention": True}, "add_cross_attention must be False, got True"),
    ],
)
def test_gpt2_options_that_are_not_computed_here_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert_config({**transformers.GPT2Config(**GPT2).to_dict(), **changes})


def test_missing_and_unexpected_weights_are_named(llama_folder: Path) -> None:
    def rename(state: dict[str, Tensor]) -> None:
        state["model.layers.1.mlp.extra.weight"] = state.pop("model.layers.1.mlp.up_proj.weight")

    edit_weights(llama_folder / "model.safetensors", rename)
    with pytest.raises(
        ValueError,
        match=r"missing: layers\.1\.mlp\.up_proj\.weight; "
        r"unexpected: model\.layers\.1\.mlp\.extra\.weight$",
    ):
        load_checkpoint(llama_folder)


def test_more_layers_than_configured_are_not_dropped_silently(llama_folder: Path) -> None:
    edit_json(llama_folder / "config.json", num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"unexpected: model\.layers\.1\..* and 1 more$"):
        load_checkpoint(llama_folder)


def test_an_untied_head_that_is_missing_is_named(llama_folder: Path) -> None:
    edit_weights(llama_folder / "model.safetensors", lambda state: state.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"missing: lm_head.weight$"):
        load_checkpoint(llama_folder)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "model.layers.0.self_attn.q_proj.weight",
            torch.zeros(24, 25),
            r"q_proj.weight must have shape \(24, 24\), got \(24, 25\)",
        ),
        ("model.norm.weight", torch.zeros(12), r"model.norm.weight must have shape \(24,\), got"),
        (
            "model.embed_tokens.weight",
            torch.zeros(VOCAB, 24, dtype=torch.int8),
            "embed_tokens.weight must be of a floating-point dtype, got torch.int8",
        ),
        ("norm.weight", torch.zeros(24), r"norm.weight and norm.weight are the same weight twice"),
    ],
)
def test_a_weight_that_does_not_fit_is_named(
    llama_folder: Path, name: str, value: Tensor, message: str
) -> None:
    edit_weights(llama_folder / "model.safetensors", lambda state: state.update({name: value}))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(llama_folder)


def test_a_transposed_weight_of_the_wrong_shape_is_reported_as_stored(tmp_path: Path) -> None:
    make_source(CONFIGS["gpt2"]()).save_pretrained(tmp_path)
    name = "transformer.h.1.mlp.c_fc.weight"
    edit_weights(
        tmp_path / "model.safetensors", lambda state: state.update({name: torch.zeros(24, 95)})
    )
    with pytest.raises(ValueError, match=r"c_fc.weight must have shape \(24, 96\), got \(24, 95\)"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tiny_gpt2_config(), r"missing: position_embedding.weight, .* and \d+ more; unexpected"),
        (tiny_llama_config(), r"must have shape \(256, 32\), got \(61, 24\)"),
    ],
)
def test_a_config_of_another_kind_is_refused(
    llama_folder: Path, config: DecoderConfig, message: str
) -> None:
    edit_weights(llama_folder / "model.safetensors", lambda state: state.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=message):
        load_checkpoint(llama_folder, config=config)


def test_weights_of_an_unknown_family_are_refused() -> None:
    with pytest.raises(ValueError, match=r"neither GPT-style .* found embed.weight, out.weight$"):
        convert_state_dict(
            {"embed.weight": torch.zeros(1), "out.weight": torch.zeros(1)}, tiny_llama_config()
        )
    with pytest.raises(ValueError, match=r"neither GPT-style .* found nothing"):
        convert_state_dict({}, tiny_llama_config())


def test_what_nanogpt_saves_loads_with_its_arguments(tmp_path: Path) -> None:
    expected = write_nanogpt(tmp_path, bias=True, prefix="_orig_mod.")
    arguments = json.loads((tmp_path / "config.json").read_text())
    state = load_file(tmp_path / "model.safetensors")
    (tmp_path / "config.json").unlink()
    kept = {"model": state, "model_args": arguments, "iter_num": 9, "best_val_loss": 1.5}
    torch.save(kept, tmp_path / "ckpt.pt")
    assert largest_error(load_checkpoint(tmp_path / "ckpt.pt")(ids()), expected) < 5e-6
    torch.save({**kept, "model_args": {"block_size": 4}}, tmp_path / "ckpt.pt")
    with pytest.raises(ValueError, match=r"model_args in .*ckpt.pt: the configuration lacks"):
        load_checkpoint(tmp_path / "ckpt.pt")


def test_weights_alone_take_the_config_beside_them(tmp_path: Path) -> None:
    expected = write_nanogpt(tmp_path, bias=True)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    assert largest_error(load_checkpoint(tmp_path / "pytorch_model.bin")(ids()), expected) < 5e-6
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds list, expected weights by name, or nanoGPT's"):
        load_checkpoint(tmp_path / "pytorch_model.bin")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "ckpt.pt", "model.pth", "model.ckpt"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, name: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"model": {"x": torch.zeros(1)}, "trap": Trap()}, tmp_path / name)
    for content in ((tmp_path / name).read_bytes(), b"not even a pickle"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is damaged, or holds more than weights"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FileNotFoundError, match=rf"neither .*; give the file, .*{name}"):
        load_checkpoint(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds neither .*; expected a checkpoint: config"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent.safetensors does not exist"):
        load_checkpoint(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match=r"absent does not exist"):
        load_checkpoint(tmp_path / "absent")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ValueError, match=r"expected a folder, a .safetensors file or a .pt file"):
        load_checkpoint(tmp_path / "model.onnx")


def test_damaged_files_are_refused(llama_folder: Path) -> None:
    weights = llama_folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors is not a whole safetensors file"):
        load_checkpoint(llama_folder)
    weights.write_bytes(whole)
    (llama_folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        load_checkpoint(llama_folder)
    (llama_folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json must hold a JSON object, got list"):
        load_checkpoint(llama_folder)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        ({}, ValueError, "has no weight_map"),
        ({"weight_map": {}}, ValueError, "has no weight_map"),
        ({"weight_map": {"x": "../model.safetensors"}}, ValueError, "file name without a folder"),
        ({"weight_map": {"x": "/etc/model.safetensors"}}, ValueError, "file name without a fold"),
        ({"weight_map": {"x": "config.json"}}, ValueError, "expected a folder, a .safetensors"),
        ({"weight_map": {"x": "gone.safetensors"}}, FileNotFoundError, "gone.safetensors does no"),
        ({"weight_map": {"x": "model.safetensors"}}, ValueError, "lacks x, which .*index.json nam"),
    ],
)
def test_a_bad_index_is_refused(
    llama_folder: Path, index: dict[str, Any], error: type[Exception], message: str
) -> None:
    (llama_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(error, match=message):
        load_checkpoint(llama_folder)


def test_without_safetensors_the_remedy_is_named(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'causal-onnx\[export\]'"):
        load_checkpoint(llama_folder)
