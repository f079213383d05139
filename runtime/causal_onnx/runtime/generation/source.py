"""What a model is given beside its prompt: texts become ids, and which of them count a mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from causal_onnx.runtime.contract import Contract, TensorSpec
from causal_onnx.runtime.request.whole_numbers import whole_numbers
from causal_onnx.runtime.stream.given import Given

__all__ = ["Source", "complete_inputs", "text_input"]

Array = npt.NDArray[Any]
Source: TypeAlias = Given | str | Sequence[str] | Sequence[Sequence[int]]
"""An array; along the positions also a list with an array or None for each row; for an input of the
ids of a source also a text, or a list of texts or of ids of any lengths."""


def text_input(contract: Contract) -> TensorSpec | None:
    """The input that takes the ids of a source text; None: the model has none, or several."""
    found = [spec for spec in contract.inputs if _is_text(contract, spec)]
    return found[0] if len(found) == 1 else None


def complete_inputs(
    contract: Contract,
    inputs: Mapping[str, Source],
    encode: Callable[[str], Sequence[int]],
) -> dict[str, Given]:
    """Turn texts into ids, fill rows up to the longest one, and add the masks that say so.

    Args:
        contract: Of the model.
        inputs: By name. A mask of the source that is not among them is made: 1 for every id.
        encode: The ids of a text.

    Raises:
        ValueError: A text is given for another input than one of ids; or rows have different
            lengths, and the model takes no mask that says which ids count.
    """
    found: dict[str, Given] = {}
    keeps: dict[tuple[str | int, ...], Array] = {}
    for spec in contract.inputs:
        if spec.name not in inputs:
            continue
        given: Any = inputs[spec.name]
        rows = _rows(contract, spec, given, encode)
        if rows is None:
            found[spec.name] = given
            if _is_text(contract, spec) and np.ndim(given) == 2:
                keeps[spec.axes] = np.ones(np.shape(given), np.bool_)
            continue
        longest = max(len(row) for row in rows)
        ids = np.full((len(rows), longest), contract.pad_token_id or 0, np.int64)
        keep = np.zeros(ids.shape, np.bool_)
        for index, row in enumerate(rows):
            ids[index, : len(row)], keep[index, : len(row)] = row, True
        found[spec.name], keeps[spec.axes] = ids.astype(spec.dtype), keep
    masks = {}
    for spec in contract.inputs:
        is_mask = spec.kind in ("keep_mask", "hide_mask") and "float" not in spec.dtype
        if is_mask and spec.axes in keeps and spec.name not in inputs:
            keep = keeps[spec.axes]
            masks[spec.name] = (keep if spec.kind == "keep_mask" else ~keep).astype(spec.dtype)
    for axes, keep in keeps.items():
        masked = {s.axes for s in contract.inputs if s.kind in ("keep_mask", "hide_mask")}
        if axes not in masked and not keep.all():
            counts = ", ".join(str(int(n)) for n in keep.sum(axis=1))
            raise ValueError(
                f"the sources have {counts} ids, and the model takes no mask of which count: "
                "give sources of one length, or one by one"
            )
    unknown = {name: value for name, value in inputs.items() if name not in found}
    return {**found, **masks, **unknown}  # those are refused by name later


def _is_text(contract: Contract, spec: TensorSpec) -> bool:
    free = {axis.name for axis in contract.free_axes}
    return (
        spec.vocab_size is not None
        and len(spec.axes) == 2
        and spec.axes[0] == "batch"
        and spec.axes[1] in free
    )


def _rows(
    contract: Contract, spec: TensorSpec, given: Any, encode: Callable[[str], Sequence[int]]
) -> list[Sequence[int]] | None:
    """The ids of each row, where texts were given or lists; None: it is an array, or like one."""
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, list | tuple) or not items:
        return None
    is_text = any(isinstance(item, str) for item in items)
    if not is_text and not all(isinstance(item, list | tuple) for item in items):
        return None
    if not _is_text(contract, spec):
        if not is_text:
            return None
        raise ValueError(f"a text is for an input of ids (batch, ...); this is {spec.describe()}")
    rows: list[Sequence[int]] = []
    for index, item in enumerate(items):
        ids = encode(item) if isinstance(item, str) else item
        if not len(ids):
            raise ValueError(f"row {index} of {spec.name!r} is empty; expected at least one id")
        rows.append(whole_numbers(f"row {index} of {spec.name!r}", ids).tolist())
    return rows
