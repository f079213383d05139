"""The dynamic check: change the future, and the past must stay bit-identical."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from causal_onnx.export.analysis.make_input import make_input
from causal_onnx.export.analysis.signature import InputAxes, Signature, Sizes
from causal_onnx.export.proof.running import GraphRunner

__all__ = [
    "DynamicCase",
    "DynamicCheck",
    "changed_input",
    "cuts_at",
    "perturb",
    "same",
    "vocabulary_sizes",
]

Array = npt.NDArray[Any]


ALL_CUTS = 16
"""Up to this many positions, every cut is tried."""


LARGEST = 1e30
"""Stands for an infinite change, which JSON has no number for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicCase:
    """One cut: the data of positions from `cut` on was changed."""

    batch: int
    seq: int
    past_seq: int
    cut: int
    """Absolute position."""
    leak: float
    """Largest change of an output at positions before the cut, relative to the output's scale; 0.0
    is bit-identical."""
    output: str
    """Where the largest change was; "" if nowhere."""
    moved: bool
    """Some output at or after the cut changed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DynamicCheck:
    """All cuts, or why there are none."""

    cases: tuple[DynamicCase, ...] = ()
    skipped: str = ""
    """Why the check did not run; "" if it did."""
    refused: tuple[str, ...] = ()
    """Sizes that the runtime refused, each with its message."""
    prefix_change: float | None = None
    """How far outputs at a length are from those of a longer sequence that begins with the same
    data, relative to the output's scale; None: no two lengths could be compared."""
    provider: str = ""
    seconds: float = 0.0

    tolerance: float = 0.0
    """The largest `leak` that counts as none; not 0 where the proof holds up to rounding."""

    @property
    def leaks(self) -> tuple[DynamicCase, ...]:
        """The cuts at which the past moved."""
        return tuple(case for case in self.cases if case.leak > self.tolerance)

    @property
    def moved(self) -> bool:
        """Changing the data changed some output: the outputs are not constant."""
        return any(case.moved for case in self.cases)


