"""How a model's authors mean tokens to be chosen: what `generation_config.json` says of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.generation.sampling import Sampling
from causal_onnx.runtime.json_text import read_json_object
from causal_onnx.runtime.text.tokenizer import token_ids

__all__ = ["decoder_start", "default_sampling"]

SETTINGS_FILE = "generation_config.json"

TOP_K = 50
"""What transformers takes where a file asks for random choices and names none; 0 is for all."""

NOT_APPLIED: Mapping[str, tuple[object, ...]] = {
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (),
    "forced_decoder_ids": (),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (),
    "sequence_bias": (),
    "top_h": (),
    "typical_p": (1.0,),
    "watermarking_config": (),
}
"""Settings that change what is chosen and have no counterpart here -> the values, besides null, at
which they change nothing."""

log = logging.getLogger(__name__)


def default_sampling(folder: Path) -> Sampling:
    """The choice of tokens that the `generation_config.json` of a folder asks for.

    What the file leaves out is as in transformers. Without `"do_sample": true`, or without the
    file, the likeliest token is taken. Settings that have no counterpart are named in a warning in
    the log.

    Raises:
        ArtifactError: The file is damaged, or holds a value that makes no sense.
    """
    path = folder / SETTINGS_FILE
    if not path.is_file():
        return Sampling()
    settings = read_json_object(path)
    try:
        sampling = _sampling(settings)
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{path} cannot be used: {error}") from error
    ignored = [
        name
        for name, off in NOT_APPLIED.items()
        if settings.get(name) is not None and settings[name] not in (*off, [], {})
    ]
    if any(len(words) > 1 for words in settings.get("bad_words_ids") or ()):
        ignored.append("bad_words_ids of several ids")
    if ignored:
        log.warning("%s sets %s, which is not applied here", path, ", ".join(ignored))
    return sampling


def decoder_start(folder: Path) -> tuple[int, ...]:
    """The ids with which the decoder of a model with an encoder begins, by the
    `generation_config.json` of a folder; empty where it names none.

    Raises:
        ArtifactError: The file is damaged, or what it names is no id.
    """
    path = folder / SETTINGS_FILE
    settings = read_json_object(path) if path.is_file() else {}
    start = settings.get("decoder_start_token_id")
    if start is None:
        return ()
    found = token_ids(start, f"decoder_start_token_id in {path}")
    if len(found) != 1:
        raise ArtifactError(f"decoder_start_token_id in {path} is {start}, expected one id")
    return found


def _sampling(settings: Mapping[str, Any]) -> Sampling:
    given = {name: value for name, value in settings.items() if value is not None}
    suppressed = given.get("suppress_tokens", [])
    if not isinstance(suppressed, list):
        raise TypeError(f"suppress_tokens must be a list of ids, got {suppressed!r}")
    words = given.get("bad_words_ids", [])
    if not isinstance(words, list) or not all(isinstance(ids, list) and ids for ids in words):
        raise TypeError(f"bad_words_ids must be a list of lists of ids, got {words!r}")
    suppressed = [*suppressed, *(ids[0] for ids in words if len(ids) == 1)]
    forced_eos = given.get("forced_eos_token_id")
    if isinstance(forced_eos, list):
        # Of ids that all score 0, as it forces them, the search takes the smallest.
        forced_eos = min(forced_eos, default=None)
    always: dict[str, Any] = {
        "repetition_penalty": given.get("repetition_penalty", 1.0),
        "logit_bias": dict.fromkeys(suppressed, -math.inf),
        "begin_suppress_tokens": tuple(given.get("begin_suppress_tokens", ())),
        "forced_bos_token_id": given.get("forced_bos_token_id"),
        "forced_eos_token_id": forced_eos,
    }
    if given.get("do_sample", False) is not True:
        return Sampling(**always)
    return Sampling(
        **always,
        temperature=given.get("temperature", 1.0),
        top_k=given.get("top_k", TOP_K) or None,
        top_p=given.get("top_p"),
        min_p=given.get("min_p"),
    )
