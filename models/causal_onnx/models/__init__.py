"""PyTorch modules with causal attention: what is exported."""

from causal_onnx.models.attention import GroupedQueryAttention, MultiHeadAttention
from causal_onnx.models.block import DecoderBlock
from causal_onnx.models.checkpoint import load_checkpoint
from causal_onnx.models.config import (
    AttentionConfig,
    DecoderConfig,
    LinearRopeScaling,
    Llama3RopeScaling,
)
from causal_onnx.models.convert_config import convert_config
from causal_onnx.models.convert_state_dict import convert_state_dict
from causal_onnx.models.decoder import DecoderLM
from causal_onnx.models.mechanism import CausalMechanismV1
from causal_onnx.models.presets import (
    gpt2_config,
    llama_135m_config,
    tiny_gpt2_config,
    tiny_llama_config,
)

__all__ = [
    "AttentionConfig",
    "CausalMechanismV1",
    "DecoderBlock",
    "DecoderConfig",
    "DecoderLM",
    "GroupedQueryAttention",
    "LinearRopeScaling",
    "Llama3RopeScaling",
    "MultiHeadAttention",
    "convert_config",
    "convert_state_dict",
    "gpt2_config",
    "llama_135m_config",
    "load_checkpoint",
    "tiny_gpt2_config",
    "tiny_llama_config",
]
