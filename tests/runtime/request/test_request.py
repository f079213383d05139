from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import Contract, TensorSpec
from causal_onnx.runtime.contract import LARGEST_AXIS, CachePair
from causal_onnx.runtime.request.request import Request, RequestChecker

X = TensorSpec(name="x", dtype="float32", axes=("batch", "seq", 4))
Y = TensorSpec(name="y", dtype="float32", axes=("batch", "seq", 4))
IDS = TensorSpec(name="input_ids", dtype="int64", axes=("batch", "seq"), vocab_size=7)
PAST = TensorSpec(name="past", dtype="float32", axes=("batch", "past_seq", 4))
MASK = TensorSpec(name="attention_mask", dtype="int64", axes=("batch", "total_seq"))


def check(
    *values: Any,
    specs: tuple[TensorSpec, ...] = (X,),
    check_finite: bool = False,
    cast: bool = False,
    named: dict[str, Any] | None = None,
    **limits: Any,
) -> Request:
    contract = Contract(inputs=specs, outputs=(Y,), **limits)
    return RequestChecker(contract, check_finite=check_finite, cast=cast).check(values, named or {})


def zeros(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(shape, dtype)


def test_positional_and_named_inputs_come_in_the_order_of_the_contract() -> None:
    x, past = zeros(2, 3, 4), zeros(2, 0, 4)
    for request in (
        check(x, past, specs=(X, PAST)),
        check(x, specs=(X, PAST), named={"past": past}),
        check(specs=(X, PAST), named={"past": past, "x": x}),
    ):
        assert list(request.feeds) == ["x", "past"]
        assert request.feeds["x"] is x
        assert not request.unbatched


@pytest.mark.parametrize(
    ("values", "named", "message"),
    [
        ((), {}, r"got 0 of 2 inputs; missing: x: float32 .*; past: float32"),
        ((zeros(1, 1, 4),), {}, r"got 1 of 2 inputs; missing: past: float32"),
        ((0, 0, 0), {}, "got 3 positional inputs, expected at most 2: x, past"),
        ((), {"z": 0}, "unknown input 'z'; the inputs are x, past"),
        ((zeros(1, 1, 4),), {"x": 0}, "input 'x' was given twice"),
    ],
)
def test_a_wrong_number_or_name_is_refused(
    values: tuple[Any, ...], named: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(*values, specs=(X, PAST), named=named)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4), r"input 'x' has rank 2, shape \(3, 4\); expected rank 3: x: .*; .*x\[None\]"),
        ((4,), r"input 'x' has rank 1, shape \(4,\); expected rank 3: x: float32"),
        ((1, 2, 3, 4), "input 'x' has rank 4"),
        ((2, 3, 5), r"has shape \(2, 3, 5\): axis 2 must be 4, got 5; expected x: float32"),
        ((0, 3, 4), r"has shape \(0, 3, 4\): its axis 'batch' is empty; expected at least 1"),
        ((2, 0, 4), "its axis 'seq' is empty"),
        ((2, 3, 0), "axis 2 must be 4, got 0"),
        ((2, 10, 4), "the sequence length is 10, but this model accepts at most 9"),
    ],
)
def test_a_wrong_shape_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(zeros(*shape), max_seq_len=9)


@pytest.mark.parametrize("seq", [1, 9])
def test_the_first_and_the_last_length_are_accepted(seq: int) -> None:
    assert check(zeros(1, seq, 4), max_seq_len=9).feeds["x"].shape == (1, seq, 4)


