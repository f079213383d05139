"""Whole encoder-decoders of transformers: one file, a source of any length, generation from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from causal_onnx.export import export
from causal_onnx.runtime import Model, load
from tests.export.quick import quick_export

transformers = pytest.importorskip("transformers")

VOCAB, START, END, PLACES = 61, 0, 2, 40
BART = {
    "vocab_size": VOCAB,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "pad_token_id": 1,
    "bos_token_id": START,
    "eos_token_id": END,
    "decoder_start_token_id": START,
}
WHISPER = {**BART, "max_source_positions": 12, "max_target_positions": PLACES, "num_mel_bins": 6}
T5 = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}


def model_of(name: str) -> Any:
    torch.manual_seed(3)
    made = {
        "bart": lambda: transformers.BartForConditionalGeneration(
            transformers.BartConfig(
                **BART, max_position_embeddings=PLACES, forced_eos_token_id=None
            )
        ),
        "marian": lambda: transformers.MarianMTModel(
            transformers.MarianConfig(
                **BART, max_position_embeddings=PLACES, forced_eos_token_id=None
            )
        ),
        "t5": lambda: transformers.T5ForConditionalGeneration(
            transformers.T5Config(
                **T5, decoder_start_token_id=START, pad_token_id=1, eos_token_id=END
            )
        ),
        "whisper": lambda: transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(**WHISPER)
        ),
    }
    model = made[name]().eval()
    if name != "t5":  # which is not drawn as small
        with torch.no_grad():
            for parameter in model.parameters():  # small weights score all ids alike
                parameter.mul_(4)
    return model


def source_of(name: str, rows: int, size: int) -> Mapping[str, torch.Tensor]:
    if name == "whisper":
        return {"input_features": torch.randn(rows, WHISPER["num_mel_bins"], 24)}
    return {"input_ids": torch.randint(3, VOCAB, (rows, size))}


@pytest.fixture(scope="module", params=["bart", "marian", "t5", "whisper"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[str, Any, Path]:
    name, place = request.param, tmp_path_factory.mktemp("whole") / "m.onnx"
    module = model_of(name)
    source = source_of(name, 3, 5)
    axes = [{0: "batch"} if name == "whisper" else {0: "batch", 1: "source"}]
    example = {**source, "decoder_input_ids": torch.randint(3, VOCAB, (3, 7))}
    axes = [*axes, {0: "batch", 1: "seq"}]
    export(module, place, example=example, axes=axes, cache=True, effort="quick")
    return name, module, place


def arrays(source: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in source.items()}


def theirs(module: Any, source: Mapping[str, torch.Tensor], **options: Any) -> list[int]:
    ids = module.generate(
        **source,
        decoder_input_ids=torch.tensor([[START]]),
        max_new_tokens=12,
        do_sample=False,
        **options,
    )
    found = [int(i) for i in ids[0]]
    return found[1:] if found[0] == START else found  # Whisper's leaves the prompt out


def loaded(path: Path) -> Model:
    return load(path, threads=1)


@pytest.mark.parametrize("size", [1, 4, 19])
def test_greedy_continuations_are_those_of_transformers(
    exported: tuple[str, Any, Path], size: int
) -> None:
    name, module, path = exported
    source = source_of(name, 1, size)
    found = loaded(path).generate([START], max_new_tokens=12, inputs=arrays(source))
    assert list(found.ids) == theirs(module, source)


def test_the_encoder_runs_in_the_first_call_of_a_stream_only(
    exported: tuple[str, Any, Path],
) -> None:
    name, _, path = exported
    assert loaded(path).contract.once_names == set(source_of(name, 1, 4))
    ids, source = np.array([[START, 5, 9, 4]]), arrays(source_of(name, 1, 4))
    stream = loaded(path).stream(inputs=source)
    steps = [stream.run(ids[:, t : t + 1])["logits"] for t in range(4)]
    whole = loaded(path).run(decoder_input_ids=ids, **source)["logits"]
    np.testing.assert_allclose(np.concatenate(steps, 1), whole, rtol=0, atol=1e-5)


def test_beams_are_those_of_transformers(exported: tuple[str, Any, Path]) -> None:
    name, module, path = exported
    source = source_of(name, 1, 6)
    best = loaded(path).beam_search([START], max_new_tokens=12, beams=3, inputs=arrays(source))[0]
    assert list(best.ids) == theirs(module, source, num_beams=3)


def test_rows_of_a_batch_keep_their_own_source(exported: tuple[str, Any, Path]) -> None:
    name, _, path = exported
    model, source = loaded(path), arrays(source_of(name, 2, 6))
    together = model.generate_batch([[START], [START]], max_new_tokens=9, n=2, inputs=source)
    for row in range(2):
        alone = {key: value[row : row + 1] for key, value in source.items()}
        expected = model.generate([START], max_new_tokens=9, inputs=alone).ids
        assert [together[2 * row].ids, together[2 * row + 1].ids] == [expected, expected]


def test_a_source_that_is_missing_or_wrong_is_named(exported: tuple[str, Any, Path]) -> None:
    name, _, path = exported
    model, source = loaded(path), arrays(source_of(name, 2, 6))
    (key,) = source
    with pytest.raises(ValueError, match="generating needs a language model"):
        model.generate([START])
    with pytest.raises(ValueError, match="unknown input 'memory'; the inputs are"):
        model.generate([START], inputs={"memory": source[key]})
    with pytest.raises(ValueError, match=f"'{key}' has 2 rows, expected 1, or one"):
        model.generate([START], inputs=source)


def test_what_it_is_called_with_need_not_be_told(tmp_path: Path) -> None:
    model = quick_export(model_of("t5"), tmp_path / "m.onnx", cache=True)
    first = [spec.axes for spec in model.contract.inputs[:3]]
    assert first == [("batch", "source"), ("batch", "source"), ("batch", "seq")]
    assert model.contract.inputs[1].kind == "keep_mask"
