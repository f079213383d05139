"""Decoder classes of transformers, tiny and with random weights, given as the library gives them.

`transformers` is imported when a model is built, not when the zoo is listed. Sizes are odd on
purpose and differ from each other: a width equal to a length or to a head count hides mistakes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .entry import ZooEntry, ids, seeded, with_padding_mask

__all__ = ["ENTRIES", "VOCAB"]

VOCAB = 67
CONTEXT = 40
IMPLEMENTATIONS = ("eager", "sdpa")
WEIGHT_STD = 0.2
"""Standard deviation of every matrix: the library's 0.02 leaves attention all but uniform at these
widths, and a lost mask hard to see."""

COMMON: Mapping[str, Any] = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA_LIKE: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
NO_GQA: Mapping[str, Any] = {**LLAMA_LIKE, "num_key_value_heads": 4}
MAMBA2_LIKE: Mapping[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 6,
    "mamba_expand": 2,
    "mamba_chunk_size": 5,
}
DEFAULT_ROPE: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
WINDOW = 5
TAKING_TURNS = ["sliding_attention", "full_attention"]


MOE_ROUNDING = 1e-6
"""An expert's matmul has as many rows as tokens were routed to it, and may round by their number;
on the CPU it was bit-identical."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One decoder class with a tiny configuration."""

    name: str
    model_type: str
    config: Mapping[str, Any]
    style: str
    """What is special about it, for the entry's origin."""
    limit: int | None = CONTEXT
    beyond: str = "accepts"
    causal_up_to: float = 0.0
    prefix_up_to: float = 1e-5
    footprint: str = "causal"
    cacheable: bool = True
    expect: str = "causal"
    tags: frozenset[str] = field(default_factory=frozenset)
    implementations: tuple[str, ...] = IMPLEMENTATIONS


