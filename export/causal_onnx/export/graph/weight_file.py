"""Weights in a file that is mapped, and not in the memory of the process."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

__all__ = ["WeightFile"]

Array = npt.NDArray[Any]


class WeightFile:
    """Holds the numbers of arrays in a file without a name, which ends with the last of them.

    The system drops parts of such a file from memory as it gets scarce, and reads them again;
    memory of the process it has to keep.
    """

    def __init__(self, folder: Path, sizes: Iterable[int]):
        """Make room for arrays of so many bytes.

        Raises:
            OSError: There is no such folder, or no room in it.
        """
        end = sum(map(_rounded_up, sizes))
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `__exit__`
        self._file.truncate(max(end, 1))
        # One mapping for all: each holds a descriptor, of which a process has some hundreds.
        self._whole = np.memmap(self._file, np.uint8, "r+", shape=(max(end, 1),))
        self._start = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()  # the mapping stays

    def hold(self, array: Array) -> Array:
        """The same numbers, in the file.

        Raises:
            OSError: There is no room.
        """
        start, array = self._start, np.ascontiguousarray(array)
        self._file.seek(start)
        self._file.write(array.reshape(-1).view(np.uint8).data)
        self._file.flush()
        self._start += _rounded_up(array.nbytes)
        part: Array = np.asarray(self._whole[start : start + array.nbytes])
        return part.view(array.dtype).reshape(array.shape)


def _rounded_up(size: int) -> int:
    return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
