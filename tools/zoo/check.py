"""An independent check of an ONNX file against a zoo entry, in a bare onnxruntime session.

It shares nothing with the exporter's own verification: other inputs, other lengths, the entry's own
factory as the reference.
"""

from __future__ import annotations

import copy
import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is imported

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from tests.zoo.entry import ZooEntry
from tests.zoo.probes import (
    Sizes,
    change_tokens,
    keep_real,
    make_inputs,
    real_positions,
    relative_change,
    run,
    seq_axes,
)

__all__ = [
    "WITHOUT_LIMIT",
    "File",
    "Finding",
    "Reference",
    "check_file",
    "differ",
    "difference",
    "short",
    "sizes_of",
    "without_padding",
]

TOLERANCES = {
    torch.float64: 1e-7,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""Largest error relative to the output's scale, by the least precise tensor that takes part.
float64 is not finer because exporters round Python scalars to float32."""

LENGTHS = (1, 2, 3, 7, 8, 16)
WITHOUT_LIMIT = 29
"""The longest sequence tried where the source sets no limit."""
BATCHES = (1, 2, 5)
PASTS = (0, 1, 5)
LEAK_BATCH = 2
MASKED_PAST = 3
MASK = "attention_mask"
PASTS_BEGIN = ("past_key_values.", "past_state.", "past_memory.")
PRESENTS_BEGIN = ("present.", "present_state.", "present_memory.")
PAST_DTYPES = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of one file."""

    status: str
    """right; wrong: other numbers, silently; fails: an error at a shape that the source accepts;
    unloadable."""
    reason: str = ""
    max_error: float = 0.0
    """Relative to each output's scale, over the shapes that ran."""
    shapes: int = 0
    leak: float = 0.0
    """How far outputs moved when later tokens changed, relative to the output's scale."""
    beyond: str = ""
    """One position past the source's limit the file: refuses | same (as the source) | answers
    (though the source raises) | differs. Empty: no limit."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Reference:
    """A zoo entry in eager PyTorch, a fresh copy for every call."""

    def __init__(self, entry: ZooEntry) -> None:
        self.entry = entry
        self._module = entry.factory().eval()
        self.tolerance = max(
            (
                TOLERANCES[t.dtype]
                for t in (*self._module.parameters(), *make_inputs(entry, usual_sizes(entry)))
                if t.dtype in TOLERANCES
            ),
            default=1e-5,
        )

    def fresh(self) -> nn.Module:
        """A copy that no call has touched (a mask grown on demand is not there yet)."""
        try:
            return copy.deepcopy(self._module)
        except RuntimeError:  # holds a tensor that autograd made
            return self.entry.factory().eval()

    def __call__(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return run(self.fresh(), inputs)

    def axes(self, sizes: Sizes) -> tuple[tuple[int, int] | None, ...]:
        """See `tests.zoo.probes.seq_axes`."""
        return seq_axes(self.fresh(), self.entry, sizes)


class _KeepingAll(nn.Module):
    """A module whose padding mask says "keep" everywhere."""

    def __init__(self, module: nn.Module, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.module, self.index, self.dtype = module, index, dtype

    def forward(self, *values: Tensor) -> Any:
        mask = torch.ones(values[0].shape[:2], dtype=self.dtype)
        return self.module(*values[: self.index], mask, *values[self.index :])


def without_padding(entry: ZooEntry) -> ZooEntry:
    """The entry as a derived cache sees it: its padding mask is no input, and keeps everything."""
    axes = {0: "batch", 1: "seq"}
    index = entry.roles.index("mask") if "mask" in entry.roles else None
    if index is None or dict(entry.axes[index]) != axes or dict(entry.axes[0]) != axes:
        return entry
    dtype = entry.inputs(1, 8)[index].dtype

    def inputs(batch: int, seq: int) -> tuple[Tensor, ...]:
        made = entry.inputs(batch, seq)
        return (*made[:index], *made[index + 1 :])

    return replace(
        entry,
        factory=lambda: _KeepingAll(entry.factory(), index, dtype),
        inputs=inputs,
        axes=(*entry.axes[:index], *entry.axes[index + 1 :]),
        roles=(*entry.roles[:index], *entry.roles[index + 1 :]),
        fully_masked_rows=False,
        padded_rows_leak=False,
    )


class File:
    """An ONNX file in a session without options."""

    def __init__(self, path: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong reaches us as an exception
        self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = self._session.get_inputs()
        self.past = [item for item in inputs if item.name.startswith(PASTS_BEGIN)]
        self.inputs = [item for item in inputs if item not in self.past]
        masks = [item for item in self.inputs if item.name == MASK] if self.past else []
        self.mask = masks[0] if masks else None
        """The mask that comes with a derived cache; the source knows nothing of it."""
        names = [item.name for item in self._session.get_outputs()]
        self.present = (
            [name for name in names if name.startswith(PRESENTS_BEGIN)] if self.past else []
        )
        self.outputs = [name for name in names if name not in self.present]
        self.batch_axes = [
            list(item.shape).index("batch") if "batch" in item.shape else None
            for item in self._session.get_outputs()
            if item.name in self.outputs
        ]

    def take(self, count: int) -> None:
        """Say how many inputs the source has: a mask among them is the source's own."""
        if all(item is not self.mask for item in self.inputs):
            return  # said before, or there is none
        if count == len(self.inputs) - 1:
            self.inputs = [item for item in self.inputs if item is not self.mask]
        else:
            self.mask = None

    def __call__(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for inputs by position; a cache starts empty."""
        return self.step(values, self.empty_past(values))[0]

    def step(
        self,
        values: Sequence[Tensor],
        past: Sequence[np.ndarray[Any, Any]],
        done: int = 0,
        mask: np.ndarray[Any, Any] | None = None,
    ) -> tuple[list[Tensor], list[np.ndarray[Any, Any]]]:
        """The outputs, and the cache after these inputs.

        Args:
            values: The inputs by position.
            past: The cache so far.
            done: How many positions came before (a bounded cache holds fewer).
            mask: (batch, total_seq), 1 for a token and 0 for padding; None: all ones.
        """
        if self.past:
            self.take(len(values))
        if len(values) != len(self.inputs):
            names = ", ".join(item.name for item in self.inputs)
            raise ValueError(f"the file has inputs {names}, the source takes {len(values)}")
        feed = {
            item.name: _array(value, item.type)
            for item, value in zip(self.inputs, values, strict=True)
        }
        feed |= {item.name: value for item, value in zip(self.past, past, strict=True)}
        if self.mask is not None:
            sizes = self._sizes(values)
            rows = self.mask.shape[0] if isinstance(self.mask.shape[0], int) else sizes["batch"]
            ones = np.ones((rows, done + sizes["seq"]), np.int64)
            feed[MASK] = ones if mask is None else mask
        results = self._session.run([*self.outputs, *self.present], feed)
        count = len(self.outputs)
        return [torch.from_numpy(np.array(r)) for r in results[:count]], list(results[count:])

    def empty_past(self, values: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
        """A cache of no positions for the batch of `values`."""
        self.take(len(values))
        sizes: dict[Any, int] = self._sizes(values)
        return [
            np.zeros(
                # What no input has counts the positions before, of which there are none.
                [axis if isinstance(axis, int) else sizes.get(axis, 0) for axis in item.shape],
                PAST_DTYPES[item.type],
            )
            for item in self.past
        ]

    def _sizes(self, values: Sequence[Tensor]) -> dict[str, int]:
        return {
            name: size
            for item, value in zip(self.inputs, values, strict=False)
            for name, size in zip(item.shape, value.shape, strict=False)
            if isinstance(name, str)
        }


def _array(value: Tensor, wanted: str) -> np.ndarray[Any, Any]:
    if value.dtype == torch.bfloat16:  # numpy has none
        if wanted != "tensor(float)":
            raise TypeError(f"a bfloat16 input of type {wanted} cannot be made from numpy")
        value = value.float()
    return value.contiguous().numpy()


def usual_sizes(entry: ZooEntry) -> Sizes:
    """Sizes past the first block, chunk or window of every entry."""
    past = MASKED_PAST if entry.takes_past else 0
    seq = 8 if entry.lengths is None else next(n for n in entry.lengths if n >= 8)
    return Sizes(LEAK_BATCH, seq, past)


def sizes_of(entry: ZooEntry) -> list[Sizes]:
    """The shapes to compare at, shortest first."""
    has_batch = any("batch" in axes.values() for axes in entry.axes)
    found = []
    for past in PASTS if entry.takes_past else (0,):
        top = entry.limit - past if entry.limit is not None else WITHOUT_LIMIT
        lengths = entry.lengths or sorted({*(n for n in LENGTHS if n <= top), top})
        for seq in lengths:
            found += [Sizes(batch, seq, past) for batch in (BATCHES if has_batch else (1,))]
    return found


def check_file(path: Path, reference: Reference) -> Finding:
    """Load the file and compare it with the entry at every size, beyond the limit, and causally."""
    entry = reference.entry
    try:
        file = File(path)
    except Exception as error:  # onnxruntime raises a dozen classes of its own
        return Finding(status="unloadable", reason=short(error))
    worst, shapes = 0.0, 0
    for sizes in sizes_of(entry):
        inputs = make_inputs(entry, sizes)
        expected = reference(inputs)
        place = f"batch {sizes.batch}, length {sizes.seq}" + (
            f", past {sizes.past}" if entry.takes_past else ""
        )
        try:
            got = file(inputs)
        except Exception as error:
            reason = f"{place}: {short(error)}"
            return Finding(status="fails", reason=reason, max_error=worst, shapes=shapes)
        error_here, why = difference(got, expected)
        worst, shapes = max(worst, error_here), shapes + 1
        if error_here > reference.tolerance:
            return Finding(status="wrong", reason=f"{place}: {why}", max_error=worst, shapes=shapes)
    beyond = _beyond(file, reference)
    leak = 0.0
    if not entry.expect.startswith("not_causal"):
        leak = _leak(file, reference)
        # What the source itself lets through is its own rounding.
        if leak > max(4 * entry.causal_up_to, reference.tolerance / 10):
            reason = f"changing later tokens moves earlier outputs by {leak:.1e}"
            return Finding(status="wrong", reason=reason, max_error=worst, shapes=shapes, leak=leak)
    return Finding(status="right", max_error=worst, shapes=shapes, leak=leak, beyond=beyond)


def difference(got: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, str]:
    """The largest error over the outputs, and what it is about."""
    if len(got) != len(expected):
        return float("inf"), f"{len(got)} outputs instead of {len(expected)}"
    worst, why = 0.0, ""
    for index, (a, b) in enumerate(zip(got, expected, strict=True)):
        if a.shape != b.shape:
            shapes = f"shape {tuple(a.shape)} instead of {tuple(b.shape)}"
            return float("inf"), f"output {index} has {shapes}"
        wide = b.float() if b.dtype == torch.bfloat16 and a.dtype == torch.float32 else b
        if a.dtype != wide.dtype:
            return float("inf"), f"output {index} is {a.dtype} instead of {b.dtype}"
        error = relative_change(wide, a)
        if error >= worst:
            worst, why = error, f"output {index} is off by {error:.1e} of its scale"
    return worst, why


def _beyond(file: File, reference: Reference) -> str:
    entry = reference.entry
    if entry.limit is None:
        return ""
    past = MASKED_PAST if entry.takes_past else 0
    inputs = make_inputs(entry, Sizes(2, entry.limit - past + 1, past))
    try:
        got = file(inputs)
    except Exception:  # any error is a refusal
        return "refuses"
    try:
        expected = reference(inputs)
    except Exception:  # whatever the module raises is its answer
        return "answers"
    return "same" if difference(got, expected)[0] <= reference.tolerance else "differs"


def _leak(file: File, reference: Reference) -> float:
    """How far outputs before a cut move when the tokens from it on are replaced, at worst."""
    entry = reference.entry
    sizes = usual_sizes(entry)
    axes = reference.axes(sizes)
    inputs = make_inputs(entry, sizes)
    real = real_positions(entry, inputs) if entry.padded_rows_leak else None
    base = file(inputs)
    worst = 0.0
    for cut in sorted({1, sizes.seq // 2, sizes.seq - 1}):
        moved = file(change_tokens(entry, inputs, cut))
        for a, b, where in zip(base, moved, axes, strict=True):
            if where is not None:
                axis, keep = where[0], cut + where[1]
                before = keep_real(a.narrow(axis, 0, keep), axis, real)
                after = keep_real(b.narrow(axis, 0, keep), axis, real)
                worst = max(worst, relative_change(before, after, a))
    return worst


def differ(first: Path, second: Path, reference: Reference) -> float:
    """The largest difference between two files of one entry over several sizes."""
    a, b = File(first), File(second)
    shapes = sizes_of(reference.entry)
    worst = 0.0
    for sizes in {shapes[0], shapes[len(shapes) // 2], shapes[-1]}:
        inputs = make_inputs(reference.entry, sizes)
        worst = max(worst, difference(a(inputs), b(inputs))[0])
    return worst


def short(error: Exception) -> str:
    """An error on one line, cut."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]
