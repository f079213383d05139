"""A tensor in the memory of a GPU, which numpy does not see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime.session.device import Device
from causal_onnx.runtime.session.ort import import_onnxruntime

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["DeviceMemory", "on_host"]


class DeviceMemory:
    """An `onnxruntime.OrtValue` that is bound where it lies; reading and writing copies all of it.

    Source: https://onnxruntime.ai/docs/api/python/api_summary.html#data-on-device.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value
        """The `OrtValue`."""

    @classmethod
    def of(cls, array: Array, device: Device) -> DeviceMemory:
        """A copy of `array` on `device`."""
        ort_value = import_onnxruntime().OrtValue
        return cls(
            ort_value.ortvalue_from_numpy(np.ascontiguousarray(array), device.kind, device.index)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape())

    def read(self) -> Array:
        """A copy in host memory."""
        return np.array(self.value.numpy())

    def write(self, part: tuple[slice, ...], array: Array) -> None:
        """Replace a part; what is bound stays so."""
        whole = self.read()
        whole[part] = array
        self.value.update_inplace(whole)


def on_host(kept: Array | DeviceMemory) -> Array:
    """What is kept, where numpy can read it: itself, or a copy."""
    return kept.read() if isinstance(kept, DeviceMemory) else kept
