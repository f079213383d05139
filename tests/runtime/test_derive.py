"""What follows from a graph's signature and the files beside it, without any file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime.artifact.foreign import NotDerivedError, Settings, derive_contract
from causal_onnx.runtime.artifact.signature import Declared, GraphSignature
from causal_onnx.runtime.contract import ComputedInput, Contract
from causal_onnx.runtime.request.computed import computed_inputs
from causal_onnx.runtime.stream.kv_cache import token_mask

IDS = Declared(name="input_ids", dtype="int64", dims=("batch_size", "sequence_length"))
MASK = Declared(name="attention_mask", dtype="int64", dims=("batch_size", "total"))
POSITIONS = Declared(name="position_ids", dtype="int64", dims=("batch_size", "sequence_length"))
LOGITS = Declared(name="logits", dtype="float32", dims=("batch_size", "sequence_length", 50))


def cached(name: str, *dims: int | str | None, dtype: str = "float32") -> Declared:
    return Declared(name=name, dtype=dtype, dims=dims or ("batch_size", 2, "past_length", 8))


ONE_LOGITS = replace(LOGITS, dims=("batch_size", 1, 50))
STATIC = [cached(f"{kind}_cache.0", "batch", 64, 16) for kind in ("key", "value")]
"""As mobius names them: (batch, slots, heads times width)."""

PASTS = [cached(f"past_key_values.0.{kind}") for kind in ("key", "value")]
PRESENTS = [cached(f"present.0.{kind}") for kind in ("key", "value")]


def signature(
    *more: Declared, without: str = "", outputs: list[Declared] | None = None, **fields: Any
) -> GraphSignature:
    inputs = {item.name: item for item in (IDS, MASK, POSITIONS, *PASTS, *more)}
    kept = tuple(item for name, item in inputs.items() if name != without)
    given = [LOGITS, *PRESENTS] if outputs is None else outputs
    return GraphSignature(inputs=kept, outputs=tuple(given), grouped={}, **fields)


def derived(graph: GraphSignature, settings: Settings | None = None) -> Contract:
    return derive_contract(graph, settings or Settings())


def test_a_decoder_with_a_cache_is_described() -> None:
    contract = derived(signature())
    assert [spec.describe() for spec in contract.inputs] == [
        "input_ids: int64 (batch, seq), ids in [0, 50)",
        "attention_mask: int64 (batch, total_seq)",
        "position_ids: int64 (batch, seq)",
        "past_key_values.0.key: float32 (batch, 2, past_seq, 8)",
        "past_key_values.0.value: float32 (batch, 2, past_seq, 8)",
    ]
    assert contract.form == "foreign"
    assert contract.computed == (ComputedInput(name="position_ids", rule="positions"),)


def test_integers_of_32_bits_and_halves_stay_so() -> None:
    narrow = [replace(item, dtype="int32") for item in (IDS, MASK, POSITIONS)]
    half = [replace(item, dtype="float16") for item in PASTS]
    contract = derived(signature(*narrow, *half))
    assert {spec.dtype for spec in contract.inputs} == {"int32", "float16"}
    assert contract.precision == "fp16"


def test_flags_and_counts_of_logits_are_computed() -> None:
    flag = Declared(name="use_cache_branch", dtype="bool", dims=(1,))
    kept = Declared(name="num_logits_to_keep", dtype="int64", dims=())
    contract = derived(signature(flag, kept))
    found = computed_inputs(contract, np.ones((2, 5), np.int64), batch=2, past_seq=2, seq=3)
    assert found["use_cache_branch"].tolist() == [True]
    assert found["num_logits_to_keep"].shape == ()
    assert int(found["num_logits_to_keep"]) == 0
    assert found["position_ids"].tolist() == [[2, 3, 4]] * 2


def test_positions_count_the_tokens_of_each_row() -> None:
    contract = derived(signature())
    mask = np.array([[0, 0, 1, 1, 0], [1, 1, 1, 1, 1]])
    found = computed_inputs(contract, mask, batch=2, past_seq=2, seq=3)
    assert found["position_ids"].tolist() == [[0, 1, 1], [2, 3, 4]]


def test_without_a_mask_positions_are_columns() -> None:
    contract = derived(signature(without="attention_mask"))
    assert contract.mask is None
    found = computed_inputs(contract, None, batch=1, past_seq=4, seq=2)
    assert found["position_ids"].tolist() == [[4, 5]]


def test_positions_of_several_kinds_are_the_same_for_text() -> None:
    several = replace(POSITIONS, dims=(3, "batch_size", "sequence_length"))
    contract = derived(signature(several))
    found = computed_inputs(contract, np.ones((1, 2), np.int64), batch=1, past_seq=0, seq=2)
    assert found["position_ids"].tolist() == [[[0, 1]]] * 3


@pytest.mark.parametrize(
    ("without", "grouped", "ragged"),
    [
        ("", [], "left"),
        ("position_ids", [], "none"),
        ("position_ids", ["key", "value"], "packed_steps"),
        ("", ["key", "value"], "packed_steps"),
        ("", ["key"], "none"),
    ],
)
def test_how_rows_of_different_lengths_share_a_call(
    without: str, grouped: list[str], ragged: str
) -> None:
    pairs = {f"past_key_values.0.{kind}": f"present.0.{kind}" for kind in grouped}
    assert derived(replace(signature(without=without), grouped=pairs)).ragged == ragged


def test_a_decoder_that_was_traced_at_one_position_reads_one_a_call() -> None:
    ids = replace(IDS, dims=("batch_size", 1))
    alone = derived(signature(ids, outputs=[ONE_LOGITS, *PRESENTS]))
    assert (alone.ragged, alone.inputs[0].axes) == ("single", ("batch", "seq"))
    assert alone.outputs[0].axes == ("batch", "seq", 50)
    merged = derived(signature(branches={"logits": (ONE_LOGITS, LOGITS)}))
    assert merged.ragged == "steps"
    assert derived(signature(branches={"logits": (LOGITS, LOGITS)})).ragged == "left"


def test_padding_comes_first_where_columns_are_appended() -> None:
    lengths, new = np.array([1, 3]), np.array([2, 1])
    assert token_mask(lengths, new, 2, ragged="left").tolist() == [
        [0, 0, 1, 1, 1],
        [1, 1, 1, 1, 0],
    ]
    assert token_mask(lengths, new, 2, dtype="int32").dtype == np.int32


def test_names_and_sizes_of_genai_config_come_first() -> None:
    document = {
        "decoder": {
            "head_size": 8,
            "num_key_value_heads": 2,
            "inputs": {"input_ids": "ids", "past_key_names": "k_%d", "past_value_names": "v_%d"},
            "outputs": {"present_key_names": "new_k_%d", "present_value_names": "new_v_%d"},
        },
        "context_length": 100,
        "eos_token_id": [7, 70],
    }
    graph = GraphSignature(
        inputs=(replace(IDS, name="ids"), cached("k_0", "b", "h", "past", "d"), cached("v_0")),
        outputs=(LOGITS, cached("new_k_0"), cached("new_v_0")),
        grouped={},
    )
    contract = derived(graph, Settings(genai=document, config={"max_position_embeddings": 90}))
    assert contract.inputs[1].axes == ("batch", 2, "past_seq", 8)
    assert [pair.present for pair in contract.cache] == ["new_k_0", "new_v_0"]
    assert (contract.max_seq_len, contract.eos_token_ids) == (90, (7,))


def test_sizes_that_the_graph_leaves_open_come_from_config() -> None:
    config = {"num_attention_heads": 4, "hidden_size": 64, "vocab_size": 30, "n_positions": 9}
    logits = replace(LOGITS, dims=("b", "s", None))
    pasts = [cached(item.name, "b", "heads", "past", "width") for item in PASTS]
    contract = derived(signature(*pasts, outputs=[logits, *PRESENTS]), Settings(config=config))
    assert contract.inputs[3].axes == ("batch", 4, "past_seq", 16)
    assert (contract.outputs[0].axes[2], contract.max_seq_len) == (30, 9)


def test_a_file_without_a_cache_takes_its_mask_and_positions_from_the_caller() -> None:
    graph = GraphSignature(inputs=(IDS, MASK, POSITIONS), outputs=(LOGITS,), grouped={})
    contract = derived(graph)
    assert (contract.cache, contract.mask, contract.computed) == ((), None, ())
    assert contract.inputs[1].axes == ("batch", "seq")


KEY = "past_key_values.0.key"


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (signature(cached("bias")), "nothing says what this input is: bias: float32 .* is"),
        (signature(cached("encoder_hidden_states")), "decodes the output of an encoder"),
        (signature(cached("inputs_embeds")), "takes embeddings in place of ids"),
        (signature(without="input_ids"), "has no input 'input_ids'; its inputs are attention_mask"),
        (signature(without=KEY), "a past of keys or of values, not of both"),
        (
            signature(cached(KEY, "b", 2, 64, 8)),
            "is of a fixed size: the past holds 64 positions in every call, as in an export with",
        ),
        (
            signature(
                cached(KEY, "b", 2, 64, 8),
                outputs=[LOGITS, cached("present.0.key", "b", 2, 64, 8), PRESENTS[1]],
            ),
            "past and present hold 64 positions in every call, in a buffer that is written at so",
        ),
        (
            GraphSignature(
                inputs=(IDS, *STATIC, cached("write_indices", "batch", dtype="int64")),
                outputs=(LOGITS,),
                grouped={},
            ),
            r"of a fixed size, at the positions in write_indices \(mobius --static-cache\); build",
        ),
        (
            signature(cached("cache_position", "sequence_length", dtype="int64")),
            r"at the positions in cache_position \(a StaticCache of transformers\); export",
        ),
        (
            signature(replace(IDS, dims=("batch_size", 8))),
            "input_ids: int64 .* is of a fixed size, expected any number of positions, or one",
        ),
        (
            GraphSignature(
                inputs=(replace(IDS, dims=("b", 1)),), outputs=(ONE_LOGITS,), grouped={}
            ),
            "input_ids: int64 .* is of a fixed size",
        ),
        (signature(cached(KEY, "b", 2, "x", 8)), r"is not \(batch, heads, positions, width\)"),
        (signature(cached(KEY, 1, 2, "past", 8)), r"is not \(batch, heads, positions, width\)"),
        (signature(cached(KEY, "b", "h", "past", 8)), "does not say how many heads"),
        (signature(cached(KEY, "b", 8, "past")), "past.* should be .*, of rank 4"),
        (signature(replace(MASK, dtype="float32")), "attention_mask: float32 .* should be int64"),
        (signature(replace(MASK, dims=None)), r"attention_mask: int64 \(\?\) should be"),
        (signature(outputs=[LOGITS]), "'past_key_values.0.key' has no output beside it"),
        (signature(outputs=PRESENTS), "has no output 'logits'; its outputs are present.0.key"),
        (
            signature(outputs=[replace(LOGITS, dims=("b", 1, 50)), *PRESENTS]),
            "holds 1 positions, expected one for each id",
        ),
        (
            signature(outputs=[replace(LOGITS, dims=("b", "s", "v")), *PRESENTS]),
            "does not say how many ids there are",
        ),
        (signature(rolling=frozenset([KEY])), "keeps a window in an order of its own"),
        (
            GraphSignature(inputs=(IDS, MASK), outputs=(LOGITS, *PRESENTS), grouped={}),
            r"only begin a sequence: load decoder_model_merged\.onnx",
        ),
    ],
    ids=range(23),
)
def test_what_cannot_be_decided_is_refused(graph: GraphSignature, message: str) -> None:
    with pytest.raises(NotDerivedError, match=message):
        derived(graph)


def test_computed_inputs_are_those_that_can_be_computed() -> None:
    contract = derived(signature())
    with pytest.raises(ValueError, match="rule must be one of positions, has_past, all_logits"):
        ComputedInput(name="x", rule="guess")
    with pytest.raises(ValueError, match="'has_past' cannot be computed for position_ids: int64"):
        replace(contract, computed=(ComputedInput(name="position_ids", rule="has_past"),))
    with pytest.raises(ValueError, match="inputs other than the cache and the mask"):
        replace(contract, computed=(ComputedInput(name=KEY, rule="positions"),))
    with pytest.raises(ValueError, match=r"ragged must be one of packed, .* got 'any'"):
        replace(contract, ragged="any")


def test_a_contract_of_another_exporter_is_read_as_it_was_written() -> None:
    contract = derived(signature())
    assert Contract.from_json(contract.to_json()) == contract