def test_a_source_of_one_length_refuses_shorter_ones() -> None:
    assert check(zeros(1, 3, 4), min_seq_len=3, max_seq_len=3).feeds
    with pytest.raises(ValueError, match="length is 2, but this model accepts no fewer than 3"):
        check(zeros(1, 2, 4), min_seq_len=3, max_seq_len=3)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 3, 4), (2, 0, 4)), "input 'past' has batch 2, but input 'x' has batch 1"),
        (((0, 3, 4), (0, 0, 4)), "'batch' is empty"),
    ],
)
def test_inputs_that_disagree_are_refused(
    shapes: tuple[tuple[int, ...], ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check(*(zeros(*shape) for shape in shapes), specs=(X, PAST))


def test_an_empty_past_is_accepted_and_counts_towards_the_limit() -> None:
    assert check(zeros(1, 9, 4), zeros(1, 0, 4), specs=(X, PAST), max_seq_len=9).feeds
    assert check(zeros(1, 1, 4), zeros(1, 8, 4), specs=(X, PAST), max_seq_len=9).feeds
    with pytest.raises(ValueError, match=r"length is 10 \(past_seq 8 \+ seq 2\), but .* most 9"):
        check(zeros(1, 2, 4), zeros(1, 8, 4), specs=(X, PAST), max_seq_len=9)


def test_the_total_length_must_be_the_sum() -> None:
    inputs = zeros(1, 2, 4), zeros(1, 3, 4)
    specs = (X, PAST, MASK)
    assert check(*inputs, zeros(1, 5, dtype="int64"), specs=specs).feeds
    with pytest.raises(ValueError, match=r"total_seq is 4, but past_seq \(3\) \+ seq \(2\) is 5"):
        check(*inputs, zeros(1, 4, dtype="int64"), specs=specs)


def test_a_mask_alone_is_held_to_the_limit() -> None:
    with pytest.raises(ValueError, match="length is 10, but this model accepts at most 9"):
        check(zeros(1, 10, dtype="int64"), specs=(MASK,), max_seq_len=9)


HUGE = 1 << 42


def view(*shape: int, dtype: str = "float32") -> np.ndarray:
    """One number, as an array of any shape."""
    return np.broadcast_to(np.zeros((), dtype), shape)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (view(1, HUGE, 4), f"the sequence length is {HUGE}, but this model accepts at most 8"),
        (view(4, HUGE, 1).T, "axis 2 must be 4, got 4|at most 8"),
        (view(HUGE, 2, 4), f"the axis 'batch' is {HUGE}, expected at most 1048576"),
        ([[[0.0] * 4] * 10**6] * 10**6, "an array of it takes"),
        ([[[0.0] * 4] * 2**13] * 2**12, "has shape .* as an array"),
        ([[view(HUGE)]], "an array of it takes"),
    ],
    ids=["length", "transposed", "batch", "lists", "long lists", "array in lists"],
)
def test_a_shape_is_refused_before_memory_is_taken_for_it(value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(value, max_seq_len=8, cast=True)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_model_without_a_limit_takes_no_more_than_memory_holds(dtype: str) -> None:
    most = view(LARGEST_AXIS, LARGEST_AXIS, 4, dtype=dtype)
    with pytest.raises(ValueError, match=r"an array of it takes \d+ bytes, and this machine has"):
        check(most, cast=True)


def test_a_lack_of_memory_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(np, "require", full)
    with pytest.raises(ValueError, match="a copy of 128 bytes does not fit into memory"):
        check(zeros(1, 16, 4)[:, ::2])


def test_lists_that_are_nested_too_deep_are_refused() -> None:
    deep: Any = 1.0
    for _ in range(10**4):
        deep = [deep]
    with pytest.raises(ValueError, match="input 'x' is a list that numpy cannot read"):
        check(deep)


class TestWithoutBatchAxis:
    def test_it_is_added_where_the_contract_says_so(self) -> None:
        request = check(zeros(3, 4), unbatched=True)
        assert request.feeds["x"].shape == (1, 3, 4)
        assert request.unbatched
        assert not check(zeros(1, 3, 4), unbatched=True).unbatched

    def test_it_is_added_where_it_belongs(self) -> None:
        seq_first = TensorSpec(name="x", dtype="float32", axes=("seq", "batch", 4))
        request = check(zeros(3, 4), specs=(seq_first,), unbatched=True)
        assert request.feeds["x"].shape == (3, 1, 4)

    def test_inputs_without_that_axis_stay_as_they_are(self) -> None:
        scale = TensorSpec(name="scale", dtype="float32", axes=(4,))
        request = check(zeros(3, 4), zeros(4), specs=(X, scale), unbatched=True)
        assert request.feeds["scale"].shape == (4,)

    def test_some_with_and_some_without_are_refused(self) -> None:
        message = r"some inputs lack the batch axis \(past\) and others have it \(x\)"
        with pytest.raises(ValueError, match=message):
            check(zeros(1, 3, 4), zeros(0, 4), specs=(X, PAST), unbatched=True)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((3, 5), r"has shape \(3, 5\): axis 1 must be 4, got 5"),
            ((0, 4), r"has shape \(0, 4\): its axis 'seq' is empty"),
            ((4,), "expected rank 3: .*, with or without the batch axis"),
        ],
    )
    def test_messages_count_the_axes_as_the_caller_does(
        self, shape: tuple[int, ...], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            check(zeros(*shape), unbatched=True)

    def test_a_bad_id_is_placed_as_the_caller_sees_it(self) -> None:
        with pytest.raises(ValueError, match=r"holds the id 7 at \[1\]"):
            check(np.array([0, 7]), specs=(IDS,), unbatched=True)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8"])
def test_ids_within_the_vocabulary_are_accepted(dtype: str) -> None:
    spec = TensorSpec(name="input_ids", dtype=dtype, axes=("batch", "seq"), vocab_size=7)
    assert check(np.array([[0, 6]], dtype), specs=(spec,)).feeds


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
@pytest.mark.parametrize("bad", [7, -1, 127, -128])
def test_ids_outside_the_vocabulary_are_refused(dtype: str, bad: int) -> None:
    spec = TensorSpec(name="input_ids", dtype=dtype, axes=("batch", "seq"), vocab_size=7)
    message = rf"input 'input_ids' holds the id {bad} at \[1, 0\], expected ids in \[0, 7\)"
    with pytest.raises(ValueError, match=message):
        check(np.array([[0, 6], [bad, 3]], dtype), specs=(spec,))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_if_asked(bad: float) -> None:
    x = zeros(2, 3, 4)
    x[1, 2, 3] = x[1, 2, 1] = bad
    assert check(x).feeds
    with pytest.raises(ValueError, match=r"holds .* at \[1, 2, 1\], expected finite .*\(2 are"):
        check(x, check_finite=True)


def test_integers_pass_the_check_for_finite_values() -> None:
    assert check(np.array([[1]]), specs=(IDS,), check_finite=True).feeds


class TestCache:
    """Past inputs are given all together or not at all; left out, they are empty."""

    KEY, VALUE = (
        TensorSpec(name=f"past.{part}", dtype="float32", axes=("batch", 2, "past_seq", 3))
        for part in ("key", "value")
    )
    GROWN = tuple(
        TensorSpec(name=f"present.{part}", dtype="float32", axes=("batch", 2, "total_seq", 3))
        for part in ("key", "value")
    )

    def check(self, *inputs: Any, unbatched: bool = False, **named: Any) -> Request:
        pairs = (("past.key", "present.key"), ("past.value", "present.value"))
        contract = Contract(
            inputs=(self.KEY, X, self.VALUE),
            outputs=(Y, *self.GROWN),
            cache=tuple(CachePair(past=past, present=present) for past, present in pairs),
            unbatched=unbatched,
            max_seq_len=9,
        )
        return RequestChecker(contract).check(inputs, named)

    @pytest.mark.parametrize("batch", [1, 5])
    def test_left_out_it_is_empty_and_of_the_same_batch(self, batch: int) -> None:
        feeds = self.check(zeros(batch, 3, 4)).feeds
        assert {name: array.shape for name, array in feeds.items()} == {
            "x": (batch, 3, 4),
            "past.key": (batch, 2, 0, 3),
            "past.value": (batch, 2, 0, 3),
        }

    def test_left_out_of_a_request_without_batch_axis_it_is_of_batch_1(self) -> None:
        request = self.check(zeros(3, 4), unbatched=True)
        assert request.unbatched
        assert request.feeds["past.key"].shape == (1, 2, 0, 3)

    def test_given_it_is_named_and_counts(self) -> None:
        cache = {"past.key": zeros(1, 2, 8, 3), "past.value": zeros(1, 2, 8, 3)}
        assert self.check(zeros(1, 1, 4), **cache).feeds["past.key"].shape == (1, 2, 8, 3)
        with pytest.raises(ValueError, match=r"length is 10 .* at most 9"):
            self.check(zeros(1, 2, 4), **cache)

    def test_given_in_part_it_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"got 2 of 3 inputs; missing: past\.value: float32"):
            self.check(zeros(1, 1, 4), **{"past.key": zeros(1, 2, 8, 3)})

    def test_it_is_not_positional(self) -> None:
        with pytest.raises(ValueError, match="got 2 positional inputs, expected at most 1: x"):
            self.check(zeros(1, 1, 4), zeros(1, 2, 8, 3))


