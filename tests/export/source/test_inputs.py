"""Names and kinds of inputs, and the values made for them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from causal_onnx.export.source.inputs import (
    CallSizes,
    Input,
    InputSpec,
    describe_inputs,
    infer_axes,
    make_inputs,
)


def described(**examples: Tensor) -> dict[str, InputSpec]:
    specs = describe_inputs(list(examples), list(examples.values()), None)
    return {spec.name: spec for spec in specs}


@pytest.mark.parametrize(
    ("example", "axes"),
    [
        (torch.zeros(2, 5, dtype=torch.int64), {0: "batch", 1: "seq"}),
        (torch.zeros(2, 5, dtype=torch.int32), {0: "batch", 1: "seq"}),
        (torch.zeros(2, 5, dtype=torch.bool), {0: "batch", 1: "seq"}),
        (torch.zeros(2, 5, 3), {0: "batch", 1: "seq"}),
        (torch.zeros(5, 3), {0: "seq"}),
        (torch.zeros(5, dtype=torch.int64), {0: "seq"}),
        (torch.tensor(1.0), {}),
    ],
    ids=["ids", "int32", "bool", "features", "row", "row of ids", "scalar"],
)
def test_axes_follow_from_rank_and_dtype(example: Tensor, axes: dict[int, str]) -> None:
    assert infer_axes("x", example) == axes


def test_axes_of_a_past_are_batch_and_past_seq() -> None:
    assert infer_axes("past_key", torch.zeros(2, 4, 5, 8)) == {0: "batch", 2: "past_seq"}


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (7,)])
def test_a_rank_that_says_nothing_asks_for_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"cannot tell which axes of input 'x' .* name them"):
        infer_axes("x", torch.zeros(shape))


def test_one_integer_per_row_is_batched() -> None:
    specs = described(x=torch.zeros(2, 5, 3), lengths=torch.tensor([5, 4]))
    assert specs["lengths"].axes == {0: "batch"}
    assert specs["lengths"].kind == "lengths"


def test_positions_beside_as_many_rows_are_still_positions() -> None:
    specs = described(x=torch.zeros(5, 5, 3), position_ids=torch.arange(5))
    assert specs["position_ids"].axes == {0: "seq"}
    assert specs["position_ids"].kind == "positions"


def test_float_mask_beside_a_batch_is_batched() -> None:
    specs = described(x=torch.zeros(2, 5, 3), attention_mask=torch.ones(2, 5))
    assert specs["attention_mask"].axes == {0: "batch", 1: "seq"}
    assert specs["attention_mask"].kind == "mask"


@pytest.mark.parametrize(
    ("name", "example", "kind"),
    [
        ("x", torch.randn(2, 5), "features"),
        ("tokens", torch.tensor([[3, 1]]), "ids"),
        ("mask", torch.tensor([[1, 0]]), "mask"),
        ("mask", torch.tensor([[7, 0]]), "ids"),
        ("mask", torch.tensor([[True, False]]), "mask"),
        ("mask", torch.randn(2, 5), "features"),
        ("input_pos", torch.tensor([[0, 1]]), "positions"),
        ("position_ids", torch.tensor([[0, 1]]), "positions"),
        ("composite", torch.tensor([[0, 1]]), "ids"),
    ],
)
def test_kind_follows_from_name_and_values(name: str, example: Tensor, kind: str) -> None:
    assert described(**{name: example})[name].kind == kind


@pytest.mark.parametrize(
    ("axes", "error", "message"),
    [
        ([{0: "batch", 1: "seq"}] * 2, ValueError, "axes has 2 entries for 1 inputs"),
        ([{0: "batch", 3: "seq"}], ValueError, "axis 3 is out of range for 3-D"),
        ([{0: "batch", 1: "time"}], ValueError, "names are batch, seq, .*got 'time' for axis 1"),
        ([{1: "batch", -2: "seq"}], ValueError, "names one axis twice"),
        ([{0: "batch"}], ValueError, "no input has a sequence axis"),
        ([{"x": "seq"}], TypeError, "integer axes"),
        (["seq"], TypeError, "integer axes"),
        ([{0: "seq", 1: "seq"}], ValueError, "disagree on seq: 'x' has 2, 'x' has 5"),
    ],
)
def test_axes_that_do_not_fit_are_refused(axes: object, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        describe_inputs(["x"], [torch.zeros(2, 5, 3)], axes)  # type: ignore[arg-type]


def test_inputs_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="disagree on seq: 'x' has 5, 'ids' has 4"):
        described(x=torch.zeros(2, 5, 3), ids=torch.zeros(2, 4, dtype=torch.int64))


def test_empty_example_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the example of input 'x' is empty, shape \(0, 5, 3\)"):
        described(x=torch.zeros(0, 5, 3))


def test_negative_axes_are_counted_from_the_end() -> None:
    (spec,) = describe_inputs(["x"], [torch.zeros(2, 5, 3)], [{-3: "batch", -2: "seq"}])
    assert spec.axes == {0: "batch", 1: "seq"}


def test_example_is_copied_contiguous_and_without_gradient() -> None:
    example = torch.randn(5, 2, 3, requires_grad=True).transpose(0, 1)
    spec = described(x=example)["x"]
    assert spec.example.is_contiguous()
    assert not spec.example.requires_grad
    assert torch.equal(spec.example, example)


def test_made_inputs_have_the_sizes_and_dtypes_and_repeat() -> None:
    specs = describe_inputs(
        ["x", "ids", "past"],
        [torch.randn(2, 5, 3).double(), torch.tensor([[4] * 5] * 2), torch.zeros(2, 1, 2, 3)],
        [{0: "batch", 1: "seq"}, {0: "batch", 1: "seq"}, {0: "batch", 2: "past_seq"}],
    )
    made = make_inputs(specs, CallSizes(batch=3, seq=7, past=4))
    assert [tuple(x.shape) for x in made] == [(3, 7, 3), (3, 7), (3, 1, 4, 3)]
    assert [x.dtype for x in made] == [torch.float64, torch.int64, torch.float32]
    again = make_inputs(specs, CallSizes(batch=3, seq=7, past=4))
    assert all(torch.equal(a, b) for a, b in zip(made, again, strict=True))
    other = make_inputs(specs, CallSizes(batch=3, seq=7, past=4), seed=1)
    assert not torch.equal(made[0], other[0])


def test_features_follow_the_scale_of_the_example() -> None:
    example = torch.linspace(850, 1150, 300).reshape(2, 50, 3)
    (made,) = make_inputs([described(x=example)["x"]], CallSizes(batch=4, seq=500))
    assert 990 < float(made.mean()) < 1010
    assert 80 < float(made.std()) < 95


def test_features_are_positive_where_all_of_the_example_are() -> None:
    spec = described(x=torch.rand(2, 9, 3))["x"]
    (made,) = make_inputs([spec], CallSizes(batch=4, seq=50))
    assert bool((made >= 0).all())
    signed = described(x=torch.randn(2, 9, 3))["x"]
    assert bool((make_inputs([signed], CallSizes(batch=4, seq=50))[0] < 0).any())


@pytest.mark.parametrize("example", [torch.zeros(2, 5, 3), torch.full((2, 5, 3), math.nan)])
def test_an_example_without_spread_gives_standard_normal_features(example: Tensor) -> None:
    spec = described(x=example)["x"]
    (made,) = make_inputs([spec], CallSizes(batch=4, seq=50))
    assert 0.9 < float(made.std()) < 1.1


def test_ids_stay_in_the_vocabulary_and_in_their_dtype() -> None:
    spec = described(ids=torch.tensor([[4, 9]]))["ids"]
    (made,) = make_inputs([spec], CallSizes(batch=8, seq=50))
    assert spec.drawn_from == (0, 10)  # until a table says more
    assert set(made.unique().tolist()) == set(range(10))
    small = InputSpec(
        name="ids",
        example=torch.zeros(1, 2, dtype=torch.int8),
        axes={0: "batch", 1: "seq"},
        kind="ids",
        vocab_size=1000,
    )
    (made,) = make_inputs([small], CallSizes(batch=8, seq=50))
    assert int(made.min()) >= 0


def test_positions_count_from_the_past() -> None:
    spec = described(position_ids=torch.tensor([[0, 1, 2]]))["position_ids"]
    (made,) = make_inputs([spec], CallSizes(batch=2, seq=3, past=4))
    assert made.tolist() == [[4, 5, 6], [4, 5, 6]]


def test_lengths_lie_between_one_and_the_sequence() -> None:
    spec = described(x=torch.zeros(2, 5, 3), lengths=torch.tensor([5, 4]))["lengths"]
    (made,) = make_inputs([spec], CallSizes(batch=50, seq=7))
    assert int(made.max()) == 7
    assert int(made.min()) == 1
    assert int(made[0]) == 7  # modules pad to the longest


@pytest.mark.parametrize(
    ("example", "keep", "drop"),
    [
        (torch.tensor([[1, 1, 0]]), 1, 0),
        (torch.tensor([[True, True, False]]), True, False),
        (torch.tensor([[False, False, True]]), False, True),
        (torch.tensor([[1.0, 1.0, 0.0]]), 1.0, 0.0),
        (torch.tensor([[0.0, 0.0, -math.inf]]), 0.0, -math.inf),
        (torch.tensor([[0.0, 0.0, -1e9]]), 0.0, -1e9),
        (torch.tensor([[0.0, 0.0, 0.0]]), 0.0, torch.finfo(torch.float32).min),
    ],
    ids=["int", "bool", "inverted", "float", "additive", "additive -1e9", "additive unknown"],
)
def test_masks_hide_what_the_example_hides(example: Tensor, keep: object, drop: object) -> None:
    (spec,) = describe_inputs(["mask"], [example], [{0: "batch", 1: "seq"}])
    assert spec.kind == "mask"
    sizes = CallSizes(batch=3, seq=3)
    assert make_inputs([spec], sizes)[0].tolist() == [[keep] * 3] * 3
    (left,) = make_inputs([spec], sizes, padding="left")
    assert left.tolist() == [[keep] * 3, [drop, keep, keep], [drop, drop, keep]]
    (right,) = make_inputs([spec], sizes, padding="right")
    assert right.tolist() == [[keep] * 3, [keep, keep, drop], [keep, drop, drop]]


def test_padding_leaves_one_token() -> None:
    (spec,) = describe_inputs(["mask"], [torch.ones(1, 2, dtype=torch.int64)], None)
    (made,) = make_inputs([spec], CallSizes(batch=5, seq=2), padding="left")
    assert made.sum(1).tolist() == [2, 1, 1, 1, 1]


def test_a_mask_over_pairs_hides_keys() -> None:
    (spec,) = describe_inputs(
        ["mask"],
        [torch.ones(2, 1, 3, 3, dtype=torch.bool)],
        [{0: "batch", 2: "seq", 3: "seq"}],
    )
    (made,) = make_inputs([spec], CallSizes(batch=2, seq=3), padding="right")
    assert made[1, 0].tolist() == [[True, True, False]] * 3


@pytest.mark.parametrize(
    "example",
    [torch.zeros(2, 5), torch.zeros(2, 5, 1), torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])],
    ids=["zeros", "zeros with an axis of one", "both"],
)
def test_an_input_of_zeros_and_ones_is_drawn_from_these(example: Tensor) -> None:
    (spec,) = describe_inputs(["done"], [example], [{0: "batch", 1: "seq"}])
    (made,) = make_inputs([spec], CallSizes(batch=4, seq=50))
    assert made.unique().tolist() == [0.0, 1.0]
    assert not made[:, 0].any()  # the first position is as most of the example


def test_zeros_with_an_axis_of_features_are_features() -> None:
    assert described(x=torch.zeros(2, 5, 3))["x"].kind == "features"


def said(example: Tensor, said: Input) -> InputSpec:
    (spec,) = describe_inputs(["x"], [example], None, {"x": said})
    return spec


def test_a_declared_range_is_what_values_are_drawn_from() -> None:
    spec = said(torch.tensor([[3, 9, 4]]), Input(kind="values", range=(-2, 1000)))
    (made,) = make_inputs([spec], CallSizes(batch=40, seq=50))
    assert -2 <= int(made.min()) < 50
    assert 900 < int(made.max()) < 1000


def test_declared_axes_and_kinds_take_the_place_of_guesses() -> None:
    mask = torch.zeros(4, 2, 6, dtype=torch.bool)
    spec = said(mask, Input(axes={0: "seq", 1: "batch"}, kind="hide_mask"))
    (made,) = make_inputs([spec], CallSizes(batch=3, seq=5), padding="right")
    assert spec.axes == {0: "seq", 1: "batch"}
    assert made[:, 2, 0].tolist() == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("example", "declared", "message"),
    [
        (torch.zeros(2, 5, 3), {"kind": "ids"}, "is not of kind 'ids'"),
        (torch.full((2, 5), 7), {"kind": "flags"}, "is not of kind 'flags'"),
        (torch.full((2, 5), 7), {"range": (0, 5)}, r"holds 7 to 7, outside of its range \[0, 5\)"),
        (torch.zeros(2, 5), {"kind": "banana"}, "kind must be one of features, ids"),
        (torch.zeros(2, 5), {"kind": "flags", "range": (0, 1)}, "range is for ids, values and"),
        (torch.zeros(2, 5), {"range": (2, 1)}, "low < high"),
        (torch.zeros(2, 5, dtype=torch.int64), {"kind": "ids", "range": (1, 5)}, "range of ids"),
    ],
    ids=["dtype", "values", "range", "unknown", "no range", "empty", "ids from 0"],
)
def test_a_declaration_that_does_not_fit_is_refused(
    example: Tensor, declared: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        said(example, Input(**declared))  # type: ignore[arg-type]


def test_a_declaration_names_an_input_of_the_module() -> None:
    with pytest.raises(ValueError, match="inputs names 'y'; the module's inputs are x"):
        describe_inputs(["x"], [torch.zeros(2, 5)], None, {"y": Input()})
