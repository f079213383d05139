"""Check what generating is asked for, and turn it into ids and a plan."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from causal_onnx.runtime.generation.codebooks import count_codebooks, has_codebooks
from causal_onnx.runtime.generation.constraint import Constraint, Grammar
from causal_onnx.runtime.generation.continuation import Plan
from causal_onnx.runtime.generation.sampling import Sampling
from causal_onnx.runtime.request.whole_numbers import is_whole, whole_number, whole_numbers

if TYPE_CHECKING:
    from causal_onnx.runtime.contract import Contract, TensorSpec
    from causal_onnx.runtime.generation.language_model import LanguageModel
    from causal_onnx.runtime.generation.prompt import PromptReader
    from causal_onnx.runtime.text.tokenizer import Tokenizer

__all__ = [
    "MOST_NEW_TOKENS",
    "check_model",
    "is_language_model",
    "make_plan",
    "prompt_ids",
    "required_tokenizer",
    "vocab_size",
]

MOST_NEW_TOKENS = 1024
"""Where nobody says how many: enough for an answer of two pages, and an end for a model that finds
none. The context ends most continuations of small models before."""


def make_plan(
    model: LanguageModel,
    *,
    max_new_tokens: int | None,
    sampling: Sampling | None,
    stop: Collection[int | str] | str,
    constraint: Constraint | None,
    reader: PromptReader | None,
    needs_text: bool,
    joins_prompt: bool = True,
) -> Plan:
    """Check all but the prompts; see `causal_onnx.runtime.generation.generate.tokens`.

    `reader` is what the others call `prefix_cache`.

    Raises:
        ValueError: The model is no language model with a cache, or an argument does not fit.
        ImportError: Text or a constraint needs the extra `text`.
    """
    check_model(model)
    if max_new_tokens is None:
        max_new_tokens = MOST_NEW_TOKENS
    max_new_tokens = whole_number("max_new_tokens", max_new_tokens, wanted="at least 1")
    if sampling is not None and not isinstance(sampling, Sampling):
        raise TypeError(f"sampling must be a Sampling or None, got {sampling!r}")
    stop_ids, stop_texts = _split(stop)
    if constraint is not None and not isinstance(constraint, Constraint):
        raise TypeError(
            "constraint must be a Constraint, such as Constraint.json_schema(...), or None, got "
            f"{constraint!r}"
        )
    # Prefixes of a model are kept by adapter, and a model with one shares the cache.
    whose = getattr(model, "unadapted", model)
    if reader is not None and getattr(reader, "model", None) not in (model, whose):
        raise ValueError(
            f"prefix_cache must be a PrefixCache of this very model, or None, got {reader!r}"
        )
    needs_text = needs_text or bool(stop_texts) or constraint is not None
    tokenizer = required_tokenizer(model) if needs_text else _optional_tokenizer(model)
    stop_ids |= frozenset(model.contract.eos_token_ids)
    if tokenizer is not None:
        stop_ids |= frozenset(tokenizer.end_ids)
    grammar = None
    if constraint is not None and tokenizer is not None:
        grammar = Grammar(
            constraint, tokenizer, vocab_size=vocab_size(model), end_ids=frozenset(stop_ids)
        )
    return Plan(
        max_new_tokens=max_new_tokens,
        sampling=model.greedy if sampling is None else sampling,
        stop_ids=stop_ids,
        stop_texts=stop_texts,
        tokenizer=tokenizer,
        grammar=grammar,
        joins_prompt=joins_prompt,
        reader=reader,
    )


def prompt_ids(
    model: LanguageModel, prompts: Sequence[Sequence[int] | str | None]
) -> list[Sequence[int]]:
    """The ids of each prompt, of which there may be only as many together as the model takes.

    Args:
        model: Its `start_ids` stand before a text, and for None.
        prompts: At least one.

    Raises:
        ValueError: A prompt is empty or too long, or they may not be of different lengths.
    """
    contract = model.contract
    if not len(prompts):
        raise ValueError("prompts must hold at least one")
    found = [_ids_of(model, prompt) for prompt in prompts]
    for row, ids in enumerate(found):
        name = "the prompt" if len(found) == 1 else f"prompt {row}"
        if not len(ids):
            raise ValueError(f"{name} is empty; a model needs one id to begin with")
        if contract.max_seq_len is not None and len(ids) > contract.max_seq_len:
            raise ValueError(
                f"{name} has {len(ids)} ids, and the model takes at most {contract.max_seq_len}; "
                "shorten it"
            )
        found[row] = whole_numbers(name, ids).tolist()
    if contract.mask is None and len({len(ids) for ids in found}) > 1:
        raise ValueError(
            "the rows of this model's cache must have the same length, and the prompts have "
            f"{', '.join(str(len(ids)) for ids in found)} ids; generate one by one"
        )
    return found


def _ids_of(model: LanguageModel, prompt: Sequence[int] | str | None) -> Sequence[int]:
    start = model.start_ids
    if prompt is None:
        if not start:
            raise ValueError(
                "a prompt is needed: no generation_config.json beside the model names a "
                "decoder_start_token_id to begin with"
            )
        return start
    if not isinstance(prompt, str):
        return prompt
    return [*start, *required_tokenizer(model).encode(prompt, add_special_tokens=not start)]


def is_language_model(contract: Contract) -> bool:
    """Whether a model can continue ids: one input of ids, logits of each position, and a cache."""
    inputs, outputs = _given(contract), _results(contract)
    logits = next((spec for spec in outputs if spec.name == "logits"), outputs[0])
    return (
        bool(contract.cache)
        and len(inputs) == 1
        and inputs[0].axes == ("batch", "seq")
        and "int" in inputs[0].dtype
        and logits.axes[:2] == ("batch", "seq")
        and len(logits.axes) == 3
    )


def check_model(model: LanguageModel) -> None:
    """Raise `ValueError` where a model is no language model with a cache."""
    contract = model.contract
    if not is_language_model(contract):
        inputs, outputs = _given(contract), _results(contract)
        raise ValueError(
            "generating needs a language model exported with cache=True: one input of ids "
            "(batch, seq), and logits (batch, seq, vocab); this one is "
            f"{', '.join(spec.describe() for spec in inputs)} -> "
            f"{', '.join(spec.describe() for spec in outputs)}"
            + ("" if contract.cache else ", without a cache")
            + _remedy(contract, inputs, outputs)
        )


def _remedy(contract: Contract, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """What continues several codebooks, how inputs beside the ids are given, or how heads are."""
    is_codes = len(inputs) == 1 and count_codebooks(contract) is not None  # with a depth decoder
    if is_codes or has_codebooks(contract):
        return "; for models with several codebooks there is generate_codes(...)"
    if contract.cache and len(inputs) == 1 and {len(spec.axes) for spec in outputs} == {4}:
        return (
            "; if these are the logits of several tokens ahead, export a module that returns those "
            "of the next token as an output of its own, the first one, and the others beside it"
        )
    ids = [spec for spec in inputs if spec.axes == ("batch", "seq") and "int" in spec.dtype]
    ids = [spec for spec in ids if spec.vocab_size is not None] or ids
    if not contract.cache or len(ids) != 1 or len(inputs) == 1:
        return ""
    named = ", ".join(f"{spec.name!r}: ..." for spec in inputs if spec is not ids[0])
    return f"; give the others as inputs={{{named}}}"


def _given(contract: Contract) -> list[TensorSpec]:
    return [spec for spec in contract.inputs if spec.name not in contract.optional_names]


def _results(contract: Contract) -> list[TensorSpec]:
    return [spec for spec in contract.outputs if spec.name not in contract.present_names]


def vocab_size(model: LanguageModel) -> int:
    """How many logits a language model has."""
    outputs = [spec for spec in model.contract.outputs if len(spec.axes) == 3]
    logits = next((spec for spec in outputs if spec.name == "logits"), outputs[0])
    return int(logits.axes[2])


def required_tokenizer(model: LanguageModel) -> Tokenizer:
    """The model's tokenizer.

    Raises:
        ValueError: It has none.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(
            "text needs a tokenizer, and none is beside the model: "
            "load(path, tokenizer='tokenizer.json')"
        )
    return tokenizer


def _optional_tokenizer(model: LanguageModel) -> Tokenizer | None:
    """The model's tokenizer, unless it only lies there and nothing can read it."""
    try:
        return model.tokenizer
    except ImportError:
        return None


def _split(stop: Collection[int | str] | str) -> tuple[frozenset[int], tuple[str, ...]]:
    """Stop ids and stop texts."""
    given = (stop,) if isinstance(stop, str) else tuple(stop)
    for item in given:
        if not (is_whole(item) or isinstance(item, str)):
            raise TypeError(f"stop holds ids and texts, got {item!r}")
        if item == "":
            raise ValueError("a stop text must not be empty")
    return (
        frozenset(int(item) for item in given if not isinstance(item, str)),
        tuple(item for item in given if isinstance(item, str)),
    )
