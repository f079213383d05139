"""bfloat16, which numpy does not have: the upper half of a float32, kept here as uint16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["from_bits", "to_bits"]


def to_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    upper = bits >> np.uint32(16)
    # Adding half of the last kept bit, less one where that bit is even, carries into the upper.
    rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
    quiet_nan = upper | np.uint32(0x0040)
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def from_bits(bits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The float32 of equal value; exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