class TestRaggedRows:
    """A mask says which positions are tokens; left out, all are."""

    PAST = TensorSpec(name="past", dtype="float32", axes=("batch", 2, "past_seq", 3))
    PRESENT = TensorSpec(name="present", dtype="float32", axes=("batch", 2, "total_seq", 3))
    NEAR = TensorSpec(name="near", dtype="float32", axes=("batch", 2, "past_slots", 3))
    NEXT = TensorSpec(name="next", dtype="float32", axes=("batch", 2, "present_slots", 3))

    def check(self, *inputs: Any, bounded: int | None = None, **named: Any) -> Request:
        past, present = (self.PAST, self.PRESENT) if bounded is None else (self.NEAR, self.NEXT)
        contract = Contract(
            inputs=(X, MASK, past),
            outputs=(Y, present),
            cache=(CachePair(past=past.name, present=present.name, bounded=bounded),),
            mask=MASK.name,
            unbatched=True,
            max_seq_len=20,
        )
        return RequestChecker(contract).check(inputs, named)

    def test_left_out_it_is_ones_for_past_and_new_positions(self) -> None:
        assert self.check(zeros(2, 3, 4)).feeds["attention_mask"].tolist() == [[1] * 3] * 2
        feeds = self.check(zeros(2, 3, 4), past=zeros(2, 2, 5, 3)).feeds
        assert feeds["attention_mask"].tolist() == [[1] * 8] * 2
        assert self.check(zeros(3, 4)).feeds["attention_mask"].tolist() == [[1] * 3]

    def test_it_is_not_positional(self) -> None:
        with pytest.raises(ValueError, match="got 2 positional inputs, expected at most 1: x"):
            self.check(zeros(1, 1, 4), np.ones((1, 1), np.int64))

    def test_padding_of_earlier_calls_may_stand_before_tokens(self) -> None:
        mask = np.array([[1, 0, 0, 1, 1], [1, 1, 1, 0, 0]])
        feeds = self.check(zeros(2, 2, 4), past=zeros(2, 2, 3, 3), attention_mask=mask).feeds
        assert feeds["attention_mask"].tolist() == mask.tolist()

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ([1, 2, 1], r"holds 2 at \[1, 1\], expected 1 for a token and 0 for padding"),
            ([0, 1, 1], r"a token after padding at \[1, 1\]; .*pad on the right"),
            ([1, 0, 1], r"a token after padding at \[1, 2\]"),
            ([1, 1], "total_seq is 2, but"),
        ],
    )
    def test_what_is_no_mask_is_refused(self, row: list[int], message: str) -> None:
        mask = np.array([[1] * len(row), row])
        with pytest.raises(ValueError, match=message):
            self.check(zeros(2, 3, 4), attention_mask=mask)

    def test_a_bounded_cache_holds_as_much_as_it_must(self) -> None:
        mask = np.ones((1, 9), np.int64)
        assert self.check(
            zeros(1, 2, 4), bounded=5, near=zeros(1, 2, 5, 3), attention_mask=mask
        ).feeds
        with pytest.raises(ValueError, match=r"'near' holds 4 positions, .* the last 5 .* so 5"):
            self.check(zeros(1, 2, 4), bounded=5, near=zeros(1, 2, 4, 3), attention_mask=mask)

    def test_a_full_bounded_cache_does_not_tell_how_much_came_before(self) -> None:
        feeds = self.check(zeros(1, 2, 4), bounded=5, near=zeros(1, 2, 4, 3)).feeds
        assert feeds["attention_mask"].shape == (1, 6)
        with pytest.raises(ValueError, match="'attention_mask' is needed: the cache is full"):
            self.check(zeros(1, 2, 4), bounded=5, near=zeros(1, 2, 5, 3))


