"""The contract of a decoder that another exporter wrote, from its graph's signature and its config.

The layouts are those of Hugging Face's optimum (its merged files and transformers.js' among them),
of onnxruntime-genai's builder and of mobius: token ids, a mask over past and new positions, perhaps
their numbers, and a key and a value of each layer, (batch, heads, positions, width), in and out.
What is neither named nor sized so is refused: nothing here is a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from causal_onnx.runtime.artifact.signature import Declared, GraphSignature
from causal_onnx.runtime.contract import CachePair, ComputedInput, Contract, TensorSpec
from causal_onnx.runtime.json_text import read_json_object

__all__ = ["LOOKED_FOR", "NotDerivedError", "Settings", "derive_contract", "read_settings"]

IDS, MASK, POSITIONS, LOGITS = "input_ids", "attention_mask", "position_ids", "logits"
FLAG = "use_cache_branch"
KEPT_LOGITS = ("num_logits_to_keep", "logits_to_keep")

LOOKED_FOR = (
    f"{IDS}, {MASK} and {POSITIONS} (batch, seq), past_key_values.N.key and .value (batch, heads, "
    f"past, width), {FLAG}, {KEPT_LOGITS[0]}; {LOGITS} (batch, seq, vocab), present.N.key and "
    ".value"
)

_PAST = re.compile(r"(?:past_key_values|past_kv|past)[._](\d+)[._](?:decoder[._])?(key|value)")
_PRESENTS = (
    "present.{}.{}",
    "present_key_values.{}.{}",
    "present_kv.{}.{}",
    "present.{}.decoder.{}",
)
"""Names of an output, of a layer and of "key" or "value"."""

_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_seq_len",
    "max_sequence_length",
)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_PRECISION = {"float16": "fp16", "bfloat16": "bf16"}


class NotDerivedError(Exception):
    """No contract follows from a file; says what is in the way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the files beside a model say; each is empty where there is none."""

    genai: Mapping[str, Any] = field(default_factory=dict)
    """`model` of genai_config.json, if that is of this file."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """config.json, of its text model where it has several."""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """generation_config.json."""

    @property
    def decoder(self) -> Mapping[str, Any]:
        return _mapping(self.genai.get("decoder"))

    def size(self, *names: str) -> int | None:
        """The first of these sizes that is stated, in the decoder's part or in config.json."""
        for place in (self.decoder, self.genai, self.config):
            for name in names:
                value = place.get(name)
                if type(value) is int and value > 0:
                    return value
        return None


def read_settings(model: Path) -> Settings:
    """The settings beside a model; those of transformers.js lie a folder above.

    Raises:
        ArtifactError: One of the files is no JSON object.
    """
    folders = [model.parent]
    if model.parent.name == "onnx":
        folders.append(model.parent.parent)
    found: dict[str, Mapping[str, Any]] = {}
    for name in ("genai_config.json", "config.json", "generation_config.json"):
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        found[name] = {} if path is None else read_json_object(path)
    genai = _mapping(found["genai_config.json"].get("model"))
    if _mapping(genai.get("decoder")).get("filename", model.name) != model.name:
        genai = {}
    config = found["config.json"]
    return Settings(
        genai=genai,
        config={**config, **_mapping(config.get("text_config"))},
        generation=found["generation_config.json"],
    )


