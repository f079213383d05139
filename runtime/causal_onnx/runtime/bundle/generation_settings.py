"""generation_config.json: which ids begin and end a text, and how tokens are chosen by default.

The layout is Hugging Face's, and what we do not know is kept: it may be for another reader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from causal_onnx.runtime.contract import Contract
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.json_text import read_optional_json_object
from causal_onnx.runtime.text.tokenizer import token_ids

__all__ = ["GENERATION_CONFIG", "generation_settings", "settings_bytes", "special_tokens"]

GENERATION_CONFIG = "generation_config.json"
STATED = (GENERATION_CONFIG, "config.json")
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
OF_MODELS = (
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
)
"""What stands in the config.json of folders that are older than generation_config.json."""


def generation_settings(contract: Contract, folder: Path | None) -> dict[str, Any]:
    """The settings in a folder, with the special tokens that only its config.json or the contract
    names; empty where nobody names any.

    Args:
        contract: Of the model.
        folder: With generation_config.json and config.json, as far as there are any; None: nothing
            but the contract is asked.

    Raises:
        ArtifactError: One of them is no JSON object, or its special tokens are no ids.
    """
    stated = (
        {}
        if folder is None
        else {name: read_optional_json_object(folder / name) for name in STATED}
    )
    settings = dict(stated.get(GENERATION_CONFIG, {}))
    if not settings:
        older = stated.get("config.json", {})
        settings = {key: older[key] for key in OF_MODELS if older.get(key) is not None}
    for where, document in {**stated, "the contract": _tokens_of(contract)}.items():
        for key, value in special_tokens(document, where).items():
            if key not in special_tokens(settings, GENERATION_CONFIG):
                settings[key] = value
    return settings


def special_tokens(document: Mapping[str, Any], where: str) -> dict[str, int | list[int]]:
    """`bos_token_id`, `eos_token_id` and `pad_token_id`, as far as a document names them.

    Raises:
        ArtifactError: They are no ids.
    """
    found: dict[str, int | list[int]] = {}
    for key in SPECIAL:
        value = document.get(key)
        if value is None or (value == -1 and key != "eos_token_id"):  # both say: there is none
            continue
        ids = token_ids(value, f"{key} in {where}")
        if len(ids) != 1 and key != "eos_token_id":
            raise ArtifactError(f"{key} in {where} is {value}, expected one id")
        found[key] = value
    return found


def settings_bytes(settings: Mapping[str, Any]) -> bytes:
    """The file's content, the same for equal settings."""
    return (json.dumps(settings, sort_keys=True, indent=1) + "\n").encode("ascii")


def _tokens_of(contract: Contract) -> dict[str, Any]:
    eos = list(contract.eos_token_ids)
    return {
        "bos_token_id": contract.bos_token_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": contract.pad_token_id,
    }