def build(architecture: Architecture, implementation: str) -> nn.Module:
    """The library's causal language model of `architecture`, in training mode, weights seeded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(architecture.model_type, **{**COMMON, **architecture.config})

    def make() -> nn.Module:
        model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1 and parameter.is_floating_point():
                    parameter.normal_(std=WEIGHT_STD)
        return model.train()

    return seeded(make, seed=1)


def _tags(*names: str) -> frozenset[str]:
    return frozenset(names)


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        name="gpt2",
        model_type="gpt2",
        config={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "n_inner": 44},
        style="learned positions, Conv1D projections",
        beyond="raises",
    ),
    Architecture(
        name="gpt2_scaled_by_layer",
        model_type="gpt2",
        config={
            "n_embd": 30,
            "n_layer": 2,
            "n_head": 3,
            "n_positions": CONTEXT,
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
        },
        style="scores scaled by the layer's index, upcast attention",
        beyond="raises",
    ),
    Architecture(
        name="openai_gpt",
        model_type="openai-gpt",
        config={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT},
        style="the first GPT: post-norm, learned positions",
        beyond="raises",
        implementations=("eager",),
    ),
    Architecture(
        name="gpt_neo",
        model_type="gpt_neo",
        config={
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "intermediate_size": 44,
            "max_position_embeddings": CONTEXT,
            "window_size": WINDOW,
            "attention_types": [[["global", "local"], 1]],
        },
        style="global and local layers in turn, no scale",
        beyond="raises",
        footprint="causal / window:5",
        tags=_tags("window"),
        implementations=("eager",),
    ),
    Architecture(
        name="gpt_neox",
        model_type="gpt_neox",
        config={**NO_GQA, "rotary_pct": 0.5},
        style="parallel residual, partial rotary",
    ),
    Architecture(
        name="gpt_neox_sequential",
        model_type="gpt_neox",
        config={**NO_GQA, "use_parallel_residual": False, "attention_bias": False},
        style="sequential residual, partial rotary, no attention bias",
    ),
    Architecture(
        name="gptj",
        model_type="gptj",
        config={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "rotary_dim": 4},
        style="interleaved partial rotary from a table, parallel residual",
        beyond="raises",
        implementations=("eager",),
    ),
    Architecture(
        name="codegen",
        model_type="codegen",
        config={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "rotary_dim": 4},
        style="qkv split for four shards, interleaved rotary",
        beyond="raises",
        implementations=("eager",),
    ),
    Architecture(
        name="gpt_bigcode",
        model_type="gpt_bigcode",
        config={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "n_inner": 44},
        style="multi-query attention, learned positions",
        beyond="raises",
    ),
    Architecture(
        name="opt",
        model_type="opt",
        config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "ffn_dim": 44,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": 32,
        },
        style="learned positions with an offset of two",
        beyond="raises",
    ),
    Architecture(
        name="opt_projected",
        model_type="opt",
        config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "ffn_dim": 44,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "word_embed_proj_dim": 20,
            "do_layer_norm_before": False,
        },
        style="post-norm, embeddings of another width projected in and out",
        beyond="raises",
    ),
    Architecture(
        name="bloom",
        model_type="bloom",
        config={"hidden_size": 32, "n_layer": 2, "n_head": 4},
        style="ALiBi by key positions, norm after the embedding",
        limit=None,
        implementations=("eager",),
    ),
    Architecture(
        name="mpt",
        model_type="mpt",
        config={"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": CONTEXT},
        style="ALiBi, no biases",
        beyond="raises",
        implementations=("eager",),
    ),
    Architecture(
        name="falcon_mqa",
        model_type="falcon",
        config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "multi_query": True,
            "parallel_attn": True,
            "new_decoder_architecture": False,
            "alibi": False,
            "max_position_embeddings": CONTEXT,
        },
        style="multi-query, parallel attention, rotary",
    ),
    Architecture(
        name="falcon_new",
        model_type="falcon",
        config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "alibi": False,
            "max_position_embeddings": CONTEXT,
        },
        style="grouped heads in one fused projection, two norms",
    ),
    Architecture(
        name="falcon_alibi",
        model_type="falcon",
        config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "multi_query": False,
            "parallel_attn": False,
            "new_decoder_architecture": False,
            "alibi": True,
            "bias": True,
            "max_position_embeddings": CONTEXT,
        },
        style="ALiBi, sequential residual, biases",
    ),
    Architecture(
        name="llama",
        model_type="llama",
        config=LLAMA_LIKE,
        style="grouped heads, rotary, SwiGLU",
    ),
    Architecture(
        name="llama_tied_head_dim",
        model_type="llama",
        config={
            **LLAMA_LIKE,
            "head_dim": 10,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        },
        style="a head width of its own, tied embeddings, biases, Llama 3.1 rope scaling",
    ),
    Architecture(
        name="mistral",
        model_type="mistral",
        config={**LLAMA_LIKE, "sliding_window": WINDOW},
        style="a sliding window on every layer",
        footprint="window:5",
        tags=_tags("window"),
    ),
    Architecture(
        name="mixtral",
        model_type="mixtral",
        config={**LLAMA_LIKE, "num_local_experts": 3, "num_experts_per_tok": 2},
        style="a mixture of three experts",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("moe"),
    ),
    Architecture(
        name="qwen2",
        model_type="qwen2",
        config={
            **LLAMA_LIKE,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
            "max_window_layers": 1,
        },
        style="biases on q, k and v; a window from the second layer on",
        footprint="causal / window:5",
        tags=_tags("window"),
    ),
    Architecture(
        name="qwen2_moe",
        model_type="qwen2_moe",
        config={
            **LLAMA_LIKE,
            "moe_intermediate_size": 20,
            "shared_expert_intermediate_size": 28,
            "num_experts": 3,
            "num_experts_per_tok": 2,
        },
        style="a mixture of experts with a gated shared expert",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("moe"),
    ),
    Architecture(
        name="qwen3",
        model_type="qwen3",
        config={**LLAMA_LIKE, "head_dim": 10},
        style="norms on queries and keys, a head width of its own",
    ),
    Architecture(
        name="qwen3_moe",
        model_type="qwen3_moe",
        config={
            **LLAMA_LIKE,
            "head_dim": 10,
            "moe_intermediate_size": 20,
            "num_experts": 3,
            "num_experts_per_tok": 2,
        },
        style="QK norm and a mixture of experts",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("moe"),
    ),
    Architecture(
        name="gemma",
        model_type="gemma",
        config={**LLAMA_LIKE, "num_key_value_heads": 1, "head_dim": 10},
        style="one key-value head, embeddings scaled, norm weights plus one",
    ),
    Architecture(
        name="gemma2",
        model_type="gemma2",
        config={
            **LLAMA_LIKE,
            "head_dim": 10,
            "query_pre_attn_scalar": 7,
            "sliding_window": WINDOW,
            "layer_types": TAKING_TURNS,
            "attn_logit_softcapping": 20.0,
            "final_logit_softcapping": 9.0,
        },
        style="softcap on scores and logits, window and full layers in turn",
        footprint="window:5 / causal",
        tags=_tags("window"),
        implementations=("eager",),
    ),
    Architecture(
        name="gemma3",
        model_type="gemma3_text",
        config={
            **LLAMA_LIKE,
            "head_dim": 10,
            "query_pre_attn_scalar": 7,
            "sliding_window": WINDOW,
            "layer_types": TAKING_TURNS,
        },
        style="QK norm, two rope bases, window and full layers in turn",
        footprint="window:5 / causal",
        tags=_tags("window"),
    ),
    Architecture(
        name="phi",
        model_type="phi",
        config={**LLAMA_LIKE, "partial_rotary_factor": 0.5},
        style="parallel residual, partial rotary, biases",
    ),
    Architecture(
        name="phi3",
        model_type="phi3",
        config={**LLAMA_LIKE, "sliding_window": WINDOW},
        style="one fused qkv and one fused gate-up projection, a window",
        footprint="window:5",
        tags=_tags("window"),
    ),
    Architecture(
        name="phimoe",
        model_type="phimoe",
        config={**LLAMA_LIKE, "num_local_experts": 3, "num_experts_per_tok": 2},
        style="a sparse-mixer mixture of experts, LayerNorm",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("moe"),
    ),
    Architecture(
        name="stablelm",
        model_type="stablelm",
        config={
            **LLAMA_LIKE,
            "partial_rotary_factor": 0.5,
            "qk_layernorm": True,
            "use_parallel_residual": True,
        },
        style="partial rotary, per-head QK norm, parallel residual",
    ),
    Architecture(
        name="olmo",
        model_type="olmo",
        config={**LLAMA_LIKE, "clip_qkv": 1.5},
        style="LayerNorm without weights, clipped q, k and v",
    ),
    Architecture(
        name="olmo2",
        model_type="olmo2",
        config=LLAMA_LIKE,
        style="norms after attention and MLP, QK norm over the whole width",
    ),
    Architecture(
        name="olmo3",
        model_type="olmo3",
        config={**LLAMA_LIKE, "sliding_window": WINDOW, "layer_types": TAKING_TURNS},
        style="post-norm, QK norm, window and full layers in turn",
        footprint="window:5 / causal",
        tags=_tags("window"),
    ),
    Architecture(
        name="olmoe",
        model_type="olmoe",
        config={**LLAMA_LIKE, "num_experts": 3, "num_experts_per_tok": 2},
        style="QK norm and a mixture of experts",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("moe"),
    ),
    Architecture(
        name="cohere",
        model_type="cohere",
        config={**LLAMA_LIKE, "use_qk_norm": True, "logit_scale": 0.25},
        style="parallel residual, interleaved rotary, QK LayerNorm, scaled logits",
    ),
    Architecture(
        name="cohere2",
        model_type="cohere2",
        config={**LLAMA_LIKE, "sliding_window": WINDOW, "layer_types": TAKING_TURNS},
        style="window layers with rotary, full layers without positions",
        footprint="window:5 / causal",
        tags=_tags("window"),
    ),
    Architecture(
        name="granite",
        model_type="granite",
        config={
            **LLAMA_LIKE,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.7,
            "logits_scaling": 2.0,
        },
        style="multipliers on embeddings, scores, residuals and logits",
    ),
    Architecture(
        name="granitemoe",
        model_type="granitemoe",
        config={**LLAMA_LIKE, "num_local_experts": 3, "num_experts_per_tok": 2},
        style="multipliers and a mixture of experts",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("moe"),
    ),
    Architecture(
        name="smollm3",
        model_type="smollm3",
        config={**LLAMA_LIKE, "no_rope_layers": [1, 0]},
        style="rotary on some layers, none on others",
    ),
    Architecture(
        name="starcoder2",
        model_type="starcoder2",
        config={**LLAMA_LIKE, "sliding_window": WINDOW},
        style="LayerNorm, biases, a window",
        footprint="window:5",
        tags=_tags("window"),
    ),
    Architecture(
        name="gpt_oss",
        model_type="gpt_oss",
        config={
            **LLAMA_LIKE,
            "head_dim": 10,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": TAKING_TURNS,
            "rope_parameters": DEFAULT_ROPE,
        },
        style="sink logits, window and full layers in turn, a mixture of experts",
        causal_up_to=MOE_ROUNDING,
        footprint="window:5 / causal",
        tags=_tags("moe", "window"),
        implementations=("eager",),
    ),
    Architecture(
        name="glm",
        model_type="glm",
        config={**LLAMA_LIKE, "head_dim": 10, "partial_rotary_factor": 0.4},
        style="interleaved partial rotary, fused gate-up",
    ),
    Architecture(
        name="glm4",
        model_type="glm4",
        config={**LLAMA_LIKE, "head_dim": 10, "partial_rotary_factor": 0.4},
        style="GLM with norms before and after each part",
    ),
    Architecture(
        name="persimmon",
        model_type="persimmon",
        config={**NO_GQA, "partial_rotary_factor": 0.5},
        style="fused qkv, QK LayerNorm, squared ReLU",
    ),
    Architecture(
        name="nemotron",
        model_type="nemotron",
        config={**LLAMA_LIKE, "partial_rotary_factor": 0.5},
        style="LayerNorm weights plus one, squared ReLU, partial rotary",
    ),
    Architecture(
        name="xglm",
        model_type="xglm",
        config={
            "d_model": 32,
            "num_layers": 2,
            "attention_heads": 4,
            "ffn_dim": 44,
            "max_position_embeddings": CONTEXT,
        },
        style="sinusoids in a growing buffer with an offset of two",
        implementations=("eager",),
    ),
    Architecture(
        name="biogpt",
        model_type="biogpt",
        config={**NO_GQA},
        style="learned positions from a running sum of the mask",
        beyond="raises",
    ),
    Architecture(
        name="ctrl",
        model_type="ctrl",
        config={"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT, "dff": 44},
        style="a sinusoid table, a mask of -1e4",
        beyond="raises",
        implementations=("eager",),
    ),
    Architecture(
        name="helium",
        model_type="helium",
        config={**LLAMA_LIKE, "head_dim": 8},
        style="interleaved rotary, norms in fp32",
    ),
    Architecture(
        name="diffllama",
        model_type="diffllama",
        config=LLAMA_LIKE,
        style="differential attention",
    ),
    Architecture(
        name="deepseek_v2",
        model_type="deepseek_v2",
        config={
            **NO_GQA,
            "kv_lora_rank": 10,
            "q_lora_rank": 14,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 6,
            "v_head_dim": 7,
            "head_dim": 4,
            "n_routed_experts": 3,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "first_k_dense_replace": 1,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
        },
        style="latent attention, complex rotary, a mixture of experts after a dense layer",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("moe"),
    ),
    Architecture(
        name="deepseek_v3",
        model_type="deepseek_v3",
        config={
            **NO_GQA,
            "kv_lora_rank": 10,
            "q_lora_rank": 14,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 6,
            "v_head_dim": 7,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "first_k_dense_replace": 1,
            "n_group": 2,
            "topk_group": 1,
        },
        style="latent attention, experts chosen by groups with a correction bias",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("moe"),
    ),
    Architecture(
        name="dbrx",
        model_type="dbrx",
        config={
            "d_model": 32,
            "n_heads": 4,
            "n_layers": 2,
            "max_seq_len": CONTEXT,
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 2.0, "rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 3, "moe_top_k": 2},
        },
        style="fused clipped qkv, a mixture of experts",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("moe"),
    ),
    Architecture(
        name="ernie4_5",
        model_type="ernie4_5",
        config={**LLAMA_LIKE, "head_dim": 10},
        style="interleaved rotary",
    ),
    Architecture(
        name="exaone4",
        model_type="exaone4",
        config={**LLAMA_LIKE, "sliding_window": WINDOW, "layer_types": TAKING_TURNS},
        style="post-norm, QK norm, no rotary on full layers",
        footprint="window:5 / causal",
        tags=_tags("window"),
    ),
    Architecture(
        name="llama4_text",
        model_type="llama4_text",
        config={
            **LLAMA_LIKE,
            "intermediate_size_mlp": 44,
            "head_dim": 8,
            "num_local_experts": 3,
            "num_experts_per_tok": 1,
            "moe_layers": [1],
            "attention_chunk_size": 6,
            "no_rope_layers": [1, 0],
            "layer_types": ["chunked_attention", "full_attention"],
        },
        style="chunked attention and full attention in turn, temperature by position, experts",
        causal_up_to=MOE_ROUNDING,
        footprint="other / causal",
        tags=_tags("moe", "window"),
    ),
    Architecture(
        name="arcee",
        model_type="arcee",
        config=LLAMA_LIKE,
        style="squared ReLU in the place of SwiGLU",
    ),
    Architecture(
        name="apertus",
        model_type="apertus",
        config={**LLAMA_LIKE, "rope_parameters": DEFAULT_ROPE},
        style="QK norm and a learned xIELU activation",
    ),
    Architecture(
        name="seed_oss",
        model_type="seed_oss",
        config={**LLAMA_LIKE, "head_dim": 10},
        style="biases on q, k and v, a head width of its own",
    ),
    Architecture(
        name="hunyuan_dense",
        model_type="hunyuan_v1_dense",
        config={**LLAMA_LIKE, "head_dim": 10},
        style="QK norm after the rotary",
    ),
    Architecture(
        name="minimax_m2",
        model_type="minimax_m2",
        config={
            **LLAMA_LIKE,
            "head_dim": 10,
            "rotary_dim": 6,
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
        },
        style="QK norm over the whole width, partial rotary, sigmoid router",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("moe"),
    ),
    Architecture(
        name="lfm2",
        model_type="lfm2",
        config={
            **LLAMA_LIKE,
            "num_hidden_layers": 2,
            "layer_types": ["conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
        },
        style="gated short convolutions and attention in turn",
        tags=_tags("scan"),
    ),
    Architecture(
        name="mamba",
        model_type="mamba",
        config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 5,
            "intermediate_size": 64,
        },
        style="a selective state space, no attention",
        limit=None,
        tags=_tags("scan"),
        implementations=("eager",),
    ),
    Architecture(
        name="falcon_mamba",
        model_type="falcon_mamba",
        config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 5,
            "intermediate_size": 64,
        },
        style="Mamba with norms on its B, C and time step",
        limit=None,
        tags=_tags("scan"),
        implementations=("eager",),
    ),
    Architecture(
        name="mamba2",
        model_type="mamba2",
        config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 5,
            "num_heads": 4,
            "head_dim": 16,
            "expand": 2,
            "n_groups": 2,
            "chunk_size": 5,
        },
        style="state spaces in chunks",
        limit=None,
        tags=_tags("scan"),
        implementations=("eager",),
    ),
    Architecture(
        name="rwkv",
        model_type="rwkv",
        config={
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "intermediate_size": 44,
            "context_length": CONTEXT,
            "use_cache": False,
        },
        style="RWKV-4: sums of keys and values with their largest exponent, shifts of tokens",
        limit=None,
        tags=_tags("scan"),
        implementations=("eager",),
    ),
    Architecture(
        name="recurrent_gemma",
        model_type="recurrent_gemma",
        config={
            **LLAMA_LIKE,
            "num_key_value_heads": 1,
            "num_hidden_layers": 3,
            "lru_width": 32,
            "attention_window_size": WINDOW,
        },
        style="Griffin: gated linear recurrences, windowed attention at every third layer",
        footprint="window:5",
        tags=_tags("scan", "window"),
        implementations=("eager",),
    ),
    Architecture(
        name="qwen3_next",
        model_type="qwen3_next",
        config={
            **LLAMA_LIKE,
            "head_dim": 8,
            "linear_key_head_dim": 12,  # of 6, PyTorch's own float32 is 1e-5 from float64
            "linear_value_head_dim": 10,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 20,
            "shared_expert_intermediate_size": 20,
        },
        style="gated delta rule and gated attention in turn, experts",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("scan", "moe"),
    ),
    Architecture(
        name="jamba",
        model_type="jamba",
        config={
            **LLAMA_LIKE,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "mamba_d_state": 5,
            "mamba_dt_rank": 3,
            "use_mamba_kernels": False,
        },
        style="Mamba and attention without positions in turn, experts",
        limit=None,
        causal_up_to=MOE_ROUNDING,
        tags=_tags("scan", "moe"),
    ),
    Architecture(
        name="bamba",
        model_type="bamba",
        config={
            **LLAMA_LIKE,
            **MAMBA2_LIKE,
            "attn_layer_indices": [1],
        },
        style="Mamba-2 and attention in turn",
        tags=_tags("scan"),
    ),
    Architecture(
        name="falcon_h1",
        model_type="falcon_h1",
        config={
            **LLAMA_LIKE,
            **MAMBA2_LIKE,
            "mamba_d_ssm": 64,
            "head_dim": 8,
        },
        style="Mamba-2 beside attention in each layer",
        tags=_tags("scan"),
    ),
    Architecture(
        name="granitemoehybrid",
        model_type="granitemoehybrid",
        config={
            **LLAMA_LIKE,
            **MAMBA2_LIKE,
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 28,
            "position_embedding_type": "rope",
        },
        style="Mamba-2 and attention in turn, experts beside a shared one",
        causal_up_to=MOE_ROUNDING,
        tags=_tags("scan", "moe"),
    ),
    Architecture(
        name="zamba2",
        model_type="zamba2",
        config={
            **NO_GQA,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "hybrid", "mamba"],
            "mamba_d_state": 6,
            "mamba_ngroups": 2,
            "n_mamba_heads": 4,
            "chunk_size": 5,
            "use_mem_rope": True,
            "adapter_rank": 4,
        },
        style="Mamba-2, with one shared attention block that also sees the embedding",
        tags=_tags("scan"),
    ),
)


class Padded(nn.Module):
    """The call people write for batches of unequal rows: ids and a mask, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(
            input_ids=input_ids, attention_mask=attention_mask, use_cache=False
        ).logits


