"""Translate the weights of GPT-2, nanoGPT and Llama-style checkpoints into `DecoderLM`'s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from causal_onnx.models.config import DecoderConfig
from causal_onnx.models.decoder import DecoderLM

__all__ = ["convert_state_dict"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """How one family of checkpoints names and packs its weights."""

    layers: str
    """What stands before the number of a layer."""
    names: Mapping[str, str]
    """Our name of a module, without `blocks.N.`, -> theirs."""
    packed: tuple[str, ...] = ()
    """Modules of ours that are one weight of theirs, in the order of its rows."""


GPT = Family(
    layers="h",
    names={
        "token_embedding": "wte",
        "position_embedding": "wpe",
        "final_norm": "ln_f",
        "head": "lm_head",
        "attention_norm": "ln_1",
        "attention.q_proj": "attn.c_attn",
        "attention.k_proj": "attn.c_attn",
        "attention.v_proj": "attn.c_attn",
        "attention.out_proj": "attn.c_proj",
        "mlp_norm": "ln_2",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    },
    packed=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
)

LLAMA = Family(
    layers="layers",
    names={
        "token_embedding": "embed_tokens",
        "final_norm": "norm",
        "head": "lm_head",
        "attention_norm": "input_layernorm",
        "attention.q_proj": "self_attn.q_proj",
        "attention.k_proj": "self_attn.k_proj",
        "attention.v_proj": "self_attn.v_proj",
        "attention.out_proj": "self_attn.o_proj",
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
        "mlp_norm": "post_attention_layernorm",
        "mlp.gate_proj": "mlp.gate_proj",
        "mlp.up_proj": "mlp.up_proj",
        "mlp.down_proj": "mlp.down_proj",
    },
)

PREFIXES = ("_orig_mod.", "module.", "transformer.", "model.")
"""Put before the names by torch.compile, by data parallelism, and by the language-model classes."""

IGNORED = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Buffers in older files: masks and rotary frequencies, which are computed here."""

MAX_NAMED = 8
"""Names listed in one message; a wrong file lacks hundreds."""


def convert_state_dict(state: Mapping[str, Tensor], config: DecoderConfig) -> dict[str, Tensor]:
    """Rename, split and transpose weights so that `DecoderLM(config)` loads them.

    Understands nanoGPT's names (`transformer.h.0.attn.c_attn.weight`, as `nn.Linear` has it),
    GPT-2's (the same names, matrices transposed) and Llama's
    (`model.layers.0.self_attn.q_proj.weight`), with or without the prefixes. Which of them `state`
    holds is read from it.

    Args:
        state: Names and weights, as in the checkpoint; not changed.
        config: What the weights must fit; see `convert_config`.

    Returns:
        float32 tensors under the names of `DecoderLM(config).state_dict()`. Where nothing had to be
        changed they share memory with `state`.

    Raises:
        ValueError: Names are missing or unexpected, or a weight has the wrong shape or no
            floating-point dtype.
    """
    found: dict[str, str] = {}  # name without prefixes -> name in `state`
    for name in state:
        short = _strip(name)
        if short in found:
            raise ValueError(f"{found[short]} and {name} are the same weight twice")
        if not short.endswith(IGNORED):
            found[short] = name
    family = _family(found)
    with torch.device("meta"):
        expected = DecoderLM(config).state_dict()
    if config.tied_head:
        _settle_tied_head(found, state, family)
    sources = {key: _source(key, family) for key in expected}
    _check_names(found, sources)
    transposed = family is GPT and _is_transposed(state[found["h.0.attn.c_attn.weight"]])
    return {
        key: _convert(
            state[found[sources[key]]],
            name=found[sources[key]],
            shape=tuple(like.shape),
            # GPT-2 transposes the layers' matrices, not the embeddings and the head.
            transposed=transposed and key.startswith("blocks.") and like.dim() == 2,
            part=family.packed.index(_module(key)) if _module(key) in family.packed else None,
        )
        for key, like in expected.items()
    }


def _convert(
    tensor: Tensor, *, name: str, shape: tuple[int, ...], transposed: bool, part: int | None
) -> Tensor:
    """Make one weight of `shape`; `part` says which third of a packed one."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} must be of a floating-point dtype, got {tensor.dtype}")
    stored = shape if part is None else (3 * shape[0], *shape[1:])
    stored = stored[::-1] if transposed else stored
    if tuple(tensor.shape) != stored:
        raise ValueError(f"{name} must have shape {stored}, got {tuple(tensor.shape)}")
    if transposed:
        tensor = tensor.t()
    if part is not None:
        # A copy, so that no third keeps the other two in memory.
        tensor = tensor.chunk(3)[part].clone()
    return tensor.to(torch.float32).contiguous()


def _family(found: Mapping[str, str]) -> Family:
    if "ln_f.weight" in found:
        return GPT
    if "norm.weight" in found:
        return LLAMA
    raise ValueError(
        "the weights are neither GPT-style (transformer.ln_f.weight) nor Llama-style "
        f"(model.norm.weight); found {_listed(sorted(found)) or 'nothing'}"
    )


def _strip(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _module(key: str) -> str:
    """Name the module of a `DecoderLM` key, without `blocks.N.`: attention.q_proj, head, ..."""
    module = key.rpartition(".")[0]
    return module.split(".", 2)[2] if module.startswith("blocks.") else module


def _source(key: str, family: Family) -> str:
    """Translate a `DecoderLM` key; one that the family does not know stays, and is missing then."""
    module, leaf = _module(key), key.rpartition(".")[2]
    name = family.names.get(module)
    if name is None:
        return key
    if not key.startswith("blocks."):
        return f"{name}.{leaf}"
    return f"{family.layers}.{key.split('.', 2)[1]}.{name}.{leaf}"


def _settle_tied_head(found: dict[str, str], state: Mapping[str, Tensor], family: Family) -> None:
    """Accept a tied weight under either name, and under both if they are equal."""
    embedding = f"{family.names['token_embedding']}.weight"
    head = found.pop(f"{family.names['head']}.weight", None)
    if head is None:
        return
    kept = found.setdefault(embedding, head)
    if kept != head and not torch.equal(state[kept], state[head]):
        raise ValueError(
            f"{head} differs from {kept}, but the configuration ties them: set tied_head "
            "(tie_word_embeddings in config.json) to false"
        )


def _check_names(found: Mapping[str, str], sources: Mapping[str, str]) -> None:
    missing = list(dict.fromkeys(name for name in sources.values() if name not in found))
    known = set(sources.values())
    unexpected = [name for short, name in found.items() if short not in known]
    problems = [
        f"{what}: {_listed(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if problems:
        raise ValueError(f"the weights do not fit the configuration; {'; '.join(problems)}")


def _is_transposed(packed: Tensor) -> bool:
    """Tell GPT-2's (inputs, outputs) from nn.Linear's layout by c_attn, which is not square."""
    return packed.dim() == 2 and packed.shape[1] == 3 * packed.shape[0]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
