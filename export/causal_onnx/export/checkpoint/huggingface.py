"""Open a folder of Hugging Face's layout as the library's own model, or say why not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from causal_onnx.export.errors import ExportError
from causal_onnx.export.outcome import Refusal, ask, handed_over
from causal_onnx.export.source.encoder_decoder import SPEECH
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.json_text import read_json_object
from causal_onnx.runtime.text.extras import import_extra

__all__ = [
    "CONFIG",
    "TOKENIZER",
    "open_huggingface",
    "open_tokenizer",
    "quiet_transformers",
    "read_config",
]

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"

OLDER_TOKENIZERS = ("tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
"""What tokenizers were stored as before tokenizer.json; transformers reads them."""

_READ_MORE = frozenset({"encoder-decoder", "seamless_m4t", "seamless_m4t_v2", "prophetnet"})
"""Kinds among those of text to text that have inputs, or several models, of their own."""

MAX_NAMED = 4
"""Weights listed in one message."""

EXTRA_OUTPUTS = ("output_attentions", "output_hidden_states", "output_router_logits")
"""Settings that make the model return more than its logits."""


def read_config(path: Path) -> dict[str, Any]:
    """The content of a configuration file.

    Raises:
        ExportError: It is no JSON object.
    """
    try:
        return read_json_object(path)
    except ArtifactError as error:
        raise ExportError(str(error)) from error


def open_huggingface(
    folder: Path, *, trust_remote_code: bool, source: Path | None = None
) -> tuple[nn.Module, list[str]]:
    """Load the language model in a folder, in fp32 and eval mode, without its cache.

    Nothing is fetched, and no code of the folder is run unless it is trusted.

    Args:
        folder: With config.json and safetensors files.
        trust_remote_code: Run the Python files that config.json names in `auto_map`.
        source: Where the same checkpoint lies with weights that can be mapped. None: `folder`.

    Returns:
        The model, and what the caller should be told.

    Raises:
        ExportError: It is neither a causal language model nor one with an encoder of text or
            Whisper's, or cannot be loaded whole.
        ImportError: transformers is not installed.
    """
    data = read_config(folder / CONFIG)
    transformers = _import_transformers()
    _refuse_other_kinds(folder, data, transformers, trust_remote_code=trust_remote_code)
    opener = transformers.AutoModelForCausalLM
    if data.get("is_encoder_decoder"):
        is_speech = data.get("model_type") == SPEECH
        opener = (
            transformers.AutoModelForSpeechSeq2Seq
            if is_speech
            else transformers.AutoModelForSeq2SeqLM
        )
    with quiet_transformers():
        answer = ask(
            handed_over,
            opener.from_pretrained,
            source or folder,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            dtype=torch.float32,
            output_loading_info=True,
        )
    if isinstance(answer, Refusal):
        said = str(answer).replace(str(source or folder), str(folder))
        raise ExportError(f"{folder} cannot be loaded by transformers: {said}") from answer.error
    model, info = answer
    if not isinstance(model, nn.Module):
        raise ExportError(f"{folder} was loaded as {type(model).__name__}, expected a module")
    missing = sorted(map(str, info.get("missing_keys", ())))
    if missing:
        raise ExportError(
            f"{folder} lacks {len(missing)} weights of {type(model).__name__}, such as "
            f"{', '.join(missing[:MAX_NAMED])}: transformers would fill them with random numbers. "
            "Pass the whole checkpoint"
        )
    config: Any = model.config
    for name in EXTRA_OUTPUTS:
        if hasattr(config, name):
            setattr(config, name, False)
    config.use_cache = False
    unexpected = sorted(map(str, info.get("unexpected_keys", ())))
    warnings = []
    if unexpected:
        warnings.append(
            f"the checkpoint has weights that {type(model).__name__} does not have "
            f"({len(unexpected)}, such as {', '.join(unexpected[:MAX_NAMED])}); they are left out"
        )
    return model.eval(), warnings


def open_tokenizer(folder: Path, scratch: Path) -> tuple[Path | None, list[str]]:
    """A folder with a tokenizer.json: this one, or `scratch`, where an older layout is converted.

    Returns:
        The folder, or None where there is no tokenizer, and what the caller should be told.
    """
    if (folder / TOKENIZER).is_file():
        return folder, []
    older = [name for name in OLDER_TOKENIZERS if (folder / name).is_file()]
    if not older:
        return None, ["the checkpoint has no tokenizer: the model takes and returns token ids only"]
    transformers = _import_transformers()
    with quiet_transformers():
        tokenizer = ask(
            handed_over, transformers.AutoTokenizer.from_pretrained, folder, local_files_only=True
        )
        if not isinstance(tokenizer, Refusal):
            saved = ask(handed_over, tokenizer.save_pretrained, scratch)
            tokenizer = saved if isinstance(saved, Refusal) else tokenizer
    if isinstance(tokenizer, Refusal) or not (scratch / TOKENIZER).is_file():
        reason = str(tokenizer) if isinstance(tokenizer, Refusal) else f"it has no {TOKENIZER}"
        return None, [
            f"the tokenizer ({', '.join(older)}) could not be converted: {reason}. Save it as "
            f"{TOKENIZER} and export again, or pass --tokenizer to the commands that read text"
        ]
    return scratch, []


def _import_transformers() -> Any:
    return import_extra("transformers", extra="hf", purpose="a checkpoint in Hugging Face's layout")


def _refuse_other_kinds(
    folder: Path, data: Mapping[str, Any], transformers: Any, *, trust_remote_code: bool
) -> None:
    """Raise where the folder holds no causal language model, or needs code of its own."""
    place = folder / CONFIG
    code = data.get("auto_map")
    if code and not trust_remote_code:
        files = sorted(map(str, code.values())) if isinstance(code, Mapping) else [str(code)]
        raise ExportError(
            f"{place} names code of its own in auto_map ({', '.join(files[:MAX_NAMED])}), which is "
            "not run unless you trust it: trust_remote_code=True. If transformers knows "
            f"model_type {data.get('model_type')!r}, remove auto_map, and it uses its own code"
        )
    if data.get("quantization_config") is not None:
        raise ExportError(
            f"{place} has a quantization_config: the weights are packed. Export the checkpoint "
            "they were quantised from, with precision='int4' or 'int8'"
        )
    stated = data.get("architectures")
    classes = [name for name in stated if isinstance(name, str)] if isinstance(stated, list) else []
    named = f"{place} describes {classes[0] if classes else data.get('model_type')!r}"
    supported = (
        "supported are decoders that continue a text, classes like LlamaForCausalLM and "
        "GPT2LMHeadModel"
    )
    if data.get("is_encoder_decoder"):
        _refuse_other_encoders(data, named, classes, transformers)
        return
    known = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    causal = {name for names in known.values() for name in _names(names)}
    if code and trust_remote_code:
        return
    if data.get("model_type") not in known:
        raise ExportError(
            f"{named} of model_type {data.get('model_type')!r}, for which transformers "
            f"{transformers.__version__} has no causal language model; {supported}"
        )
    if classes and not causal & set(classes):
        raise ExportError(f"{named}, which is not a causal language model; {supported}")
    if any(name.endswith("ForConditionalGeneration") for name in classes):
        raise ExportError(f"{named}, which takes more than token ids; {supported}")


def _refuse_other_encoders(
    data: Mapping[str, Any], named: str, classes: Sequence[str], transformers: Any
) -> None:
    """Raise where what is read is neither text nor what Whisper reads."""
    auto, kind = transformers.models.auto.modeling_auto, data.get("model_type")
    known = dict(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    known[SPEECH] = auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES[SPEECH]
    known = {name: value for name, value in known.items() if name not in _READ_MORE}
    supported = (
        "of those, what is supported are such as read text, classes like "
        "T5ForConditionalGeneration and MarianMTModel, and WhisperForConditionalGeneration. Load "
        "it yourself, and export(model, path, example={...}, axes=[...], cache=True)"
    )
    if kind not in known or (classes and not set(_names(known[kind])) & set(classes)):
        raise ExportError(f"{named}, an encoder with a decoder; {supported}")


def _names(value: str | tuple[str, ...]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else value


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the library's progress bars and advice: what matters of it is said here."""
    logging = _import_transformers().utils.logging
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
