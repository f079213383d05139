"""What only running a module tells: limits, rigid axes, randomness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the spelling that the modules below would use
from torch import Tensor, nn

from causal_onnx.export.errors import ExportError
from causal_onnx.export.source import probe
from causal_onnx.export.source.dry_run import dry_run
from causal_onnx.export.source.inputs import CallSizes, InputSpec
from causal_onnx.export.source.module import Source, open_source
from causal_onnx.export.source.probe import (
    SHORT,
    at_length,
    find_fixed_seq,
    find_max_seq_len,
    refuse_broken,
    refuse_random,
    refuse_rigid,
    takes_unbatched,
    with_batch,
)
from tests.export.modules import DIM, Head, example


class Does(nn.Module):
    """A table of 24 rows, and what `run` does with it and the input."""

    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.table, self.small, self.run = nn.Embedding(24, DIM), nn.Embedding(9, DIM), run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def opened(
    run: Callable[[Any, Tensor], Any], value: Tensor | None = None
) -> tuple[Source, tuple[InputSpec, ...]]:
    return open_source(Does(run).eval(), (example() if value is None else value,), None)


def raising(limit: int) -> Callable[[Any, Tensor], Tensor]:
    def run(_: Any, x: Tensor) -> Tensor:
        if x.shape[1] > limit:
            raise ValueError(f"{x.shape[1]} positions, at most {limit}")
        return x

    return run


@pytest.mark.parametrize(
    ("run", "limit"),
    [
        (lambda m, x: x + m.table.weight[: x.shape[1]], 24),
        (raising(19), 19),
        (lambda m, x: x[:, -16:], 16),
        (lambda m, x: x[:, -300:], 300),
        (lambda m, x: x + 1, None),
    ],
    ids=["table", "raises", "crops", "crops late", "none"],
)
def test_the_length_limit_is_found(run: Callable[[Any, Tensor], Any], limit: int | None) -> None:
    assert find_max_seq_len(*opened(run)) == limit


def test_numbers_of_many_layers_are_not_all_tried() -> None:
    asked = []
    source, specs = opened(lambda m, x: asked.append(x.shape[1]) or x + m.table.weight[0, 0])
    source.module.layers = nn.ModuleList(nn.Identity() for _ in range(300))
    for index, layer in enumerate(source.module.layers):
        layer.index = index
    source.module.run = lambda m, x: asked.append(x.shape[1]) or raising(37)(m, x)
    asked.clear()

    assert find_max_seq_len(source, specs) == 37
    assert len(set(asked)) < 30


def test_a_limit_far_beyond_the_example_is_found_to_the_position() -> None:
    assert find_max_seq_len(*opened(raising(4099))) == 4099


def test_a_number_of_the_module_is_no_limit_where_a_shorter_length_is_refused() -> None:
    def gap(_: Any, x: Tensor) -> Tensor:
        if x.shape[1] > 100 and x.shape[1] != 300:
            raise ValueError("too long")
        return x

    source, specs = opened(gap)
    source.module.longest = 300
    assert find_max_seq_len(source, specs) == 100


def test_a_run_as_long_as_its_input_is_not_compared_with_a_shorter_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(probe, "dry_run", lambda *of: asked.append(of[2].seq) or dry_run(*of))

    assert find_max_seq_len(*opened(lambda m, x: x)) is None
    assert asked
    assert not {n - 1 for n in asked if n > SHORT} & set(asked)


def test_one_past_the_limit_comes_with_what_the_module_raised() -> None:
    source, specs = opened(raising(19))
    assert at_length(source, specs, CallSizes(batch=1, seq=19)).takes is True
    beyond = at_length(source, specs, CallSizes(batch=1, seq=20))
    assert beyond.takes is False
    assert "20 positions" in str(beyond.error)


def test_a_cropping_module_takes_nothing_more_and_raises_nothing() -> None:
    beyond = at_length(*opened(lambda m, x: x[:, -16:]), CallSizes(batch=1, seq=17))
    assert beyond.takes is False
    assert beyond.error is None


def test_the_only_length_that_is_taken_is_fixed() -> None:
    assert find_fixed_seq(*opened(lambda m, x: torch.ones(6, 6) @ x)) == 6
    assert find_fixed_seq(*opened(lambda m, x: x + 1)) is None


def test_every_size_is_tried_once() -> None:
    asked: list[tuple[int, ...]] = []
    source, specs = opened(lambda m, x: asked.append(tuple(x.shape[:2])) or x)
    asked.clear()

    refuse_rigid(source, specs)

    assert {batch for batch, _ in asked} == {1, 2, 3}
    assert len(asked) == len(set(asked))


def test_a_batch_that_stands_in_the_code_is_refused() -> None:
    with pytest.raises(ExportError, match="has a fixed batch size"):
        refuse_rigid(*opened(lambda m, x: x.view(2, -1, DIM)))


def test_a_batch_that_is_refused_comes_with_what_was_raised() -> None:
    with pytest.raises(ExportError, match="accepts a batch of 2 but not of 3: RuntimeError"):
        refuse_rigid(*opened(lambda m, x: x + torch.ones(2, 1, 1)))


def test_a_batch_joined_with_another_axis_is_named_with_the_way_out() -> None:
    message = r"joins the batch with another axis: .*\. Return the two apart: .*\(-1, 3\)\)"
    with pytest.raises(ExportError, match=message):
        refuse_rigid(*opened(lambda m, x: torch.stack([x, x, x], 1).flatten(0, 1)))
    with pytest.raises(ExportError, match=r"batch of 2 but not of 1: .* It takes 4, so that axis"):
        refuse_rigid(*opened(lambda m, x: x.unflatten(0, (-1, 2)).sum(1)))


def test_a_gap_below_the_examples_length_is_refused() -> None:
    def run(_: Any, x: Tensor) -> Tensor:
        if x.shape[1] == 3:
            raise ValueError("not three")
        return x

    with pytest.raises(ExportError, match="3"):
        refuse_rigid(*opened(run))


def test_an_example_that_is_not_taken_is_shown_with_its_shape() -> None:
    message = r"Does does not accept the example \(x: torch.float32 \(2, 6, 16\)\): RuntimeError"
    with pytest.raises(ExportError, match=message):
        refuse_broken(*opened(lambda m, x: x + torch.ones(5, 1)))


def test_a_module_that_looks_up_ids_is_offered_ids() -> None:
    with pytest.raises(ValueError, match=r"example=torch.randint\(24, \(2, 8\)\)\)$"):
        open_source(Does(lambda m, x: m.table(x)), None, None)
    with pytest.raises(ValueError, match=r"example=torch.randn\(2, 8, embed_dim\)\)$"):
        open_source(Does(lambda m, x: x + m.table(torch.arange(8))), None, None)


def test_features_where_ids_are_wanted_are_told_what_to_be() -> None:
    source, specs = opened(lambda m, x: m.table(x), torch.randn(2, 6))
    wanted = r"It takes integers as x, such as ids: example=torch.zeros\(\(2, 6\), dtype=t"
    with pytest.raises(ExportError, match=wanted):
        refuse_broken(source, specs)


def test_dropout_that_is_never_off_is_named_with_its_line() -> None:
    source, specs = opened(lambda m, x: F.dropout(x, 0.5, training=True))
    with pytest.raises(ExportError, match=r"random in eval mode \(aten::.* at .*test_probe.py"):
        refuse_random(source, specs, CallSizes(batch=2, seq=6))


def test_what_is_kept_between_calls_is_named() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        m.calls = getattr(m, "calls", 0) + 1
        return x * m.calls

    source, specs = opened(run)
    with pytest.raises(ExportError, match=r"keeps state between calls \(calls changed\)"):
        refuse_random(source, specs, CallSizes(batch=2, seq=6))


def test_nan_is_no_randomness() -> None:
    refuse_random(*opened(lambda m, x: x / 0 - x / 0), CallSizes(batch=2, seq=6))


def test_a_row_is_exported_with_a_batch_where_the_module_takes_both() -> None:
    source, specs = open_source(Head().eval(), (example()[0],), None)
    lifted = with_batch(source, specs)
    assert lifted[0].axes == {0: "batch", 1: "seq"}
    assert takes_unbatched(source, lifted, CallSizes(batch=2, seq=6))


def test_a_batch_that_mixes_its_rows_is_none() -> None:
    source, specs = opened(lambda m, x: x - x.mean(0), example()[0])
    assert with_batch(source, specs)[0].axes == {0: "seq"}