def vocabulary_sizes(model: ir.Model) -> dict[str, int]:
    """Input of integers -> the fewest rows of the tables that it indexes."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        if value.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            continue
        sizes = list(_tables(value, depth=8))
        if sizes:
            found[value.name or ""] = min(sizes)
    return found


def _tables(value: ir.Value, depth: int) -> Iterator[int]:
    for use in value.uses():
        node, index = use.node, use.idx
        if node.op_type in ("Gather", "GatherBlockQuantized") and index == 1:
            table, axis = node.inputs[0], node.attributes.get("axis")
            if table is not None and table.shape is not None:
                size = table.shape[axis.as_int() if axis is not None else 0]
                if isinstance(size, int):
                    yield size
        elif node.op_type.endswith("EmbedLayerNormalization") and index in (0, 1):
            table = node.inputs[2 if index == 0 else 4]
            if table is not None and table.shape is not None and isinstance(table.shape[0], int):
                yield table.shape[0]
        elif depth and node.op_type in (
            "Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Slice", "Flatten",
            "Expand", "Concat",
        ):  # fmt: skip
            for out in node.outputs:
                yield from _tables(out, depth - 1)


def perturb(
    runner: GraphRunner,
    signature: Signature,
    position_axes: Mapping[str, Sequence[int]],
    grid: Sequence[Sizes],
    *,
    vocabulary: Mapping[str, int],
    step: Callable[[], None] | None = None,
    lowest_id: int = 0,
    fixed: Collection[str] = (),
    seed: int = 0,
) -> DynamicCheck:
    """Run the file with the future changed at several cuts, and compare the past bit by bit.

    Args:
        runner: The graph in onnxruntime.
        signature: What the inputs are.
        position_axes: Output -> its position axes; outputs without one are compared nowhere.
        grid: Sizes to run at.
        vocabulary: Input of ids -> number of valid ids.
        step: Called once per cut.
        lowest_id: The smallest id of a vocabulary that is used, to leave out that of padding.
        fixed: Inputs that stay as they are: masks that the proof takes for those of sequences
            without padding.
        seed: Of the random data.
    """
    started = time.perf_counter()
    names = runner.outputs
    cases: list[DynamicCase] = []
    refused: list[str] = []
    prefix: float | None = None
    rng = np.random.default_rng(seed)
    specs = signature.inputs
    ids = {name: range(lowest_id, max(size, lowest_id + 1)) for name, size in vocabulary.items()}
    for wanted in grid:
        tried: list[str] = []
        # Some kernels take several positions after a past for one row only.
        for sizes in dict.fromkeys((wanted, replace(wanted, batch=1))):
            feeds = {s.name: make_input(s, sizes, rng, ids.get(s.name)) for s in specs}
            base = runner(feeds, sizes)
            if base is not None:
                break
            tried.append(runner.refusal)
        if base is None:
            refused.extend(tried)
            continue
        if not cases:
            again = runner(feeds, sizes)
            if again is None or not all(same(a, b) for a, b in zip(base, again, strict=True)):
                return DynamicCheck(skipped="two runs on the same input give different outputs")
        change = _prefix_change(runner, feeds, base, specs=specs, sizes=sizes, axes=position_axes)
        if change is not None:
            prefix = max(prefix or 0.0, change)
        for cut in cuts_at(sizes):
            changed = {
                s.name: feeds[s.name]
                if s.name in fixed
                else changed_input(s, feeds[s.name], sizes, cut, rng=rng, ids=ids.get(s.name))
                for s in specs
            }
            after = runner(changed, sizes)
            if after is None:
                refused.append(runner.refusal)
                break
            cases.append(
                _compare(names, base, after, position_axes=position_axes, sizes=sizes, cut=cut)
            )
            if step is not None:
                step()
    seconds = time.perf_counter() - started
    skipped = ""
    if not cases:
        reason = refused[0] if refused else "no length has a position to change"
        skipped = f"the runtime accepted none of the inputs made for it: {reason}"
    return DynamicCheck(
        cases=tuple(cases),
        skipped=skipped,
        refused=tuple(dict.fromkeys(refused)),
        prefix_change=prefix,
        provider=runner.name,
        seconds=seconds,
    )


def _prefix_change(
    runner: GraphRunner,
    feeds: Mapping[str, Array],
    base: Sequence[Any],
    *,
    specs: Sequence[InputAxes],
    sizes: Sizes,
    axes: Mapping[str, Sequence[int]],
) -> float | None:
    """The change of the outputs when the last third of the sequence is left out."""
    length = max(1, sizes.seq - max(1, sizes.seq // 3)) // sizes.block * sizes.block
    less = replace(sizes, seq=length)
    if less.seq in (0, sizes.seq):
        return None
    shorter = {}
    for spec in specs:
        if spec.role == "lengths":
            shorter[spec.name] = make_input(spec, less, np.random.default_rng(0), None)
            continue
        array = feeds[spec.name]
        index = tuple(slice(0, n) for n in spec.shape(less))
        shorter[spec.name] = np.array(array[index], order="C")
    after = runner(shorter, less)
    if after is None:
        return None
    found = []
    for name, a, b in zip(runner.outputs, base, after, strict=True):
        chosen = axes.get(name, ())
        if not isinstance(a, np.ndarray) or not chosen or a.ndim != b.ndim:
            continue
        if a.dtype.kind != "f" or any(
            a.shape[i] - b.shape[i] != sizes.seq - less.seq for i in chosen
        ):
            continue
        part = a[tuple(slice(0, n) for n in b.shape)]
        found.append(_largest_change(part, b) / _scale(part))
    return max(found, default=None)


def cuts_at(sizes: Sizes) -> list[int]:
    """Absolute positions, ends of blocks: all of a short sequence, a few of a long one."""
    first, total = sizes.past_seq, sizes.total_seq
    if total <= ALL_CUTS:
        return list(range(sizes.block, total, sizes.block))
    cuts = {first // 2, first, first + 1, (first + total + 1) // 2, total - 1}
    return sorted(cut for cut in {n // sizes.block * sizes.block for n in cuts} if 0 < cut < total)


def changed_input(
    spec: InputAxes,
    array: Array,
    sizes: Sizes,
    cut: int,
    *,
    until: int | None = None,
    rng: np.random.Generator,
    ids: range | None,
) -> Array:
    """The same input with other data from position `cut` on; places and lengths stay.

    `until`: the first position after those that change; None: there is none.
    """
    axis = spec.position_axis
    if axis is None or spec.role not in ("tokens", "past", "mask"):
        return array
    if spec.role == "mask" and len(spec.axes) != 2:
        return array  # one entry per pair: what it masks is no data of a position
    begin = max(0, cut - spec.first_position(sizes))
    if begin >= array.shape[axis]:
        return array
    fresh = make_input(spec, sizes, rng, ids)
    if spec.role == "mask":
        fresh = (rng.random(array.shape) < 0.5).astype(array.dtype)
    if np.issubdtype(array.dtype, np.integer) and ids is not None and len(ids) > 1:
        shift = rng.integers(1, len(ids), array.shape)
        fresh = ((array - ids.start + shift) % len(ids) + ids.start).astype(array.dtype)
    elif np.issubdtype(array.dtype, np.floating):
        fresh = (fresh * 3).astype(array.dtype)
    end = None if until is None else max(begin, until - spec.first_position(sizes))
    index = (slice(None),) * axis + (slice(begin, end),)
    out = array.copy()
    out[index] = fresh[index]
    return out


def _compare(
    names: Sequence[str],
    base: Sequence[Any],
    after: Sequence[Any],
    *,
    position_axes: Mapping[str, Sequence[int]],
    sizes: Sizes,
    cut: int,
) -> DynamicCase:
    worst, where, moved = 0.0, "", False
    for name, a, b in zip(names, base, after, strict=True):
        if not isinstance(a, np.ndarray):
            continue
        axes = position_axes.get(name, ())
        if not axes:
            moved = moved or not same(a, b)
            continue
        index: list[slice] = [slice(None)] * a.ndim
        for axis in axes:
            index[axis] = slice(0, max(0, cut - (sizes.total_seq - a.shape[axis])))
        past_a, past_b = a[tuple(index)], b[tuple(index)]
        if not same(past_a, past_b):
            change = _largest_change(past_a, past_b) / _scale(a)
            if change > worst:
                worst, where = change, name
        moved = moved or not same(a, b)
    return DynamicCase(
        batch=sizes.batch,
        seq=sizes.seq,
        past_seq=sizes.past_seq,
        cut=cut,
        leak=worst,
        output=where,
        moved=moved,
    )


def _scale(array: Array) -> float:
    """The largest finite magnitude; 1 where all is zero."""
    if array.dtype.kind not in "fiu":
        return 1.0
    finite = array[np.isfinite(array)].astype(np.float64)
    return float(np.abs(finite).max(initial=0.0)) or 1.0


def same(a: Any, b: Any) -> bool:
    """Bit-identical, NaNs included; tensors, sequences of them, or an optional that is empty."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return type(a) is type(b) and a == b
    if a.dtype == object:  # strings
        return a.shape == b.shape and bool((a == b).all())
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def _largest_change(a: Array, b: Array) -> float:
    """The largest difference; as large as can be where shapes or NaNs differ."""
    if a.shape != b.shape:
        return LARGEST
    with np.errstate(all="ignore"):
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return LARGEST
    largest = float(np.nan_to_num(gap, nan=0.0, posinf=np.inf).max(initial=0.0))
    # Bits differ without a numeric difference: -0.0 against 0.0, or other NaN payloads.
    return min(largest, LARGEST)
