"""What a model was trained on is the limit of its file, unless another is asked for."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from causal_onnx.export import export
from causal_onnx.export.source.language import trained_length
from causal_onnx.runtime import load
from tests.export.quick import quick_export

LLAMA: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 24,
}


def llama(**settings: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **settings})).eval()


def rope(**parameters: Any) -> transformers.PreTrainedConfig:
    base = {"rope_theta": 10000.0, **parameters}
    return transformers.LlamaConfig(**LLAMA, rope_parameters=base)


CONFIGS = {
    "llama": (lambda: rope(rope_type="default"), 24),
    "linear": (lambda: rope(rope_type="linear", factor=4.0), 24),
    "yarn before": (
        lambda: rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=24),
        96,
    ),
    "yarn after": (
        lambda: rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=6),
        24,
    ),
    "llama 3.2": (
        lambda: rope(
            rope_type="llama3",
            factor=32.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=6,
        ),
        24,
    ),
    "gpt2": (lambda: transformers.GPT2Config(n_positions=11), 11),
    "mpt": (lambda: transformers.MptConfig(max_seq_len=33), 33),
    "bloom as published": (lambda: transformers.BloomConfig(seq_length=2048), 2048),
    "bloom": (transformers.BloomConfig, None),
    "mistral": (lambda: transformers.MistralConfig(max_position_embeddings=40), 40),
    "layers of two kinds": (
        lambda: transformers.Gemma3TextConfig(max_position_embeddings=48, sliding_window=5),
        48,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_length_is_read_from_the_configuration(name: str) -> None:
    make, expected = CONFIGS[name]
    module = torch.nn.Identity()
    module.config = make()
    assert trained_length(module) == expected


@pytest.mark.parametrize(
    "config", [None, SimpleNamespace(max_seq_len=9), SimpleNamespace(model_type="x", n_positions=1)]
)
def test_configurations_of_other_kinds_say_nothing(config: object) -> None:
    module = torch.nn.Identity()
    module.config = config
    assert trained_length(module) is None


def test_it_is_the_limit_of_the_file_and_what_the_checks_run_at(tmp_path: Path) -> None:
    report = export(llama(), tmp_path / "m.onnx")
    assert "max_seq_len 24 (trained on 24)" in str(report)
    assert report.to_dict()["trained_len"] == 24
    assert max(case.seq for case in report.parity.cases if not case.refused) == 24
    model = load(tmp_path / "m.onnx")
    assert model(np.zeros((1, 24), np.int64)).shape == (1, 24, 31)
    with pytest.raises(ValueError, match="24"):
        model(np.zeros((1, 25), np.int64))


@pytest.mark.parametrize(("asked", "warns"), [(12, False), (24, False), (40, True)])
def test_another_limit_may_be_asked_for(asked: int, warns: bool, tmp_path: Path) -> None:
    report = export(llama(), tmp_path / "m.onnx", max_seq_len=asked)
    assert report.contract.max_seq_len == asked
    said = [text for text in report.warnings if "was trained on 24 positions" in text]
    assert bool(said) == warns


def test_what_the_module_takes_limits_it_too(tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=31, n_positions=24, n_embd=16, n_layer=1, n_head=2)
    module = transformers.GPT2LMHeadModel(config).eval()
    module.config.n_positions = 99
    assert quick_export(module, tmp_path / "m.onnx").contract.max_seq_len == 24


def test_a_length_beyond_every_request_is_no_limit(tmp_path: Path) -> None:
    module = llama(max_position_embeddings=10_000_000)
    assert quick_export(module, tmp_path / "m.onnx").contract.max_seq_len is None
