"""What the configuration of a language model says of it, in the layout of Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from causal_onnx.export.source.inputs import InputSpec

__all__ = ["SpecialTokens", "special_tokens", "trained_length"]

LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "max_sequence_length",
    "seq_length",
)
"""What configurations call the context that a model was trained on; the first that is there."""

KINDS = ("eos_token_id", "bos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The ids that begin, end and fill a text."""

    eos: tuple[int, ...] = ()
    bos: int | None = None
    pad: int | None = None
    warnings: tuple[str, ...] = ()


def special_tokens(module: nn.Module, specs: Sequence[InputSpec]) -> SpecialTokens:
    """What the module's `generation_config` names, or else its `config`, as its `generate` does.

    Ids outside of the vocabulary are left out, with a warning: no such token can be chosen, and
    those of a configuration's defaults (50256) often are.
    """
    vocabularies = [spec.vocab_size for spec in specs if spec.vocab_size is not None]
    settings = getattr(module, "generation_config", None) or getattr(module, "config", None)
    if settings is None or not vocabularies:
        return SpecialTokens()
    found: dict[str, tuple[int, ...]] = {}
    warnings = []
    for kind in KINDS:
        ids = _ids(getattr(settings, kind, None))
        found[kind] = tuple(token for token in ids if token < max(vocabularies))
        left = [str(token) for token in ids if token >= max(vocabularies)]
        if left:
            warnings.append(
                f"the configuration names {', '.join(left)} as {kind}, but the vocabulary has "
                f"{max(vocabularies)} ids; left out"
            )
    return SpecialTokens(
        eos=found["eos_token_id"],
        bos=next(iter(found["bos_token_id"]), None),
        pad=next(iter(found["pad_token_id"]), None),
        warnings=tuple(warnings),
    )


def trained_length(module: nn.Module) -> int | None:
    """How many positions a language model was trained on, by its `config`; None: it does not say.

    Where rotary positions are stretched, the stretched length: a configuration states it, or the
    length before and the factor.
    """
    config = getattr(module, "config", None)
    if not isinstance(getattr(config, "model_type", None), str):
        return None
    text_config = getattr(config, "get_text_config", None)
    if callable(text_config):
        config = text_config()
    stated = (getattr(config, name, None) for name in LENGTHS)
    length = next((n for n in stated if type(n) is int and n >= 2), None)
    if length is None:
        return None
    return max(length, *_stretched(getattr(config, "rope_parameters", None)), 2)


def _stretched(parameters: Any) -> Iterator[int]:
    """The length before stretching times the factor, for each kind of layer that states both.

    Llama 3's factor is none of the length: 3.2 has 32 beside 8192, and was trained on 131072.
    """
    if not isinstance(parameters, Mapping) or parameters.get("rope_type") == "llama3":
        return
    before, factor = parameters.get("original_max_position_embeddings"), parameters.get("factor")
    if isinstance(before, int) and isinstance(factor, int | float):
        yield int(before * factor)
    for inner in parameters.values():
        yield from _stretched(inner)


def _ids(value: Any) -> list[int]:
    """One id or several, as a configuration states them; -1 and None stand for none."""
    given = value if isinstance(value, list | tuple) else [value]
    ids = [token for token in given if type(token) is int and token >= 0]
    return list(dict.fromkeys(ids))