def derive_contract(
    graph: GraphSignature, settings: Settings, *, opset: int | None = None
) -> Contract:
    """The contract of a decoder of one of the layouts above.

    Args:
        graph: What it takes and gives.
        settings: What the files beside it say.
        opset: Version of the default operator set.

    Raises:
        NotDerivedError: The graph is of another layout, or something is said nowhere.
    """
    names = _mapping(settings.decoder.get("inputs"))
    ids_name, mask_name, positions_name = (
        str(names.get(name, name)) for name in (IDS, MASK, POSITIONS)
    )
    given = {item.name: item for item in graph.inputs}
    results = {item.name: item for item in graph.outputs}
    _refuse_fixed_writes(given)
    pairs = _pairs(given, results, settings)
    _refuse_fixed_sizes(given, results, pairs)
    _refuse_others(given, {ids_name, mask_name, positions_name, FLAG, *KEPT_LOGITS, *pairs})
    ids = _needed(given, ids_name)
    _check(ids, ("int64", "int32"), 2)
    length = (ids.dims or ())[1]
    if isinstance(length, int) and (length > 1 or not pairs):
        raise NotDerivedError(
            f"{ids.describe()} is of a fixed size, expected any number of positions, or one behind "
            "a past"
        )
    logits = _logits(results, settings, has_one_position=length == 1)
    vocab = logits.axes[2]
    assert isinstance(vocab, int)
    rows: str | int = "batch"
    specs: dict[str, TensorSpec] = {}
    computed = []
    specs[ids_name] = TensorSpec(
        name=ids_name,
        dtype=str(ids.dtype),
        axes=(rows, "seq"),
        vocab_size=min(vocab, settings.size("vocab_size") or vocab),
    )
    if mask_name in given:
        _check(given[mask_name], ("int64", "int32"), 2)
        total = "total_seq" if pairs else "seq"
        specs[mask_name] = _spec(given[mask_name], (rows, total))
    if positions_name in given:
        positions = given[positions_name]
        _check(positions, ("int64", "int32"), 2, 3)
        first = (positions.dims or ())[:-2]
        if any(not isinstance(size, int) for size in first):
            raise NotDerivedError(f"{positions.describe()} has an axis that is not known")
        specs[positions_name] = _spec(positions, (*map(int, first), rows, "seq"))  # type: ignore[arg-type]
        # Without a cache there is no mask to count with: the caller gives both.
        if pairs:
            computed.append(ComputedInput(name=positions_name, rule="positions"))
    for name, rule, dtypes in (
        (FLAG, "has_past", ("bool",)),
        *((name, "all_logits", ("int64", "int32")) for name in KEPT_LOGITS),
    ):
        if name in given:
            _check(given[name], dtypes, 0, 1)
            specs[name] = _spec(given[name], (1,) * len(given[name].dims or ()))
            computed.append(ComputedInput(name=name, rule=rule))
    rolling = sorted(graph.rolling & pairs.keys())
    if rolling:
        raise NotDerivedError(
            f"the cache {rolling[0]!r} keeps a window in an order of its own (sliding_window_cache "
            "of GroupQueryAttention); build the model without it"
        )
    specs |= {name: _cached(given[name], "past_seq", settings) for name in pairs}
    presents = [
        TensorSpec(
            name=present,
            dtype=specs[past].dtype,
            axes=tuple("total_seq" if a == "past_seq" else a for a in specs[past].axes),
        )
        for past, present in pairs.items()
    ]
    grouped = bool(pairs) and all(graph.grouped.get(past) == pairs[past] for past in pairs)
    mask = mask_name if mask_name in given and pairs else None
    return Contract(
        inputs=tuple(specs[item.name] for item in graph.inputs),
        outputs=(logits, *presents),
        max_seq_len=_context(settings),
        form="foreign",
        cache=tuple(
            CachePair(past=past, present=present, shared=grouped and mask is not None)
            for past, present in pairs.items()
        ),
        mask=mask,
        computed=tuple(computed),
        ragged=_single_steps(graph, ids, logits.name)
        or _ragged(graph, grouped=grouped, mask=mask, has_positions=positions_name in given),
        precision=_PRECISION.get(next((s.dtype for s in presents), ""), "fp32"),
        opset=opset,
        **_tokens(settings, vocab),
    )


def _single_steps(graph: GraphSignature, ids: Declared, logits: str) -> str | None:
    """Whether a call with a past is of one position, as in optimum's files before 1.14.

    Their decoders with a past were traced at one position, so that PyTorch left out the causal mask
    of the new ones: they are wrong for more.
    """
    if (ids.dims or ())[1:] == (1,):
        return "single"
    declared = graph.branches.get(logits, ())
    return "steps" if any((item.dims or ())[1:2] == (1,) for item in declared) else None


def _ragged(graph: GraphSignature, *, grouped: bool, mask: str | None, has_positions: bool) -> str:
    if mask is None:
        return "packed"
    if grouped:
        return "packed_steps"
    # Without the numbers of its positions, a graph counts columns, padding among them; and one that
    # packs some layers only packs neither way.
    return "left" if has_positions and not graph.grouped else "none"


