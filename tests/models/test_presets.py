from __future__ import annotations

import pytest
import torch

from causal_onnx.models import (
    DecoderConfig,
    DecoderLM,
    gpt2_config,
    llama_135m_config,
    tiny_gpt2_config,
    tiny_llama_config,
)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        # As transformers counts them for openai-community/gpt2 and HuggingFaceTB/SmolLM-135M.
        (gpt2_config(), 124_439_808),
        (llama_135m_config(), 134_515_008),
        (tiny_gpt2_config(), 35_712),
        (tiny_llama_config(), 32_928),
    ],
    ids=["gpt2", "llama-135m", "tiny-gpt2", "tiny-llama"],
)
def test_models_have_the_sizes_of_the_originals(config: DecoderConfig, parameters: int) -> None:
    with torch.device("meta"):
        model = DecoderLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
