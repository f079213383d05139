"""Loops over positions: what the rewritten code does, and which loops are left as they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import ExportError, export
from causal_onnx.export.torch_patches.loops import functions_of, rewritten
from tests.export.quick import quick_export
from tests.zoo import entry

WIDTH = 8


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def appended(x: Tensor) -> Tensor:
    h, rows = torch.zeros(x.shape[0], WIDTH), []
    for t in range(x.shape[1]):
        h = 0.5 * h + x[:, t]
        rows.append(h)
    return torch.stack(rows, 1)


def appended_with_their_axis(x: Tensor) -> Tensor:
    h, rows = torch.zeros(x.shape[0], 1, WIDTH), []
    for t in range(0, x.shape[1]):
        h = (h + x[:, t : t + 1]).tanh()
        rows.append(h)
    return torch.cat(rows, dim=1)


def written_over_what_was_there(x: Tensor) -> Tensor:
    h, found = x.new_zeros(x.shape[0], 1), x.clone()
    for t in range(x.size(1)):
        h = h * 0.9 + found[:, t]  # (batch, width) from the first step on
        found[:, t, :] = h + found[:, t]
    return found


def changed_in_place(x: Tensor) -> Tensor:
    h, rows = torch.zeros(x.shape[0], WIDTH), []
    for t in range(x.shape[1]):
        h *= 0.5
        h += x[:, t]
        rows.append(h.clone())
    return torch.stack(rows, dim=1)


def last_axis_first(x: Tensor) -> Tensor:
    turned, h, rows = x.mT, x.new_zeros(x.shape[0], WIDTH), []
    for t in range(turned.shape[-1]):
        entry = turned[..., t]
        h = torch.where(entry > 0, h + entry, h)
        rows.append(h)
    return torch.stack(rows, -1).mT


def with_what_is_left_at_the_end(x: Tensor) -> Tensor:
    h, rows = torch.zeros(x.shape[0], WIDTH), []
    for t in range(x.shape[1]):
        last = x[:, t].exp()
        h = h + last
        rows.append(h)
    return torch.stack(rows, 1) + 0 * last.unsqueeze(1) + 0 * h.unsqueeze(1)


def beside_functions_of_its_index_name(x: Tensor) -> Tensor:
    halved = lambda t: 0.5 * t  # noqa: E731 - so it stands in modules of others

    def doubled(t: Tensor) -> Tensor:
        return 2 * t

    h, rows = torch.zeros(x.shape[0], WIDTH), []
    for t in range(x.shape[1]):
        h = h + doubled(halved(x[:, t]))
        rows.append(h)
    return torch.stack(rows, 1)


def in_blocks(x: Tensor) -> Tensor:
    h, rows = torch.zeros(x.shape[0], 1, WIDTH), []
    for block in x.split(4, dim=1):
        y = block.cumsum(1) + h
        h = y[:, -1:].tanh()
        rows.append(y)
    return torch.cat(rows, dim=1)


def in_blocks_that_are_named_first(x: Tensor) -> Tensor:
    blocks, rows = x.mT.split(16, -1), []
    for block in blocks:
        block = block - 1  # noqa: PLW2901 - so it stands in modules of others
        rows.append(block.cumsum(-1))
    return torch.cat(rows, dim=-1).mT


def in_blocks_of_several_tensors(x: Tensor) -> Tensor:
    h, rows = torch.zeros(x.shape[0], 1, WIDTH), []
    for _, (a, b) in enumerate(zip(x.split(3, 1), torch.split(x.exp(), 3, 1), strict=True)):
        rows.append(a + b.cumsum(1) + h)
        h = 0.5 * h + b[:, :1]
    return torch.cat(rows, dim=1)


def from_starts_of_blocks(x: Tensor) -> Tensor:
    n, h, found = x.shape[1], torch.zeros(x.shape[0], WIDTH), torch.zeros_like(x)
    at = torch.arange(n)[:, None].to(x.dtype)
    for i in range(0, n, 4):
        end = min(i + 4, n)
        found[:, i:end] = x[:, i:end].cumsum(1) * at[i:end] + h.unsqueeze(1)
        h = h + x[:, i:end].tanh()[:, 0]
    return found


def with_numbers_of_its_positions(x: Tensor) -> Tensor:
    rows, n = [], x.shape[1]
    for i in range(0, n, 4):
        numbers = torch.arange(i, min(n, i + 4))
        rows.append(x[:, i : i + 4] / (1 + numbers[:, None]))
    return torch.cat(rows, 1)


TAKEN = [
    in_blocks,
    in_blocks_that_are_named_first,
    in_blocks_of_several_tensors,
    from_starts_of_blocks,
    with_numbers_of_its_positions,
    beside_functions_of_its_index_name,
    appended,
    appended_with_their_axis,
    written_over_what_was_there,
    changed_in_place,
    last_axis_first,
    with_what_is_left_at_the_end,
]


def sample(seq: int) -> Tensor:
    return torch.randn(2, seq, WIDTH, generator=torch.Generator().manual_seed(seq))


@pytest.mark.parametrize("function", TAKEN)
def test_a_loop_over_positions_is_right_at_every_length(
    function: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    model = quick_export(Applied(function).eval(), tmp_path / "m.onnx", example=sample(5))
    for seq in (1, 2, 4, 15, 30, 32):
        wanted = function(sample(seq)).numpy()
        np.testing.assert_allclose(model(sample(seq).numpy()), wanted, rtol=1e-5, atol=1e-5)


def test_a_loop_over_blocks_goes_on_from_its_cache(tmp_path: Path) -> None:
    item = entry("scan_queries_in_blocks")  # whose steps read all keys, from outside of the Scan
    (x,) = item.inputs(2, 11)
    model = quick_export(item.factory().eval(), tmp_path / "m.onnx", example=x, cache=True)
    stream, wanted = model.stream(batch=2), item.factory().eval()(x).detach().numpy()
    for start, end in ((0, 3), (3, 4), (4, 9), (9, 10), (10, 11)):
        found = stream(x[:, start:end].numpy())
        np.testing.assert_allclose(found, wanted[:, start:end], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", TAKEN)
def test_rewritten_code_does_the_same_step_by_step(function: FunctionType) -> None:
    code = rewritten(function)
    assert code is not None
    twin = FunctionType(code, function.__globals__)
    torch.testing.assert_close(twin(sample(6)), function(sample(6)), rtol=0, atol=0)


def leaves_early(x: Tensor) -> Tensor:
    for t in range(x.shape[1]):
        if t > 3:
            break
    return x


def returns(x: Tensor) -> Tensor:
    for t in range(x.shape[1]):
        return x[:, t]
    return x


def reads_its_last_index(x: Tensor) -> Tensor:
    for t in range(x.shape[1]):
        x = x + t
    return x * t


def keeps_on_an_object(x: Tensor) -> Tensor:
    holder = nn.Module()
    for t in range(x.shape[1]):
        holder.kept = x[:, t]
    return x


def gives_its_last_index_to_a_function(x: Tensor) -> Tensor:
    for t in range(x.shape[1]):
        x = x + t
    scaled = lambda scale=t: x * scale  # noqa: E731 - as above
    return scaled()


def has_no_range(x: Tensor) -> Tensor:
    for part in (x, x):
        x = x + part
    return x


@pytest.mark.parametrize(
    "function",
    [
        leaves_early,
        returns,
        reads_its_last_index,
        gives_its_last_index_to_a_function,
        keeps_on_an_object,
        has_no_range,
    ],
)
def test_a_loop_that_is_no_function_of_a_step_is_left_alone(function: FunctionType) -> None:
    assert rewritten(function) is None


def reads_another_position(x: Tensor) -> Tensor:
    rows = []
    for t in range(x.shape[1]):
        rows.append(x[:, : t + 1].sum(1))
    return torch.stack(rows, 1)


def counts(x: Tensor) -> Tensor:
    h, rows = torch.zeros(x.shape[0], WIDTH), []
    for t in range(x.shape[1]):
        h = h + x[:, t] / (t + 2)
        rows.append(h)
    return torch.stack(rows, 1)


def reads_the_block_before(x: Tensor) -> Tensor:
    rows = []
    for i in range(0, x.shape[1], 4):
        rows.append(x[:, max(i - 4, 0) : i + 4].sum(1, keepdim=True) + x[:, i : i + 4])
    return torch.cat(rows, 1)


def reads_its_state_afterwards(x: Tensor) -> Tensor:
    h, rows = torch.zeros(x.shape[0], 1, WIDTH), []
    for block in x.split(4, 1):
        rows.append(block + h)
        h = h + block.mean(1, keepdim=True)
    return torch.cat(rows, 1) + 0 * h


def has_blocks_of_several_sizes(x: Tensor) -> Tensor:
    rows = []
    for a, b in zip(x.split(4, 1), x.split(2, 1), strict=False):
        rows.append(a + b[:, :1])
    return torch.cat(rows, 1)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (reads_the_block_before, "it computes with its index"),
        (reads_its_state_afterwards, "h is read afterwards, and the last block may be shorter"),
        (has_blocks_of_several_sizes, "its blocks are of several sizes"),
    ],
)
def test_a_step_over_blocks_that_is_none_of_a_scan_is_refused(
    function: Callable[[Tensor], Tensor], reason: str, tmp_path: Path
) -> None:
    message = (
        rf"blocks of positions .* at \S*test_loops\.py:\d+ \(for .*: {reason}. Remedy.*unflatten"
    )
    with pytest.raises(ExportError, match=message):
        export(Applied(function).eval(), tmp_path / "m.onnx", example=sample(5))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (reads_another_position, "it reads more than its own position of a tensor"),
        (counts, "it computes with its index"),
    ],
)
def test_a_step_that_is_none_of_a_scan_is_refused_at_its_line(
    function: Callable[[Tensor], Tensor], reason: str, tmp_path: Path
) -> None:
    message = rf"test_loops\.py:\d+ .*Python loop over positions.*This loop does not: {reason}"
    with pytest.raises(ExportError, match=message):
        export(Applied(function).eval(), tmp_path / "m.onnx", example=sample(5))


def test_code_is_found_behind_decorators_and_calls() -> None:
    names = {function.__name__ for function in functions_of(Applied(appended))}
    assert {"forward", "appended"} <= names
    assert "zeros" not in names