def _pairs(
    given: Mapping[str, Declared], results: Mapping[str, Declared], settings: Settings
) -> dict[str, str]:
    """Past -> present, keys and values layer by layer."""
    stated_in = _mapping(settings.decoder.get("inputs"))
    stated_out = _mapping(settings.decoder.get("outputs"))
    found: dict[tuple[int, str], tuple[str, str]] = {}
    for kind in ("key", "value"):
        past = stated_in.get(f"past_{kind}_names")
        present = stated_out.get(f"present_{kind}_names")
        if isinstance(past, str) and isinstance(present, str) and "%d" in past:
            for layer in range(len(given)):
                name = past.replace("%d", str(layer))
                if name in given:
                    found[layer, kind] = name, present.replace("%d", str(layer))
    named = {name for name, _ in found.values()}
    for name in given:
        match = None if name in named else _PAST.fullmatch(name)
        if match is None:
            continue
        layer, kind = int(match[1]), match[2]
        names = [pattern.format(match[1], kind) for pattern in _PRESENTS]
        present = next((name for name in names if name in results), None)
        if present is None:
            raise NotDerivedError(f"{name!r} has no output beside it, such as {names[0]!r}")
        found[layer, kind] = name, present
    layers = {layer for layer, _ in found}
    for layer in layers:
        if (layer, "key") not in found or (layer, "value") not in found:
            raise NotDerivedError(f"layer {layer} has a past of keys or of values, not of both")
    lost = [present for _, present in found.values() if present not in results]
    if lost:
        raise NotDerivedError(f"it has no output {lost[0]!r}, which genai_config.json names")
    kept = [name for name in results if name.startswith("present")]
    if kept and not found:
        raise NotDerivedError(
            f"it returns a cache ({kept[0]}) and takes none, so it can only begin a sequence: load "
            "decoder_model_merged.onnx or decoder_with_past_model.onnx, which lie beside it"
        )
    return {past: present for _, (past, present) in sorted(found.items())}


def _refuse_fixed_writes(given: Mapping[str, Declared]) -> None:
    """Raise where an input says at which place of a buffer the graph writes."""
    if "write_indices" in given or "nonpad_kv_seqlen" in given:
        raise NotDerivedError(
            "it writes keys and values into buffers of a fixed size, at the positions in "
            "write_indices "
            "(mobius --static-cache); build the model without that option"
        )
    if "cache_position" in given:
        raise NotDerivedError(
            "it writes keys and values into buffers of a fixed size, at the positions in "
            "cache_position "
            "(a StaticCache of transformers); export the model with a cache that grows"
        )


def _refuse_fixed_sizes(
    given: Mapping[str, Declared], results: Mapping[str, Declared], pairs: Mapping[str, str]
) -> None:
    """Raise where a past holds a number of positions that never changes."""
    for past, present in pairs.items():
        before, after = (
            item.dims[2] if item.dims is not None and len(item.dims) == 4 else None
            for item in (given[past], results[present])
        )
        if not isinstance(before, int):
            continue
        if before == after:
            how = (
                f"past and present hold {before} positions in every call, in a buffer that is "
                "written at some place or a window that moves, and nothing says which"
            )
        else:
            how = (
                f"the past holds {before} positions in every call, as in an export without "
                "dynamic axes"
            )
        raise NotDerivedError(
            f"the cache {given[past].describe()} is of a fixed size: {how}. Export the model with "
            "a cache that grows, its positions a named axis"
        )


def _refuse_others(given: Mapping[str, Declared], known: set[str]) -> None:
    for name, item in given.items():
        if name in known:
            continue
        if name.startswith("encoder_") or ".encoder." in name:
            raise NotDerivedError(f"it decodes the output of an encoder ({item.describe()})")
        if name == "inputs_embeds":
            raise NotDerivedError(
                f"it takes embeddings in place of ids ({item.describe()}): it is one part of a "
                "model of several files"
            )
        raise NotDerivedError(f"nothing says what this input is: {item.describe()} is")


