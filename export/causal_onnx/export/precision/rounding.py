"""Round the weights of a module, and of the graph captured from it, to few bits alike.

What the graph multiplies by or looks up decides which parameters are rounded, and along which axis
their blocks run; module and graph then hold the same numbers, so that one can be the reference of
the other.
"""

from __future__ import annotations

import contextlib
import fnmatch
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from causal_onnx.export.errors import ExportError
from causal_onnx.export.graph.weight_file import WeightFile
from causal_onnx.export.graph.weights import Use, find_uses
from causal_onnx.export.precision.carry import Moment, joined, round_carrying
from causal_onnx.export.precision.choose import Coding
from causal_onnx.export.precision.fold import Exponents, Place, find_places, fold
from causal_onnx.export.precision.grid import SMALLEST_ELEMENTS, Grid, round_to_grid
from causal_onnx.export.precision.moments import Seen
from causal_onnx.export.precision.smoothing import (
    Sample,
    choose_exponents,
    error_of_product,
    some_outputs,
    text_of,
)

__all__ = ["Rounded", "round_module", "round_weights"]

_MOST_IN_MEMORY = 1 << 30
"""Bytes of rounded weights; more are held in a file, where there may be one."""

_TOO_SMALL = f"fewer than {SMALLEST_ELEMENTS} elements"

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Rounded:
    """Which parameters were rounded."""

    axes: Mapping[str, int]
    """Name of the parameter -> the axis along which its blocks run."""
    kept: tuple[str, ...]
    """What was looked up or multiplied by and stays as it is, with the reason."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """How, where the caller chose: the size of blocks, the rounding, what was left wider; and by
    what activations are divided."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Where activations are rounded too, by the name of a parameter: of its products with some of
    them the error, relative to the products; both as root mean squares."""

    def to_dict(self) -> dict[str, Any]:
        return {"axes": dict(self.axes), "kept": list(self.kept), **self.options}


def round_weights(
    model: ir.Model,
    module: nn.Module,
    coding: Coding,
    seen: Seen | None = None,
    max_seq_len: int | None = None,
    *,
    folder: Path | None = None,
) -> Rounded:
    """Round the weights of `model` and the parameters of `module` that they are, in place.

    A weight is a stored 2-D matrix that activations are multiplied by, or whose rows ids look up.
    It stays as it is if it is small, if no block divides it, if it is no parameter (nor rows of
    one), if it is to be kept, or if one use sums over its rows and another over its columns.

    Where activations are smoothed, the weights of the graph lie on the grid, and the parameters do
    so times powers of two: graph and module compute the same, and the module's norms stay.

    Args:
        model: The graph.
        module: Whose parameters it holds.
        coding: How each is rounded.
        seen: What the weights are multiplied by. Moments: to carry errors on; None: to the nearest.
            Samples: to smooth activations; None: they are not.
        max_seq_len: The most positions that the graph takes; None: any.
        folder: As for `round_module`.

    Raises:
        OSError: As for `round_module`.
        ExportError: A pattern of what to keep fits no weight.
    """
    owners, places = _weights(model, module)
    parameters = dict(module.named_parameters())
    wanted: dict[str, set[int]] = {}
    kept = []
    moments = None if seen is None else seen.moments
    inputs: dict[str, list[Moment | None]] = {}
    for use in find_uses(model):
        label = use.node.name or use.node.op_type
        if id(use.weight) not in owners:
            stored = use.weight.const_value
            is_small = stored is not None and stored.size < SMALLEST_ELEMENTS
            reason = _TOO_SMALL if is_small else "not a parameter of the module"
            kept.append(f"the weight of {label}: {reason}")
            continue
        name, is_transposed, _ = places[id(use.weight)]
        wanted.setdefault(name, set()).add(use.axis ^ is_transposed)
        if moments is not None:
            inputs.setdefault(name, []).append(_moment(use, moments))
    twins = _twins(wanted, parameters)
    for name, twin in twins:
        wanted[twin] = wanted[name]
        if name in inputs:
            inputs[twin] = inputs[name]
    _refuse_idle_patterns(coding, wanted)
    axes = {}
    for name, found in wanted.items():
        axis = min(found)
        grid = coding.grid_of(name)
        reason = "used along both" if len(found) > 1 else "asked for"
        if len(found) == 1 and grid is not None:
            reason = _reason(parameters[name], axis, grid)
        if reason:
            kept.append(f"{name}: {reason}")
        else:
            axes[name] = axis
    samples = (None if seen is None else seen.samples) or {}
    chosen: list[tuple[Place, Exponents]] = []
    if samples:
        whole = [p for p in find_places(model, max_seq_len) if _is_whole(p, places)]
        chosen = _smoothed(whole, places, axes, coding.grid, samples)
    smoothing = {
        places[id(use.weight)][0]: exponents
        for place, exponents in chosen
        for use in place.uses
        if id(use.weight) in places and places[id(use.weight)][0] in axes
    }
    smoothing |= {twin: smoothing[name] for name, twin in twins if name in smoothing}
    # Errors are told where there are activations to multiply by.
    products = _products(model, places, axes) if samples else []
    exact = {id(use.node): some_outputs(_by_row(use)) for use in products}
    carried = inputs if moments is not None else None
    round_module(module, axes, coding, carried, smoothing=smoothing, folder=folder)
    for key, value in owners.items():
        name, is_transposed, start = places[key]
        if name in axes:
            array = parameters[name].detach().numpy()
            rows = array.T if is_transposed else array
            assert value.shape is not None
            # A view: the module's rounded weights are the graph's, in the same memory.
            part = rows[start : start + int(value.shape[0])]  # type: ignore[arg-type]
            value.const_value = ir.tensor(part, name=value.name)
    errors: dict[str, float] = {}
    for use in products:
        name, sample = places[id(use.weight)][0], samples.get(_input_of(use))
        if sample is not None:
            before, after = exact[id(use.node)], some_outputs(_by_row(use))
            squared = error_of_product(sample.rows, before, after, smoothing.get(name))
            errors[name] = max(errors.get(name, 0.0), math.sqrt(squared))
    for place, exponents in chosen:
        fold(model, place, exponents)
    return Rounded(
        axes=dict(sorted(axes.items())),
        kept=tuple(sorted(set(kept))),
        options=_options(coding, wanted, smoothing),
        errors=errors,
    )


def _smoothed(
    found: Sequence[Place],
    places: Mapping[int, Owner],
    axes: Collection[str],
    grid: Grid,
    samples: Mapping[str, Sample],
) -> list[tuple[Place, Exponents]]:
    """Where activations are smoothed, and by how much."""
    chosen = []
    for place in found:
        sample = samples.get(place.value.name or "")
        weights = [
            _by_row(use)
            for use in place.uses
            if id(use.weight) in places and places[id(use.weight)][0] in axes
        ]
        if sample is None or not weights:
            continue
        exponents = choose_exponents(sample, weights, grid, place.columns)
        if exponents is not None:
            chosen.append((place, exponents))
    return chosen


def _products(model: ir.Model, places: Mapping[int, Owner], axes: Collection[str]) -> list[Use]:
    """The products with a weight that is rounded."""
    return [
        use
        for use in find_uses(model)
        if not use.is_lookup and id(use.weight) in places and places[id(use.weight)][0] in axes
    ]


def _input_of(use: Use) -> str:
    value = use.node.inputs[0]
    return (value.name if value is not None else None) or ""


def _by_row(use: Use) -> Floats:
    assert use.weight.const_value is not None
    array = use.weight.const_value.numpy()
    return array if use.axis == 1 else array.T


def _is_whole(place: Place, places: Mapping[int, Owner]) -> bool:
    """Whether the parameters behind the place's weights are nothing else in the graph.

    Rows of a parameter that other nodes read too (a table tied to a head, a layer used twice) would
    have to be scaled there as well. What reads the place has all rows of its parameter.
    """
    readers = {id(use.weight) for use in place.uses}
    for weight in place.weights:
        if id(weight) not in places:
            continue
        name, is_transposed, start = places[id(weight)]
        for key, (other, turned, first) in places.items():
            if other != name or key == id(weight):
                continue
            if id(weight) in readers and key not in readers:
                return False
            if turned != is_transposed or first == start:
                return False
    return True


def _weights(model: ir.Model, module: nn.Module) -> tuple[dict[int, ir.Value], dict[int, Owner]]:
    """The stored matrices that are parameters of the module, and where in it they stand."""
    parameters = {
        name: value
        for name, value in module.named_parameters()
        if value.ndim == 2 and value.dtype == torch.float32
    }
    owners, places = {}, {}
    for value in model.graph.initializers.values():
        place = _owner(value, parameters)
        if place is not None:
            owners[id(value)], places[id(value)] = value, place
    return owners, places


def _twins(names: Collection[str], parameters: Mapping[str, torch.Tensor]) -> list[tuple[str, str]]:
    """The parameters that hold the same numbers as one of `names`, each with that one.

    A weight of the graph is known by its numbers, so those that have the same are one: layers that
    are copies of each other, as before training.
    """
    found = []
    for name in names:
        value = parameters[name]
        first = value[:1]
        found += [
            (name, other)
            for other, candidate in parameters.items()
            if other not in names
            and candidate.shape == value.shape
            and candidate.dtype == value.dtype
            and torch.equal(candidate[:1], first)
            and torch.equal(candidate, value)
        ]
    return found


def _moment(use: Use, moments: Mapping[str, Moment]) -> Moment | None:
    """Of what the weight is multiplied by; None: it is looked up, or that was not seen."""
    return None if use.is_lookup else moments.get(_input_of(use))


def _refuse_idle_patterns(coding: Coding, names: Collection[str]) -> None:
    """Raise where something was to be kept that is not there: the caller means another name."""
    for pattern, _ in coding.keep:
        if not fnmatch.filter(names, pattern):
            raise ExportError(
                f"keep has the pattern {pattern!r}, which matches no weight; the weights are "
                f"{', '.join(sorted(names))}"
            )


def _options(
    coding: Coding, names: Collection[str], smoothing: Mapping[str, Exponents]
) -> dict[str, Any]:
    """What differs from a rounding that nobody chose anything of."""
    found: dict[str, Any] = {}
    if coding.grid.block_size != Grid(bits=coding.grid.bits).block_size:
        found["block_size"] = coding.grid.block_size
    if coding.rounding != "nearest":
        found["rounding"] = coding.rounding
    if coding.keep:
        grids = {name: coding.grid_of(name) for name in sorted(names)}
        found["wider"] = {n: g.bits if g else 32 for n, g in grids.items() if g != coding.grid}
    if smoothing:
        found["smoothing"] = {name: text_of(smoothing[name]) for name in sorted(smoothing)}
    return found


def round_module(
    module: nn.Module,
    axes: Mapping[str, int],
    coding: Coding,
    moments: Mapping[str, Sequence[Moment | None]] | None = None,
    *,
    smoothing: Mapping[str, Exponents] | None = None,
    folder: Path | None = None,
) -> None:
    """Round the named parameters in place, blocks along the named axes.

    Args:
        module: The module.
        axes: Name -> axis.
        coding: How each is rounded.
        moments: Name -> of each use what the parameter is multiplied by (None: rows are looked up);
            errors are then carried on. None: to the nearest.
        smoothing: Name -> exponents of two along the axis, by which the parameter is multiplied
            while it is rounded.
        folder: Where a file may hold the rounded numbers of a large module, beside those that they
            are made of; None: they are held in memory.

    Raises:
        OSError: There is no room in the folder.
        ValueError: The module has no such parameter, or none of that shape.
    """
    parameters = dict(module.named_parameters())
    sizes = [parameters[name].nbytes for name in axes if name in parameters]
    with contextlib.ExitStack() as stack:
        hold: Callable[[Floats], Floats] = np.ascontiguousarray
        if folder is not None and sum(sizes) > _MOST_IN_MEMORY:
            hold = stack.enter_context(WeightFile(folder, sizes)).hold
        for name, axis in axes.items():
            value, grid = parameters.get(name), coding.grid_of(name)
            reason = "there is no such 2-D parameter"
            if grid is None:
                reason = "it is to be kept"
            elif value is not None and value.ndim == 2:
                reason = _reason(value, axis, grid)
            if value is None or grid is None or reason:
                raise ValueError(f"the parameter {name!r} cannot be rounded: {reason}")
            matrix = value.detach().float().numpy()
            rows = matrix if axis == 1 else matrix.T
            exponents = (smoothing or {}).get(name)
            factors = None if exponents is None else _factors(exponents, name, rows.shape[1])
            rounded = _round(rows, grid, None if moments is None else moments[name], factors)
            # Not in its place: copies of a module share the memory of its weights.
            value.data = torch.from_numpy(hold(rounded if axis == 1 else rounded.T)).to(value.dtype)


def _round(
    rows: Floats,
    grid: Grid,
    moments: Sequence[Moment | None] | None,
    factors: Floats | None,
) -> Floats:
    """Rows on the grid, or, with factors of their columns, such as lie on it times these."""
    block = grid.block(rows.shape[1])
    assert block is not None
    if factors is not None:
        rows = rows * factors
    if moments is None:
        rounded = round_to_grid(rows, bits=grid.bits, block=block)
    else:
        moment = joined(moments)
        if factors is not None and moment is not None:
            moment = moment / torch.from_numpy(np.outer(factors, factors))
        rounded = round_carrying(rows, moment, bits=grid.bits, block=block)
    return rounded if factors is None else rounded / factors


def _factors(exponents: Exponents, name: str, width: int) -> Floats:
    if len(exponents) != width:
        raise ValueError(
            f"the parameter {name!r} is {width} wide, and its smoothing {len(exponents)}"
        )
    return np.exp2(exponents.astype(np.float32))


def _reason(value: torch.Tensor, axis: int, grid: Grid) -> str:
    """Why a parameter stays as it is, or ""."""
    if value.numel() < SMALLEST_ELEMENTS:
        return _TOO_SMALL
    width = value.shape[axis]
    if grid.block(width) is None:
        if grid.per_row:
            return f"its width {width} is more than {grid.widest}"
        return f"its width {width} is not a multiple of 16"
    if not bool(torch.isfinite(value).all()):
        return "it holds numbers that are not finite"
    return ""


Owner = tuple[str, bool, int]
"""Name of the parameter, whether the weight is (rows of) its transpose, the first row."""


def _owner(value: ir.Value, parameters: Mapping[str, torch.Tensor]) -> Owner | None:
    tensor = value.const_value
    if tensor is None or len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
        return None
    if tensor.size < SMALLEST_ELEMENTS:
        return None
    array = tensor.numpy()
    return next(_places(array, parameters), None)


def _places(array: Floats, parameters: Mapping[str, torch.Tensor]) -> Iterator[Owner]:
    """Where the rows of `array` stand in one of the parameters, or in the transpose of one."""
    rows, width = array.shape
    for name, value in parameters.items():
        whole = value.detach().numpy()
        for is_transposed, matrix in ((False, whole), (True, whole.T)):
            if matrix.shape[1] != width or matrix.shape[0] < rows:
                continue
            # The ends of the first row tell nearly always; of numbers in bf16, one is not enough.
            ends = matrix[: len(matrix) - rows + 1, :: max(width - 1, 1)]
            starts = np.flatnonzero((ends == array[0, :: max(width - 1, 1)]).all(axis=1))
            for start in starts[:64]:
                part = matrix[start : start + rows]
                if np.array_equal(part[0], array[0]) and np.array_equal(part, array):
                    yield name, is_transposed, int(start)
                    break
