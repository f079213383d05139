"""Models of every layout: caches of other exporters, and windows of our own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from causal_onnx.runtime import Model, PromptLookup, Sampling, load
from causal_onnx.serve import Engine, EngineOptions
from causal_onnx.serve.engine import guesses
from tests.runtime.foreign.files import ALL, load_foreign

OPTIONS = EngineOptions(sequences=3, chunk=4)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let guessing pay, however fast this machine is now."""
    monkeypatch.setattr(guesses, "piece_costs", lambda rows, ids: [1.0] * len(ids))


def prompts_of(model: Model, count: int = 5) -> list[list[int]]:
    """Prompts of which most begin alike, within the smallest vocabulary and context."""
    vocab = next(s.vocab_size for s in model.contract.inputs if s.vocab_size is not None)
    beginning = [3, 1, 4, 1, 5, 2, 6, 5]
    prompts = [[1 + place] if place % 3 == 2 else [*beginning, place] for place in range(count)]
    return [[token % vocab for token in prompt] for prompt in prompts]


def check(model: Model) -> list[int]:
    """Serve prompts together, each alone by an engine that keeps nothing, and with guesses; how
    many positions were found."""
    options = {"max_new_tokens": 6, "sampling": Sampling(temperature=0.7), "seed": 1}
    with Engine(model, options=OPTIONS) as engine:
        first = engine.submit(prompts_of(model)[0], **options)
        first.results()
        begun = [engine.submit(prompt, **options) for prompt in prompts_of(model)]
        together = [generation.results() for generation in begun]
    with Engine(model, options=replace(OPTIONS, prefix_positions=0)) as engine:
        alone = [engine.submit(prompt, **options).results() for prompt in prompts_of(model)]
    assert together == alone
    with Engine(model, options=replace(OPTIONS, draft=PromptLookup())) as engine:
        for prompt, (found,) in zip(prompts_of(model), alone, strict=True):
            given = {"prediction": found.ids} if engine.no_guesses is None else {}
            generation = engine.submit(prompt, **options, **given)
            assert generation.results() == [found]
            assert (generation.accepted_tokens > 0) == (engine.no_guesses is None)
    return [generation.cached_tokens for generation in begun]


@pytest.mark.parametrize("name", ALL)
def test_a_layout_of_another_exporter_is_served(name: str, tmp_path: Path) -> None:
    assert check(load_foreign(name, tmp_path)) == [8, 8, 0, 8, 8]


def test_a_cache_that_keeps_a_window_is_served(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="a module is exported with PyTorch")
    from causal_onnx.export import export
    from causal_onnx.models import AttentionConfig, DecoderConfig, DecoderLM

    attention = AttentionConfig(embed_dim=16, num_heads=2, max_seq_len=64, rotary="half", window=5)
    config = DecoderConfig(vocab_size=40, num_layers=2, attention=attention, mlp_dim=32)
    export(DecoderLM(config, seed=0).eval(), tmp_path / "m.onnx", cache=True, max_seq_len=64)
    model = load(tmp_path / "m.onnx", threads=1)
    assert any(pair.bounded is not None for pair in model.contract.cache)
    assert check(model) == [8, 8, 0, 8, 8]
    with Engine(model, options=replace(OPTIONS, draft=PromptLookup())) as engine:
        assert engine.no_guesses == (
            "its cache keeps a window, which cannot take back what was guessed wrongly"
        )
