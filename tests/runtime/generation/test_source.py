"""What stands beside a prompt: texts become ids, rows one length, and a mask says what counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from causal_onnx.runtime.contract import Contract, FreeAxis, TensorSpec
from causal_onnx.runtime.generation.source import complete_inputs, text_input

TEXT = ("batch", "source")
IDS = TensorSpec(name="input_ids", dtype="int64", axes=TEXT, vocab_size=90)
MASK = TensorSpec(name="attention_mask", dtype="int64", axes=TEXT, kind="keep_mask")
WRITTEN = TensorSpec(name="decoder_input_ids", dtype="int64", axes=("batch", "seq"), vocab_size=90)
SPEAKER = TensorSpec(name="speaker", dtype="float32", axes=("batch", 4))
LOGITS = TensorSpec(name="logits", dtype="float32", axes=("batch", "seq", 90))
CONTRACT = Contract(
    inputs=(IDS, MASK, WRITTEN, SPEAKER),
    outputs=(LOGITS,),
    free_axes=(FreeAxis(name="source"),),
    pad_token_id=1,
)


def letters(text: str) -> list[int]:
    return [ord(letter) - 60 for letter in text]


def complete(contract: Contract = CONTRACT, **inputs: object) -> dict[str, np.ndarray]:
    return complete_inputs(contract, inputs, letters)  # type: ignore[arg-type,return-value]


def test_texts_become_rows_of_ids_that_are_filled_up_and_masked() -> None:
    found = complete(input_ids=["ab", "cdef"])
    assert found["input_ids"].tolist() == [[37, 38, 1, 1], [39, 40, 41, 42]]
    assert found["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]


def test_one_text_is_one_row() -> None:
    assert complete(input_ids="ab")["input_ids"].tolist() == [[37, 38]]


def test_lists_of_ids_may_have_any_lengths_and_arrays_count_whole() -> None:
    found = complete(input_ids=[[5, 6, 7], [8]])
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert complete(input_ids=np.array([[5, 1]]))["attention_mask"].tolist() == [[1, 1]]


def test_a_mask_that_is_given_is_left_alone() -> None:
    given = np.array([[0, 1]])
    assert complete(input_ids=np.array([[5, 6]]), attention_mask=given)["attention_mask"] is given


def test_a_mask_that_hides_is_1_where_nothing_counts() -> None:
    hiding = dataclasses.replace(MASK, kind="hide_mask", dtype="bool")
    contract = dataclasses.replace(CONTRACT, inputs=(IDS, hiding, WRITTEN))
    mask = complete(contract, input_ids=["a", "bc"])["attention_mask"]
    assert (mask.dtype, mask.tolist()) == (np.bool_, [[False, True], [False, False]])


def test_rows_of_several_lengths_need_a_mask() -> None:
    contract = dataclasses.replace(CONTRACT, inputs=(IDS, WRITTEN))
    assert complete(contract, input_ids=["ab", "cd"])["input_ids"].shape == (2, 2)
    with pytest.raises(
        ValueError, match="the sources have 2, 1 ids, and the model takes no mask of"
    ):
        complete(contract, input_ids=["ab", "c"])


def test_what_is_no_source_text_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"a text is for an input of ids .*speaker: float32"):
        complete(speaker="ab")
    with pytest.raises(ValueError, match="row 1 of 'input_ids' is empty; expected at least one id"):
        complete(input_ids=["ab", ""])


def test_the_input_of_a_source_text_is_found() -> None:
    assert text_input(CONTRACT) == IDS
    assert (
        text_input(dataclasses.replace(CONTRACT, inputs=(WRITTEN, SPEAKER), free_axes=())) is None
    )
