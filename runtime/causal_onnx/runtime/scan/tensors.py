"""Tensors of a file: what they declare is what they hold, here or in a file beside the model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from causal_onnx.runtime.artifact.held import Held, NotHeldError
from causal_onnx.runtime.artifact.protobuf import WindowedFile
from causal_onnx.runtime.scan.decode import KEPT, Message, Numbers
from causal_onnx.runtime.scan.limits import Limits, Refused

__all__ = ["TensorChecker"]

BITS = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 8: 0, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64,
    14: 64, 15: 128, 16: 16, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2,
}  # fmt: skip
"""TensorProto.DataType -> bits of one element (0: a text)."""

STRING, BOOL = 8, 9
_TYPED = {
    "float_data": {1: 1, 14: 2},
    "double_data": {11: 1, 15: 2},
    "int64_data": {7: 1},
    "uint64_data": {12: 1, 13: 1},
    "int32_data": dict.fromkeys((2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 24), 1),
}
"""Field -> data type -> numbers of one element."""

_RANGES = {
    2: (0, 255),
    3: (-128, 127),
    4: (0, 65535),
    5: (-32768, 32767),
    BOOL: (0, 1),
    12: (0, (1 << 32) - 1),
}
"""Data type -> its least and greatest number, where a field may hold others."""

MAX_RANK = 64


class TensorChecker:
    """Checks the tensors of one file, and adds up their sizes."""

    def __init__(self, limits: Limits, held: Held) -> None:
        """Prepare for the tensors of a held model; the files beside it that they name are held."""
        self._limits = limits
        self._held = held
        self._bytes = 0

    @property
    def bytes(self) -> int:
        """Of all tensors so far."""
        return self._bytes

    def check(self, tensor: Message, where: str, *, may_be_external: bool) -> tuple[int, ...]:
        """Check one tensor and give its shape.

        Raises:
            Refused: It declares another size than it holds, or lies where it must not.
        """
        data_type = tensor.get("data_type", 0)
        if data_type not in BITS:
            raise Refused(f"{where} has the data type {data_type}, which is none of ONNX's")
        if "segment" in tensor:
            raise Refused(f"{where} is stored in segments, which onnxruntime does not read")
        dims: Numbers = tensor.get("dims", Numbers())
        if dims.count > MAX_RANK:
            raise Refused(f"{where} has {dims.count} axes, more than {MAX_RANK}")
        shape = tuple(int(size) for size in dims.first)
        if any(size < 0 for size in shape):
            raise Refused(f"{where} has the shape {_listed(shape)}")
        declared = (math.prod(shape) * BITS[data_type] + 7) // 8
        place = tensor.get("data_location", 0)
        if place not in (0, 1):
            raise Refused(f"{where} has the data location {place}, expected 0 or 1")
        if place == 1:
            if not may_be_external:
                raise Refused(f"{where} lies in another file, where only weights may")
            if any(name in tensor for name in (*_TYPED, "raw_data", "string_data")):
                raise Refused(f"{where} holds data and lies in another file too")
            self._check_external(tensor, where, declared)
        else:
            if "external_data" in tensor:
                raise Refused(f"{where} names another file, and is not marked as lying there")
            self._check_held(tensor, where, shape, declared)
        self._bytes += declared
        if self._bytes > self._limits.max_weight_bytes:
            raise Refused(
                f"its tensors take more than {self._limits.max_weight_bytes} bytes together",
                "raise it: limits=Limits(max_weight_bytes=...)",
            )
        return shape

    def _check_held(
        self, tensor: Message, where: str, shape: tuple[int, ...], declared: int
    ) -> None:
        data_type, elements = tensor.get("data_type", 0), math.prod(shape)
        held = [name for name in (*_TYPED, "raw_data", "string_data") if name in tensor]
        if len(held) > 1:
            raise Refused(f"{where} holds its data twice, as {' and '.join(held)}")
        name = held[0] if held else "raw_data"
        if name == "raw_data" and data_type != STRING:
            got, expected, unit = tensor.get("raw_data", (0, 0))[1], declared, "bytes"
        elif name == "string_data" and data_type == STRING:
            got, expected, unit = len(tensor[name]), elements, "texts"
        elif not held:
            got, expected, unit = 0, elements, "texts"
        elif name == "int32_data" and BITS[data_type] < 8 and data_type != STRING:
            got, expected, unit = tensor[name].count, declared, "numbers"
        elif data_type in _TYPED.get(name, {}):
            got, expected, unit = tensor[name].count, elements * _TYPED[name][data_type], "numbers"
        else:
            raise Refused(f"{where} of data type {data_type} holds its data as {name}")
        if got != expected:
            raise Refused(
                f"{where} of shape {_listed(shape)} holds {got} {unit}, expected {expected}",
                "export or download it again",
            )
        self._check_range(tensor, name, where)

    def _check_range(self, tensor: Message, name: str, where: str) -> None:
        """That the numbers of a small tensor are of its type: readers cut others differently."""
        data_type = tensor.get("data_type", 0)
        values: Sequence[float] = ()
        if name in ("int32_data", "uint64_data") and name in tensor:
            values = tensor[name].first
        elif data_type == BOOL and tensor.get("raw_data", (0, KEPT + 1))[1] <= KEPT:
            values = WindowedFile(self._held.stream).read(*tensor["raw_data"])
        least, most = _RANGES.get(data_type, (-math.inf, math.inf))
        odd = next((x for x in values if not least <= x <= most), None)
        if odd is not None:
            raise Refused(
                f"{where} of data type {data_type} holds the number {odd}, expected {least} to "
                f"{most}"
            )

    def _check_external(self, tensor: Message, where: str, declared: int) -> None:
        entries: dict[str, str] = {}
        for entry in tensor.get("external_data", []):
            key = entry.get("key", "")
            if key in entries:
                raise Refused(f"{where} states the {key!r} of its data twice")
            entries[key] = entry.get("value", "")
        unknown = sorted(set(entries) - {"location", "offset", "length", "checksum"})
        if unknown or "location" not in entries:
            what = f"states {unknown[0]!r}" if unknown else "does not state where"
            raise Refused(f"{where} lies in another file and {what}")
        location = entries["location"]
        size = self._size_of(location, where)
        offset, length = (
            _number(entries.get(key, str(default)), key, where)
            for key, default in (("offset", 0), ("length", declared))
        )
        if length != declared:
            raise Refused(f"{where} takes {length} bytes of {location!r}, expected {declared}")
        if offset + length > size:
            raise Refused(
                f"{where} takes bytes {offset} to {offset + length} of {location!r}, which has "
                f"{size}",
                "copy or download that file again",
            )

    def _size_of(self, location: str, where: str) -> int:
        """The size of the file `location` beside the model, which must be a file of its own."""
        # "*/_ORT_MEM_ADDR_/*" is one that onnxruntime takes for an address in memory.
        if (
            location in ("", ".", "..")
            or location != location.strip()
            or any(letter in '/\\:*"<>|?' or not letter.isprintable() for letter in location)
        ):
            raise Refused(
                f"{where} lies in {location!r}, expected the plain name of a file beside the model"
            )
        try:
            return self._held.beside(location, allow_link=self._limits.allow_links).st_size
        except NotHeldError as error:
            raise Refused(f"{where} lies in {location!r}, {error.found}", error.remedy) from error
        except OSError as error:
            raise Refused(
                f"{where} lies in {location!r}, and {error.strerror or error} there: its weights "
                "lie in a file beside it, which must be there",
                "copy that file too",
            ) from error


def _number(text: str, key: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise Refused(f"{where} has the {key} {text!r} in another file, expected a number of bytes")
    return int(text)


def _listed(shape: tuple[int, ...]) -> str:
    return f"({', '.join(str(size) for size in shape)})"
