"""What only running the module tells: its length limit, its vocabulary, whether it is random."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from causal_onnx.export.errors import ExportError
from causal_onnx.export.inputs import InputSpec, Sizes, make_inputs
from causal_onnx.export.places import user_line
from causal_onnx.export.source import Source

__all__ = [
    "find_fixed_seq",
    "find_max_seq_len",
    "find_vocabularies",
    "refuse_random",
    "takes_unbatched",
]

LONGEST_PROBE = 8192
"""No eager run beyond this length: attention in PyTorch holds seq x seq scores."""
PROBE_TIME_S = 8.0
"""No single eager run expected to take longer."""


def runs(source: Source, specs: Sequence[InputSpec], sizes: Sizes) -> bool:
    """Whether the module accepts inputs of `sizes`."""
    return _failure(source, make_inputs(specs, sizes)) is None


def _failure(source: Source, inputs: Sequence[Tensor]) -> Exception | None:
    try:
        with torch.no_grad():
            source(*inputs)
    except Exception as error:  # whatever the module raises is its answer
        return error
    return None


def refuse_broken(source: Source, specs: Sequence[InputSpec]) -> None:
    """Run the caller's own example once.

    Raises:
        ExportError: The module does not accept it.
    """
    error = _failure(source, [spec.example for spec in specs])
    if error is not None:
        inputs = ", ".join(f"{s.name}: {s.example.dtype} {tuple(s.example.shape)}" for s in specs)
        raise ExportError(
            f"{type(source.module).__name__} does not accept the example ({inputs}): "
            f"{type(error).__name__}: {error}"
        ) from error


def refuse_random(source: Source, specs: Sequence[InputSpec], sizes: Sizes) -> None:
    """Run twice on one input and name the line that draws random numbers.

    Raises:
        ExportError: The module is random in eval mode, so no file can equal it.
    """
    inputs = make_inputs(specs, sizes)
    with torch.no_grad():
        first, second = source(*inputs), source(*inputs)
    if all(torch.equal(_bits(a), _bits(b)) for a, b in zip(first, second, strict=True)):
        return
    calls = _RandomCalls()
    with torch.no_grad(), calls:
        _failure(source, inputs)  # some tensor subclasses cannot be made under a dispatch mode
    place = f" ({calls.found[0]})" if calls.found else ""
    raise ExportError(
        f"{type(source.module).__name__} is random in eval mode{place}: two calls on one input "
        "differ. Dropout must be off when not training: F.dropout(x, p, self.training), "
        "scaled_dot_product_attention(..., dropout_p=self.p if self.training else 0.0)"
    )


def _bits(value: Tensor) -> Tensor:
    # NaN != NaN; compare what is stored instead.
    return torch.nan_to_num(value, nan=1.2345e30) if value.is_floating_point() else value


class _RandomCalls(TorchDispatchMode):
    """Records calls of operators that draw random numbers, with the caller's line."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.append(f"{func.name()} at {user_line()}")
        return func(*args, **(kwargs or {}))


