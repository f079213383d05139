"""Folders of encoder-decoders: from transformers' checkpoint to the same texts without PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from causal_onnx.cli.main import main
from causal_onnx.export import ExportError, export_checkpoint
from causal_onnx.runtime import Model, load, verify_bundle
from causal_onnx.serve.errors import BadRequestError
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.requests.running import engine_of
from tests.export.test_encoder_decoder import BART, T5, VOCAB, WHISPER

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

PAD, EOS, NEW = 1, 2, 10
WORDS = [f"w{number}" for number in range(VOCAB - 3)]
SOURCES = ["w3 w9 w20", "w5", "w1 w2 w44 w8 w30 w7"]
SETTINGS: dict[str, dict[str, Any]] = {
    "bart": {"forced_bos_token_id": 7, "forced_eos_token_id": EOS, "suppress_tokens": [11]},
    "marian": {"bad_words_ids": [[PAD]], "forced_eos_token_id": EOS},
    "t5": {"begin_suppress_tokens": [9, 40]},
    "whisper": {"begin_suppress_tokens": [8, EOS], "suppress_tokens": [5, 6]},
}
"""What each model's generation_config.json says beside start, end and padding."""


SOURCE_MATTERS = {"bart": 1.5, "marian": 2, "t5": 2, "whisper": 2}
"""How much larger the weights are that read the source: else random models write all the same."""


def model_of(name: str) -> Any:
    torch.manual_seed(3)
    ids = {"decoder_start_token_id": PAD, "pad_token_id": PAD, "eos_token_id": EOS}
    text = {**BART, **ids, "max_position_embeddings": 40}
    made = {
        "bart": ("BartForConditionalGeneration", "BartConfig", text),
        "marian": ("MarianMTModel", "MarianConfig", text),
        "t5": ("T5ForConditionalGeneration", "T5Config", {**T5, **ids}),
        "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", {**WHISPER, **ids}),
    }
    of_model, of_config, settings = made[name]
    config = getattr(transformers, of_config)(**settings)
    model = getattr(transformers, of_model)(config).eval()
    if name != "t5":  # which is not drawn as small
        with torch.no_grad():
            for parameter in model.parameters():  # small weights score all ids alike
                parameter.mul_(4)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "encoder_attn" in path or "EncDecAttention" in path:
                parameter.mul_(SOURCE_MATTERS[name])
    model.generation_config = transformers.GenerationConfig(**ids, **SETTINGS[name])
    return model


def write_tokenizer(folder: Path) -> None:
    """A word is an id, and a text ends with EOS."""
    vocab = {"<s>": 0, "<pad>": PAD, "</s>": EOS} | {w: i + 3 for i, w in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<pad>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", EOS)]
    )
    made.add_special_tokens(["<s>", "<pad>", "</s>"])
    made.save(str(folder / "tokenizer.json"))


def sound(rows: int) -> np.ndarray:
    generator = np.random.default_rng(rows)
    return generator.standard_normal((rows, WHISPER["num_mel_bins"], 24)).astype(np.float32)


@pytest.fixture(scope="module", params=["bart", "marian", "t5", "whisper"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[str, Any, Path]:
    name, place = request.param, tmp_path_factory.mktemp("checkpoint")
    module = model_of(name)
    module.save_pretrained(place / "checkpoint")
    write_tokenizer(place / "checkpoint")
    if name == "whisper":
        features = transformers.WhisperFeatureExtractor(feature_size=WHISPER["num_mel_bins"])
        features.save_pretrained(place / "checkpoint")
    export_checkpoint(place / "checkpoint", place / "model")
    # What is saved is not all of it: Marian's table of positions is made anew.
    return name, type(module).from_pretrained(place / "checkpoint").eval(), place


def ours(name: str, rows: int) -> Mapping[str, Any]:
    return {"input_features": sound(rows)} if name == "whisper" else {"input_ids": SOURCES[:rows]}


def theirs(name: str, module: Any, folder: Path, rows: int, **options: Any) -> list[list[int]]:
    """What transformers writes after each source, up to the end of the text."""
    if name == "whisper":
        given = {"input_features": torch.from_numpy(sound(rows))}
    else:
        reader = transformers.PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "checkpoint" / "tokenizer.json"), pad_token="<pad>"
        )
        given = dict(reader(SOURCES[:rows], return_tensors="pt", padding=True))
        given.pop("token_type_ids", None)
    start = torch.full((rows, 1), PAD)
    found = module.generate(
        **given, decoder_input_ids=start, max_new_tokens=NEW, do_sample=False, **options
    )
    return [_written(row.tolist()) for row in found]


