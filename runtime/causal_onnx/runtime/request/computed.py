"""Inputs that follow from the others, as graphs of other exporters have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.contract import Contract

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["computed_inputs"]


def computed_inputs(
    contract: Contract, mask: Array | None, *, batch: int, past_seq: int, seq: int
) -> dict[str, Array]:
    """The inputs of `Contract.computed` for one call.

    Args:
        contract: Of the model.
        mask: (batch, total_seq), 1 for a token; None: every position is one.
        batch: Rows.
        past_seq: Columns before the new ones.
        seq: New columns.

    Returns:
        Name -> array, as the contract describes it.
    """
    specs = {spec.name: spec for spec in contract.inputs}
    sizes = {"batch": batch, "seq": seq}
    found: dict[str, Array] = {}
    for item in contract.computed:
        spec = specs[item.name]
        value: Array
        if item.rule == "positions":
            if mask is None:
                value = np.arange(past_seq, past_seq + seq)
            else:
                # Padding has a position too, which the model's table must have.
                value = np.maximum(np.cumsum(mask, 1, np.int64)[:, past_seq:] - 1, 0)
        else:
            value = np.asarray(past_seq > 0 if item.rule == "has_past" else 0)
        whole = np.broadcast_to(value.astype(spec.dtype), spec.shape(sizes))
        found[item.name] = np.ascontiguousarray(whole).reshape(whole.shape)
    return found