def _logits(
    results: Mapping[str, Declared], settings: Settings, *, has_one_position: bool
) -> TensorSpec:
    name = str(_mapping(settings.decoder.get("outputs")).get(LOGITS, LOGITS))
    found = _needed(results, name, "output")
    _check(found, ("float32", "float16", "bfloat16"), 3)
    dims = found.dims or ()
    if isinstance(dims[1], int) and not (dims[1] == 1 and has_one_position):
        raise NotDerivedError(
            f"{found.describe()} holds {dims[1]} positions, expected one for each id"
        )
    vocab = dims[2] if isinstance(dims[2], int) else settings.size("vocab_size")
    if vocab is None:
        raise NotDerivedError(
            f"{found.describe()} does not say how many ids there are, and no config.json beside it "
            "does (vocab_size)"
        )
    return _spec(found, ("batch", "seq", vocab))


def _cached(item: Declared, positions: str, settings: Settings) -> TensorSpec:
    """A past, (batch, heads, positions, width)."""
    _check(item, ("float32", "float16", "bfloat16", "int8", "uint8"), 4)
    batch, heads, length, width = item.dims or (None,) * 4
    stated_heads = settings.size("num_key_value_heads", "num_attention_heads", "n_head")
    stated_width = settings.size("head_size", "head_dim") or _head_width(settings)
    says_positions = isinstance(length, str) and re.search("past|seq|len|slid", length.lower())
    has_sizes = isinstance(heads, int) and isinstance(width, int)
    agrees = (heads, width) == (stated_heads, stated_width)
    if isinstance(batch, int) or not (says_positions or (has_sizes and agrees)):
        raise NotDerivedError(
            f"the cache {item.describe()} is not (batch, heads, positions, width), as far as its "
            "names and config.json beside it tell"
        )
    sizes = (
        heads if isinstance(heads, int) else stated_heads,
        width if isinstance(width, int) else stated_width,
    )
    if sizes[0] is None or sizes[1] is None:
        raise NotDerivedError(
            f"the cache {item.describe()} does not say how many heads it has or how wide they are, "
            "and no genai_config.json or config.json beside it does"
        )
    return _spec(item, ("batch", sizes[0], positions, sizes[1]))


def _head_width(settings: Settings) -> int | None:
    hidden = settings.size("hidden_size", "n_embd")
    heads = settings.size("num_attention_heads", "n_head")
    return None if hidden is None or heads is None or hidden % heads else hidden // heads


def _context(settings: Settings) -> int | None:
    """The longest sequence: the least that a file states."""
    stated = [settings.genai.get("context_length"), *(settings.config.get(k) for k in _CONTEXT)]
    return min((size for size in stated if type(size) is int and size > 0), default=None)


def _tokens(settings: Settings, vocab: int) -> dict[str, Any]:
    """Special tokens, by whoever names them first; an id that the model cannot give is none."""
    found: dict[str, list[int]] = {}
    for key in _TOKENS:
        places = (settings.genai, settings.generation, settings.config)
        value: object = next((place[key] for place in places if place.get(key) is not None), [])
        listed = value if isinstance(value, list) else [value]
        found[key] = [item for item in listed if type(item) is int and 0 <= item < vocab]
    return {
        "eos_token_ids": tuple(found["eos_token_id"]),
        "bos_token_id": next(iter(found["bos_token_id"]), None),
        "pad_token_id": next(iter(found["pad_token_id"]), None),
    }


def _needed(items: Mapping[str, Declared], name: str, kind: str = "input") -> Declared:
    if name not in items:
        raise NotDerivedError(f"it has no {kind} {name!r}; its {kind}s are {', '.join(items)}")
    return items[name]


def _check(item: Declared, dtypes: Sequence[str], *ranks: int) -> None:
    rank = None if item.dims is None else len(item.dims)
    if item.dtype not in dtypes or rank not in ranks:
        raise NotDerivedError(
            f"{item.describe()} should be {' or '.join(dtypes)}, of rank "
            f"{' or '.join(map(str, ranks))}"
        )


def _spec(item: Declared, axes: tuple[str | int, ...]) -> TensorSpec:
    return TensorSpec(name=item.name, dtype=str(item.dtype), axes=axes)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