def _entry(architecture: Architecture, implementation: str) -> ZooEntry:
    made = ids(VOCAB)
    return ZooEntry(
        name=f"hf_{architecture.name}_{implementation}",
        factory=lambda: build(architecture, implementation),
        inputs=made.make,
        axes=made.axes,
        roles=made.roles,
        origin=f"transformers, {implementation} attention: {architecture.style}",
        tags=frozenset({"hf", "whole_model", *architecture.tags}),
        limit=architecture.limit,
        beyond=architecture.beyond,
        expect=architecture.expect,
        causal_up_to=architecture.causal_up_to,
        prefix_up_to=architecture.prefix_up_to,
        cacheable=architecture.cacheable,
        footprint=architecture.footprint,
    )


def _padded_entry(architecture: Architecture, implementation: str, side: str) -> ZooEntry:
    made = with_padding_mask(ids(VOCAB), side=side)
    return ZooEntry(
        name=f"hf_{architecture.name}_{implementation}_padded_{side}",
        factory=lambda: Padded(build(architecture, implementation)),
        inputs=made.make,
        axes=made.axes,
        roles=made.roles,
        origin=f"transformers, {implementation} attention, attention_mask with {side} padding",
        tags=frozenset({"hf", "whole_model", "padding", *architecture.tags}),
        limit=architecture.limit,
        beyond=architecture.beyond,
        cacheable=architecture.cacheable,
        footprint=architecture.footprint,
        fully_masked_rows=side == "left",
        padded_rows_leak=side == "left" and implementation == "eager",
    )


_BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}

ENTRIES: tuple[ZooEntry, ...] = (
    *(
        _entry(architecture, implementation)
        for architecture in ARCHITECTURES
        for implementation in architecture.implementations
    ),
    *(
        _padded_entry(_BY_NAME[name], implementation, side)
        for name in ("gpt2", "llama", "mistral")
        for implementation in IMPLEMENTATIONS
        for side in ("left", "right")
    ),
)
