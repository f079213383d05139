"""The mask of a cached call: which columns hold a token in which row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["token_mask"]


def token_mask(lengths: Array, new: Array, seq: int) -> Array:
    """1 for the positions that count, past columns first; rows differ by their sums only.

    Args:
        lengths: (batch,), positions that each row has read before the call.
        new: (batch,), how many of the call's count.
        seq: How many the call has.

    Returns:
        int64 (batch, max(lengths) + seq), as `Contract.mask` says.
    """
    if (lengths == lengths[0]).all() and (new == seq).all():
        return np.ones((len(new), int(lengths[0]) + seq), np.int64)
    past = np.arange(int(lengths.max()))[None, :] < lengths[:, None]
    now = np.arange(seq)[None, :] < new[:, None]
    return np.concatenate([past, now], axis=1).astype(np.int64)