def find_vocabularies(source: Source, specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """Give every id input the number of rows of the smallest table its ids look up."""
    watched = {i: spec for i, spec in enumerate(specs) if spec.kind == "ids"}
    if not watched:
        return tuple(specs)
    inputs = tuple(spec.example.clone() for spec in specs)
    mode = _Lookups([inputs[i] for i in watched])
    with torch.no_grad(), mode:
        source(*inputs)
    found = dict(zip(watched, mode.rows, strict=True))
    return tuple(
        replace(spec, vocab_size=found[i]) if found.get(i) else spec for i, spec in enumerate(specs)
    )


class _Lookups(TorchFunctionMode):
    """Notes the number of rows of every table that the watched ids index."""

    def __init__(self, watched: Sequence[Tensor]) -> None:
        super().__init__()
        self._watched = watched
        self.rows: list[int | None] = [None] * len(watched)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        looked_up = _table_and_indices(func, args, kwargs or {})
        if looked_up is not None:
            table, indices = looked_up
            for position, ids in enumerate(self._watched):
                if isinstance(indices, Tensor) and _same_values(indices, ids):
                    rows = int(table.shape[0])
                    known = self.rows[position]
                    self.rows[position] = rows if known is None else min(rows, known)
        return result


def _table_and_indices(func: Any, args: Any, kwargs: Any) -> tuple[Tensor, Any] | None:
    """The table that a call looks rows up in, and by which indices; None for other calls."""
    if func is nn.functional.embedding:  # what nn.Embedding calls: indices first
        ids, table = [*args, *(kwargs[key] for key in ("input", "weight") if key in kwargs)][:2]
        return table, ids
    if func in (torch.embedding, torch.index_select, torch.Tensor.__getitem__) and len(args) > 1:
        return args[0], args[1] if func is torch.embedding else args[-1]
    return None


def _same_values(a: Tensor, b: Tensor) -> bool:
    return a.numel() == b.numel() and bool((a.flatten() == b.flatten()).all())


def takes_unbatched(source: Source, specs: Sequence[InputSpec], sizes: Sizes) -> bool:
    """Whether the module takes one row without its batch axis and gives that row's output."""
    with_batch = [spec for spec in specs if "batch" in spec.axes.values()]
    if len(with_batch) != len(specs):
        return False
    inputs = make_inputs(specs, sizes)
    row = [x.select(_axis(spec, "batch"), 0) for x, spec in zip(inputs, specs, strict=True)]
    if _failure(source, row) is not None:
        return False
    with torch.no_grad():
        whole, single = source(*inputs), source(*row)
    if len(whole) != len(single):
        return False
    for batched, alone in zip(whole, single, strict=True):
        if batched.ndim == 0 or batched.shape[0] != sizes.batch:
            return False
        expected = batched[0]
        if expected.shape != alone.shape or not torch.allclose(
            expected.double(), alone.double(), rtol=1e-4, atol=1e-5, equal_nan=True
        ):
            return False
    return True


def _axis(spec: InputSpec, label: str) -> int:
    return next(axis for axis, name in spec.axes.items() if name == label)


def find_max_seq_len(source: Source, specs: Sequence[InputSpec]) -> int | None:
    """The longest sequence that the module accepts, by trying; None: no limit met.

    A limit is always a number that stands in the module - the size of a buffer or table, or an
    integer attribute - so lengths around those numbers are tried, then the exact one is bisected.
    """
    known = next(spec.example.shape[_axis(spec, "seq")] for spec in specs if _has_seq(spec))
    candidates = [n for n in _numbers(source) if known <= n <= LONGEST_PROBE]
    accepts = _timed(lambda n: runs(source, specs, Sizes(batch=1, seq=n)))
    low = known
    for candidate in candidates:
        answer = accepts(candidate + 1)
        if answer is None:
            return None
        if not answer:
            high = candidate + 1
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if accepts(middle) else (low, middle)
            return low
        low = candidate + 1
    return None


def find_fixed_seq(source: Source, specs: Sequence[InputSpec]) -> int | None:
    """The example's length, if the module accepts no other (a mask of fixed size, not sliced)."""
    known = next(spec.example.shape[_axis(spec, "seq")] for spec in specs if _has_seq(spec))
    others = {1, 2, 3, known // 2, known - 1, known + 1} - {0, known}
    if any(runs(source, specs, Sizes(batch=1, seq=seq)) for seq in sorted(others)):
        return None
    return known


def _has_seq(spec: InputSpec) -> bool:
    return "seq" in spec.axes.values()


def _timed(accepts: Callable[[int], bool]) -> Callable[[int], bool | None]:
    """Answers None instead of starting a run that would take longer than `PROBE_TIME_S`."""
    last: tuple[int, float] | None = None

    def call(n: int) -> bool | None:
        nonlocal last
        if last is not None and last[1] * (n / last[0]) ** 2 > PROBE_TIME_S:
            return None
        start = time.perf_counter()
        answer = accepts(n)
        if answer:
            last = (n, time.perf_counter() - start)
        return answer

    return call


def _numbers(source: nn.Module) -> list[int]:
    found: set[int] = set()
    for part in source.modules():
        for tensor in [*part.parameters(recurse=False), *part.buffers(recurse=False)]:
            found.update(tensor.shape)
        for value in vars(part).values():
            found.update(_integers(value))
    return sorted(n for n in found if n >= 2)


def _integers(value: Any) -> list[int]:
    if isinstance(value, bool):
        return []
    if isinstance(value, int):
        return [value]
    if isinstance(value, Tensor):
        return list(value.shape)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    elif hasattr(value, "to_dict") and not isinstance(value, nn.Module):
        value = value.to_dict()
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        value = vars(value)
    if isinstance(value, dict):
        return [n for n in value.values() if isinstance(n, int) and not isinstance(n, bool)]
    return []
