"""The choice of tokens that a folder asks for is the one that transformers makes of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from causal_onnx.runtime.generation.defaults import default_sampling
from causal_onnx.runtime.generation.sampling import probabilities

PROMPT = [5, 3, 8, 5]


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True},
        {"do_sample": True, "temperature": 0.6, "top_p": 0.9},
        {
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.8,
            "top_k": 20,
            "repetition_penalty": 2.0,
        },
        {"do_sample": True, "top_k": 0, "min_p": 0.01, "suppress_tokens": [1, 2]},
        {"do_sample": True, "temperature": 1.5, "top_k": None, "top_p": None},
    ],
)
def test_the_next_token_has_the_distribution_of_transformers(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_embd=16, n_layer=1, n_head=2, initializer_range=1.0)
    model = GPT2LMHeadModel(config).eval()
    model.generation_config = GenerationConfig.from_dict(settings)
    options = {"max_new_tokens": 1, "output_scores": True, "return_dict_in_generate": True}
    found = model.generate(torch.tensor([PROMPT]), pad_token_id=0, output_logits=True, **options)
    (tmp_path / "generation_config.json").write_text(json.dumps(settings))
    sampling = default_sampling(tmp_path)
    ours = probabilities(found.logits[0][0].numpy(), sampling, prompt=PROMPT)
    np.testing.assert_allclose(ours, found.scores[0][0].softmax(-1).numpy(), atol=1e-6)
    assert 1 < np.count_nonzero(ours) <= 97