def test_an_axis_beyond_what_the_scan_judges_is_refused() -> None:
    spec = TensorSpec(name="x", dtype="float32", axes=("batch", "seq"))
    checker = RequestChecker(Contract(inputs=(spec,), outputs=(replace(spec, name="y"),)))
    long = np.broadcast_to(np.float32(1), (1, LARGEST_AXIS + 1))
    with pytest.raises(ValueError, match="the axis 'seq' is 1048577, expected at most 1048576"):
        checker.check((long,), {})


def test_values_outside_of_the_range_of_an_input_are_refused() -> None:
    times = TensorSpec(
        name="t", dtype="int64", axes=("batch", "seq"), kind="values", value_range=(-2, 50)
    )
    assert check(np.array([[-2, 49]]), specs=(times,)).feeds
    for value in (-3, 50):
        with pytest.raises(ValueError, match=rf"'t' holds {value} at \[0, 1\], .* \[-2, 50\)"):
            check(np.array([[0, value]]), specs=(times,))


def test_a_mask_over_pairs_may_hide_by_minus_infinity_alone() -> None:
    mask = TensorSpec(name="m", dtype="float32", axes=("seq", "seq"), kind="causal_bias")
    hidden = np.array([[0, -np.inf], [0, 0]], np.float32)
    assert check(hidden, specs=(mask,), check_finite=True).feeds
    with pytest.raises(ValueError, match="'m' holds inf"):
        check(-hidden, specs=(mask,), check_finite=True)
