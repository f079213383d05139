"""Read the config.json of a GPT-2, nanoGPT or Llama-style checkpoint into a `DecoderConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from causal_onnx.models.config import (
    Activation,
    AttentionConfig,
    DecoderConfig,
    LinearRopeScaling,
    Llama3RopeScaling,
    RopeScaling,
)

__all__ = ["convert_config"]

LLAMA_TYPES = ("llama", "mistral", "qwen2", "qwen3")

GPT2_ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}

# Settings that would change the numbers in a way that the modules here do not compute.
GPT2_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def convert_config(data: Mapping[str, Any]) -> DecoderConfig:
    """Translate a checkpoint's configuration.

    Reads what Hugging Face writes for `model_type` gpt2, llama, mistral, qwen2 and qwen3, of
    transformers 4 and 5, and nanoGPT's model arguments (`n_layer`, `n_head`, `n_embd`,
    `block_size`, `vocab_size`, `bias`), which have no `model_type`. Dropout is not taken over.
    Keys that say nothing about the computation (token ids, initialisation, ...) are ignored.

    Args:
        data: The content of config.json, or `hf_config.to_dict()`.

    Raises:
        ValueError: A key is missing, or has a value that these modules do not compute; the message
            names both.
    """
    if data.get("quantization_config") is not None:
        raise ValueError(
            "quantization_config is set: the weights are packed; use the checkpoint they were "
            "quantised from"
        )
    model_type = data.get("model_type")
    if model_type is None and "block_size" in data:
        return _nanogpt(data)
    if model_type == "gpt2":
        return _gpt2(data)
    if model_type in LLAMA_TYPES:
        return _llama(data, model_type)
    raise ValueError(
        f"model_type must be one of gpt2, {', '.join(LLAMA_TYPES)}, or absent beside nanoGPT's "
        f"block_size; got {model_type!r}"
    )


def _nanogpt(data: Mapping[str, Any]) -> DecoderConfig:
    bias = _require(data, "bias", bool)
    embed_dim = _require(data, "n_embd", int)
    return DecoderConfig(
        vocab_size=_require(data, "vocab_size", int),
        num_layers=_require(data, "n_layer", int),
        attention=AttentionConfig(
            embed_dim=embed_dim,
            num_heads=_require(data, "n_head", int),
            max_seq_len=_require(data, "block_size", int),
            qkv_bias=bias,
            out_bias=bias,
        ),
        mlp_dim=4 * embed_dim,
        activation="gelu",
        mlp_bias=bias,
        norm_bias=bias,
        learned_positions=True,
    )


def _gpt2(data: Mapping[str, Any]) -> DecoderConfig:
    for key, fixed in GPT2_FIXED.items():
        if _flag(data, key, default=fixed) != fixed:
            raise ValueError(f"{key} must be {fixed}, got {data[key]!r}")
    activation = data.get("activation_function", "gelu_new")
    if activation not in GPT2_ACTIVATIONS:
        raise ValueError(
            f"activation_function must be one of {', '.join(GPT2_ACTIVATIONS)}, got {activation!r}"
        )
    embed_dim = _require(data, "n_embd", int)
    return DecoderConfig(
        vocab_size=_require(data, "vocab_size", int),
        num_layers=_require(data, "n_layer", int),
        attention=AttentionConfig(
            embed_dim=embed_dim,
            num_heads=_require(data, "n_head", int),
            max_seq_len=_require(data, "n_positions", int),
            qkv_bias=True,
            out_bias=True,
        ),
        mlp_dim=_optional(data, "n_inner", int) or 4 * embed_dim,
        activation=GPT2_ACTIVATIONS[activation],
        mlp_bias=True,
        norm_eps=float(data.get("layer_norm_epsilon", 1e-5)),
        learned_positions=True,
        tied_head=_flag(data, "tie_word_embeddings", default=True),
    )


def _llama(data: Mapping[str, Any], model_type: str) -> DecoderConfig:
    hidden_act = data.get("hidden_act", "silu")
    if hidden_act != "silu":
        raise ValueError(f"hidden_act must be silu, got {hidden_act!r}")
    max_seq_len = _require(data, "max_position_embeddings", int)
    # Qwen2 has a bias on queries, keys and values whatever its config says; Mistral has none.
    has_flag = model_type in ("llama", "qwen3")
    bias = has_flag and _flag(data, "attention_bias", default=False)
    norm_eps = float(_require(data, "rms_norm_eps", float))
    # Where a key may be absent, every version of the source fills in the same value.
    read_kv_heads = _optional if model_type == "llama" else _require
    read_head_dim = _require if model_type == "qwen3" else _optional
    rope_base, rope_scaling = _rope(data, max_seq_len)
    return DecoderConfig(
        vocab_size=_require(data, "vocab_size", int),
        num_layers=_require(data, "num_hidden_layers", int),
        attention=AttentionConfig(
            embed_dim=_require(data, "hidden_size", int),
            num_heads=_require(data, "num_attention_heads", int),
            num_kv_heads=read_kv_heads(data, "num_key_value_heads", int),
            head_dim=read_head_dim(data, "head_dim", int),
            max_seq_len=max_seq_len,
            rotary="half",
            rope_base=rope_base,
            rope_scaling=rope_scaling,
            window=_window(data, model_type),
            qk_norm=model_type == "qwen3",
            norm_eps=norm_eps,
            qkv_bias=bias or model_type == "qwen2",
            out_bias=bias,
        ),
        mlp_dim=_require(data, "intermediate_size", int),
        activation="swiglu",
        mlp_bias=model_type == "llama" and _flag(data, "mlp_bias", default=False),
        norm="rms",
        norm_eps=norm_eps,
        tied_head=_flag(data, "tie_word_embeddings", default=False),
    )


def _rope(data: Mapping[str, Any], max_seq_len: int) -> tuple[float, RopeScaling | None]:
    """Read base and scaling: `rope_parameters` (transformers 5), or the two older keys."""
    scaling = data.get("rope_parameters") or data.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ValueError(f"rope_parameters must be an object, got {scaling!r}")
    if any(isinstance(value, Mapping) for value in scaling.values()):
        raise ValueError(
            f"rope_parameters differ between kinds of layers ({', '.join(scaling)}); every layer "
            "must have the same"
        )
    partial = scaling.get("partial_rotary_factor", data.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor must be 1.0, got {partial}")
    base = float(scaling.get("rope_theta", data.get("rope_theta", 10_000.0)))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return base, None
    if kind == "linear":
        return base, LinearRopeScaling(factor=float(_require(scaling, "factor", float)))
    if kind == "llama3":
        original = _optional(scaling, "original_max_position_embeddings", int)
        return base, Llama3RopeScaling(
            factor=float(_require(scaling, "factor", float)),
            low_freq_factor=float(_require(scaling, "low_freq_factor", float)),
            high_freq_factor=float(_require(scaling, "high_freq_factor", float)),
            original_max_seq_len=original or max_seq_len,
        )
    raise ValueError(f"rope_type must be default, linear or llama3, got {kind!r}")


def _window(data: Mapping[str, Any], model_type: str) -> int | None:
    """Read the sliding window that every layer has, or None."""
    if model_type == "llama":
        return None
    if model_type != "mistral" and not _flag(data, "use_sliding_window", default=False):
        return None
    if "sliding_window" not in data:  # null means none; Mistral's code fills in 4096 if absent
        raise ValueError("the configuration lacks sliding_window; write null for no window")
    window: int | None = _optional(data, "sliding_window", int)
    if window is None:
        return None
    if model_type == "mistral":
        return window
    kinds = set(_layer_types(data))
    if kinds == {"full_attention"}:
        return None
    if kinds == {"sliding_attention"}:
        return window
    raise ValueError(
        "layer_types must be full_attention or sliding_attention, the same in every layer; got "
        f"{', '.join(sorted(kinds)) or 'none'}"
    )


def _layer_types(data: Mapping[str, Any]) -> Sequence[str]:
    kinds: Sequence[str] | None = data.get("layer_types")
    if kinds is not None:
        return kinds
    num_layers = _require(data, "num_hidden_layers", int)
    full = _require(data, "max_window_layers", int)  # the first layers attend to everything
    return [
        "full_attention" if layer < full else "sliding_attention" for layer in range(num_layers)
    ]


def _flag(data: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value: bool | None = _optional(data, key, bool)
    return default if value is None else value


def _require(data: Mapping[str, Any], key: str, kind: type[int] | type[float] | type[bool]) -> Any:
    if data.get(key) is None:
        raise ValueError(f"the configuration lacks {key}")
    return _optional(data, key, kind)


def _optional(data: Mapping[str, Any], key: str, kind: type[int] | type[float] | type[bool]) -> Any:
    value = data.get(key)
    if value is None:
        return None
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or (kind is not bool and isinstance(value, bool)):
        raise ValueError(f"{key} must be of type {kind.__name__}, got {value!r}")
    return value
