"""genai_config.json: what onnxruntime-genai must know to run a cached language model.

Source: https://onnxruntime.ai/docs/genai/reference/config.html.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from causal_onnx.runtime.artifact.folder import MODEL
from causal_onnx.runtime.bundle.generation_settings import GENERATION_CONFIG, special_tokens
from causal_onnx.runtime.contract import Contract, TensorSpec

__all__ = ["genai_config"]

UNLIMITED = 1 << 15
"""Positions allowed where the contract knows no limit; onnxruntime-genai wants a number."""


def genai_config(
    contract: Contract,
    certificate: Mapping[str, Any] | None,
    settings: Mapping[str, Any],
) -> bytes | None:
    """The file's content, or None where onnxruntime-genai cannot run the model.

    It runs language models whose cache is named as the field names it and keeps all positions.

    Args:
        contract: Of the model.
        certificate: Of the model, which knows the number of query heads.
        settings: As in generation_config.json: special tokens, and how tokens are chosen.
    """
    ids = [spec for spec in contract.inputs if spec.name not in contract.optional_names]
    results = [spec for spec in contract.outputs if spec.name not in contract.present_names]
    if contract.adapters:
        return None  # it passes no inputs that the graph may be called without
    if len(ids) != 1 or len(results) != 1 or ids[0].vocab_size is None:
        return None
    if ids[0].axes != ("batch", "seq") or results[0].axes[:2] != ("batch", "seq"):
        return None
    pasts = [spec for spec in contract.inputs if spec.name in contract.past_names]
    past = _layers(pasts, contract)
    if past is None:
        return None
    vocab_size = results[0].axes[-1]
    heads, width = pasts[0].axes[1], pasts[0].axes[3]
    cores = (certificate or {}).get("cores") or [{}]
    assert isinstance(heads, int)  # as `_layers` found
    assert isinstance(width, int)
    query_heads = cores[0].get("num_heads") or heads
    context = contract.max_seq_len or UNLIMITED
    inputs = {"input_ids": ids[0].name, **past["inputs"]}
    if contract.mask is not None:
        inputs["attention_mask"] = contract.mask
    document = {
        "model": {
            "type": "decoder",
            "vocab_size": vocab_size,
            "context_length": context,
            # An empty list: no id ends a text. Without the key it would be 0, which is an id.
            "eos_token_id": [],
            **special_tokens(settings, GENERATION_CONFIG),
            "decoder": {
                "filename": MODEL,
                "session_options": {"provider_options": []},
                "num_hidden_layers": len(pasts) // 2,
                "num_attention_heads": query_heads,
                "num_key_value_heads": heads,
                "head_size": width,
                "hidden_size": query_heads * width,
                "inputs": inputs,
                "outputs": {"logits": results[0].name, **past["outputs"]},
            },
        },
        "search": {
            **_search(settings),
            "max_length": context,
            # Presents of their own: the graph takes past and present in one buffer in some forms
            # only.
            "past_present_share_buffer": False,
        },
    }
    return (json.dumps(document, indent=1) + "\n").encode("ascii")


def _search(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How tokens are chosen where the caller does not say."""
    samples = settings.get("do_sample") is True
    kept = ("repetition_penalty", *(("temperature", "top_k", "top_p") if samples else ()))
    found = {key: settings[key] for key in kept if settings.get(key) is not None}
    return {"do_sample": samples, **found}


def _layers(pasts: list[TensorSpec], contract: Contract) -> dict[str, dict[str, str]] | None:
    """How keys and values are named, with %d for the layer; None if they are laid out otherwise."""
    found: dict[str, dict[str, str]] = {"inputs": {}, "outputs": {}}
    layers = len(pasts) // 2
    if not pasts or len({spec.axes for spec in pasts}) != 1:
        return None
    batch, *sizes = pasts[0].axes
    if batch != "batch" or [isinstance(size, int) for size in sizes] != [True, False, True]:
        return None
    if sizes[1] != "past_seq":
        return None
    for kind in ("key", "value"):
        pairs = [pair for pair in contract.cache if pair.past.endswith(f".{kind}")]
        for side, prefix in (("inputs", "past"), ("outputs", "present")):
            names = [pair.past if side == "inputs" else pair.present for pair in pairs]
            pattern = re.sub(r"\d+", "%d", names[0]) if names else ""
            if names != [pattern.replace("%d", str(layer)) for layer in range(layers)]:
                return None
            found[side][f"{prefix}_{kind}_names"] = pattern
    return found
