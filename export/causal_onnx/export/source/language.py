"""What the configuration of a language model says of it, in the layout of Hugging Face."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from causal_onnx.export.source.inputs import InputSpec

__all__ = ["SpecialTokens", "special_tokens"]

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


def _ids(value: Any) -> list[int]:
    """One id or several, as a configuration states them; -1 and None stand for none."""
    given = value if isinstance(value, list | tuple) else [value]
    ids = [token for token in given if type(token) is int and token >= 0]
    return list(dict.fromkeys(ids))
