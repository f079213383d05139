"""Configurations of models in use, and tiny ones of the same kinds."""

from __future__ import annotations

from causal_onnx.models.config import AttentionConfig, DecoderConfig

__all__ = ["gpt2_config", "llama_135m_config", "tiny_gpt2_config", "tiny_llama_config"]


def gpt2_config() -> DecoderConfig:
    """GPT-2 small, 124 million parameters.

    Source: https://huggingface.co/openai-community/gpt2, config.json.
    """
    return DecoderConfig(
        vocab_size=50_257,
        num_layers=12,
        attention=AttentionConfig(
            embed_dim=768,
            num_heads=12,
            max_seq_len=1024,
            qkv_bias=True,
            out_bias=True,
            dropout=0.1,
        ),
        mlp_dim=3072,
        activation="gelu_tanh",
        mlp_bias=True,
        learned_positions=True,
        dropout=0.1,
    )


def llama_135m_config() -> DecoderConfig:
    """A Llama-style model of 135 million parameters, the sizes of SmolLM-135M.

    Source: https://huggingface.co/HuggingFaceTB/SmolLM-135M, config.json.
    """
    return DecoderConfig(
        vocab_size=49_152,
        num_layers=30,
        attention=AttentionConfig(
            embed_dim=576, num_heads=9, num_kv_heads=3, max_seq_len=2048, rotary="half"
        ),
        mlp_dim=1536,
        activation="swiglu",
        norm="rms",
    )


def tiny_gpt2_config() -> DecoderConfig:
    """A GPT-2-style model of 36 thousand parameters over bytes."""
    return DecoderConfig(
        vocab_size=256,
        num_layers=2,
        attention=AttentionConfig(
            embed_dim=32, num_heads=4, max_seq_len=64, qkv_bias=True, out_bias=True
        ),
        mlp_dim=128,
        activation="gelu_tanh",
        mlp_bias=True,
        learned_positions=True,
    )


def tiny_llama_config() -> DecoderConfig:
    """A Llama-style model of 33 thousand parameters over bytes, with shared key-value heads."""
    return DecoderConfig(
        vocab_size=256,
        num_layers=2,
        attention=AttentionConfig(
            embed_dim=32, num_heads=4, num_kv_heads=2, max_seq_len=64, rotary="half"
        ),
        mlp_dim=96,
        activation="swiglu",
        norm="rms",
    )