def _written(ids: list[int]) -> list[int]:
    ids = ids[1:] if ids[0] == PAD else ids  # Whisper's leaves the start out
    return ids[: ids.index(EOS) + 1] if EOS in ids else ids


def loaded(folder: Path) -> Model:
    return load(folder / "model", threads=1)


def test_sources_of_several_lengths_share_a_batch(folders: tuple[str, Any, Path]) -> None:
    name, module, place = folders
    found = loaded(place).generate_batch([None] * 3, max_new_tokens=NEW, inputs=ours(name, 3))
    expected = theirs(name, module, place, 3)
    assert [list(item.ids) for item in found] == expected
    assert len({tuple(ids) for ids in expected}) > 1


def test_beams_are_those_of_transformers(folders: tuple[str, Any, Path]) -> None:
    name, module, place = folders
    found = loaded(place).beam_search(max_new_tokens=NEW, beams=3, inputs=ours(name, 1))[0]
    (expected,) = theirs(name, module, place, 1, num_beams=3)
    if name == "whisper":  # its beams leave out the id that ends a text
        assert list(found.ids) in (expected, [*expected, EOS])
    else:
        assert list(found.ids) == expected


def test_the_folder_holds_what_generating_needs(folders: tuple[str, Any, Path]) -> None:
    name, _, place = folders
    settings = json.loads((place / "model" / "generation_config.json").read_text())
    assert settings.items() >= {**SETTINGS[name], "decoder_start_token_id": PAD}.items()
    assert (place / "model" / "preprocessor_config.json").is_file() == (name == "whisper")
    assert verify_bundle(place / "model").passed
    assert loaded(place).selftest().passed
    own = "attention_mask" if name == "whisper" else "decoder_attention_mask"
    assert loaded(place).contract.mask == own
    certificate = loaded(place).certificate
    assert certificate is not None
    assert certificate["verdict"] == "causal"


def test_the_command_reads_a_source(
    folders: tuple[str, Any, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    name, _, place = folders
    np.save(tmp_path / "sound.npy", sound(1))
    given = [f"--input=input_features={tmp_path / 'sound.npy'}"]
    arguments = given if name == "whisper" else ["--source", SOURCES[0]]
    command = ["generate", str(place / "model"), "--max-new-tokens", str(NEW), "--json"]
    assert main([*command, *arguments]) == 0
    expected = loaded(place).generate(max_new_tokens=NEW, inputs=ours(name, 1))
    said = json.loads(capsys.readouterr().out)
    assert (said["ids"], said["text"]) == (list(expected.ids), expected.text)


def test_a_source_that_is_missing_or_of_another_kind_is_named(
    folders: tuple[str, Any, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name, _, place = folders
    model = str(place / "model")
    with pytest.raises(ValueError, match=r"give the others as inputs=\{'input_"):
        loaded(place).generate(max_new_tokens=NEW)
    if name == "whisper":
        assert main(["generate", model, "--source", "w3"]) == 1
        assert "reads no source text; it takes input_features: float32" in capsys.readouterr().err
    assert main(["generate", model]) == 2
    assert "one of --prompt, --prompt-file, --ids and --source" in capsys.readouterr().err


def test_a_prompt_follows_the_start(folders: tuple[str, Any, Path]) -> None:
    name, _, place = folders
    model, inputs = loaded(place), ours(name, 1)
    found = model.generate("w3 w4", max_new_tokens=4, inputs=inputs)
    assert found.ids == model.generate([PAD, 6, 7], max_new_tokens=4, inputs=inputs).ids
    assert model.generate([PAD], max_new_tokens=4, inputs=inputs).ids == (
        model.generate(max_new_tokens=4, inputs=inputs).ids
    )


def test_encoders_of_other_things_are_refused_by_name(tmp_path: Path) -> None:
    config = {"model_type": "speech_to_text", "is_encoder_decoder": True}
    config["architectures"] = ["Speech2TextForConditionalGeneration"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"'Speech2Text.*, an encoder with a decoder; of those"):
        export_checkpoint(tmp_path, tmp_path / "model")


def test_the_server_says_that_it_serves_the_tensors_alone(folders: tuple[str, Any, Path]) -> None:
    served = ServedModel.of("m", loaded(folders[2]))
    try:
        with pytest.raises(BadRequestError, match="m has an encoder, which reads a source beside"):
            engine_of(served)
        assert served.sequences is not None
    finally:
        served.close()
