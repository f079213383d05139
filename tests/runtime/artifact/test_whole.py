from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import PrefixCache, PromptLookup, Sampling, load
from causal_onnx.runtime.profile.workload import Workload
from causal_onnx.runtime.request.whole_numbers import whole_number, whole_numbers
from tests.runtime.artifacts import fixture
from tests.runtime.language import language_model

ODD = [2.7, 2.0, True, "2", None, np.float32(2), np.bool_(True), 2**70, -1, [2], np.array([2])]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_what_is_no_whole_number_in_range_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="rows must be an integer of at least 0, got "):
        whole_number("rows", value, least=0, most=2**63)


@pytest.mark.parametrize("value", [2, np.int8(2), np.uint64(2), np.array(2)], ids=repr)
def test_integers_of_numpy_become_those_of_python(value: Any) -> None:
    assert type(whole_number("rows", value)) is int
    assert whole_numbers("rows", np.array([value, value])).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.9, 2], "rows must be integers, got 1.9 in them"),
        ([True, False], r"got True in them; .* np\.flatnonzero\(mask\)"),
        (np.array([True, False]), r"got True in them; .* np\.flatnonzero\(mask\)"),
        (np.array([1.0, 2.0]), "got 1.0 in them"),
        ([2**70, 1], r"rows must be below 2\*\*63, got 1180591620717411303424 in them"),
        (np.array([2**63, 1], np.uint64), "got 9223372036854775808 in them"),
        (["1", "2"], "got '1' in them"),
        ("12", "rows must be a list of integers, got '12'"),
        ({1: 2}, "rows must be a list of integers"),
        ([1, 2, 3], r"one number for each of the 2 rows, got \[1, 2, 3\]"),
        (
            np.ones((2, 2), int),
            r"one number for each of the 2 rows, got an array of shape \(2, 2\)",
        ),
        (np.broadcast_to(1, 1 << 42), "got an array of shape"),
    ],
    ids=repr,
)
def test_lists_that_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        whole_numbers("rows", values, count=2)


@pytest.mark.parametrize("values", [[], np.zeros(0, int), np.broadcast_to(1, 1 << 42)], ids=repr)
def test_a_list_of_none_or_of_too_many_is_refused(values: Any) -> None:
    with pytest.raises(ValueError, match="at least one number, at most 67108864"):
        whole_numbers("rows", values)


@pytest.mark.parametrize("odd", [1.5, True, "1", np.bool_(True)], ids=repr)
@pytest.mark.parametrize("name", ["max_new_tokens", "seed", "n", "prompt", "stop"])
def test_generating_takes_whole_numbers_only(name: str, odd: Any) -> None:
    options = {"max_new_tokens": 1, "prompts": [[1]]}
    options |= {"prompts": [[1, odd]]} if name == "prompt" else {name: odd}
    if name == "stop":
        options["stop"] = [odd] if odd != "1" else [None]
    with pytest.raises((ValueError, TypeError), match=f"^(the )?{name}"):
        language_model().generate_batch(options.pop("prompts"), **options)


@pytest.mark.parametrize("odd", [1.5, True, "1", 0, -1], ids=repr)
def test_other_settings_take_whole_numbers_only(odd: Any) -> None:
    model = language_model()
    for name, use in {
        "top_k": lambda: Sampling(temperature=1.0, top_k=odd),
        "capacity_positions": lambda: PrefixCache(model, capacity_positions=odd),
        "block": lambda: PrefixCache(model, capacity_positions=99, block=odd),
        "count": lambda: PromptLookup(count=odd),
        "beams": lambda: model.beam_search([1], beams=odd, max_new_tokens=1),
        "seq": lambda: Workload(model, seq=odd),
        "calls": lambda: model.profile(calls=odd),
        "batch": lambda: model.stream(batch=odd),
        "capacity": lambda: model.stream(capacity=odd),
        "threads": lambda: load(fixture("small"), threads=odd),
    }.items():
        with pytest.raises(ValueError, match=f"^{name} must be .*, got {odd!r}"):
            use()


def test_numbers_above_what_can_be_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1099511627776, which is above 1048576"):
        language_model().stream(batch=1 << 40)
    with pytest.raises(ValueError, match=r"threads must be .*, which is above 65536"):
        load(fixture("small"), threads=2**70)


def test_numbers_of_numpy_are_taken_everywhere() -> None:
    model, two = language_model(), np.uint8(2)
    sampling = Sampling(temperature=1.0, top_k=two)
    found = model.generate_batch([[1]], n=two, max_new_tokens=two, seed=two, sampling=sampling)
    assert len(found) == 2
    stream = model.stream(batch=two, capacity=two)
    stream([[1], [2]], lengths=np.array([1, 1], np.int8))
    assert stream.select(np.array([1], np.uint8)).lengths == (1,)
    stream.rewind(np.array(0))
    assert Workload(model.runner, seq=two, past=np.uint8(200), batch=two).past == 200
