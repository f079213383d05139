"""Decode a model's messages strictly: nothing that two readers could understand in two ways."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NoReturn

from causal_onnx.runtime.artifact.protobuf import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    WindowedFile,
    WireError,
    fields,
    signed,
    varint,
)
from causal_onnx.runtime.scan.limits import Refused
from causal_onnx.runtime.scan.schema import MESSAGES, Field

__all__ = ["Decoder", "Message", "Numbers"]

Message = dict[str, Any]
"""Fields by name; what is repeated as a list. A field that is absent has no entry."""

PACKED_BYTES = 1 << 11
"""A packed list costs as many fields as it has pieces of so many bytes; one is passed over in 2 us,
in which a field is decoded and judged."""

MAX_NESTING = 24
"""Messages in messages. A tensor in a branch in a branch is 9 deep; protobuf stops at 100."""

MAX_TEXT_BYTES = 1 << 16
"""Of one name. The longest that exporters write, made of module paths, have some hundreds."""

KEPT = 64
"""Numbers of a list that are kept: shapes, axes and paddings have fewer."""


@dataclass(slots=True)
class Numbers:
    """A list of numbers, of which only the first `KEPT` are kept."""

    count: int = 0
    first: list[int] | list[float] = field(default_factory=list)


class Decoder:
    """Decodes the messages of one file."""

    def __init__(self, source: WindowedFile, *, max_fields: int | None = None) -> None:
        """Prepare to decode at most `max_fields` fields, those of all messages together."""
        self._source = source
        self._max_fields = self._left = max_fields

    def message(self, name: str, start: int, end: int, depth: int = 0) -> Message:
        """The message `name` of the schema in bytes `start` to `end`.

        Raises:
            WireError: The bytes are damaged, a field is unknown or of another type, or a field
                that stands once appears twice.
            Refused: There are more fields than allowed.
        """
        if depth > MAX_NESTING:
            raise WireError(f"messages are nested more than {MAX_NESTING} deep")
        known = MESSAGES[name]
        found: Message = {}
        for number, wire_type, value, length, _ in fields(self._source, start, end):
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    self._refuse()
            spec = known.get(number)
            if spec is None:
                raise WireError(f"a {name} has a field {number}, which the format does not know")
            if spec.kind in ("varints", "floats", "doubles"):
                self._numbers(
                    found.setdefault(spec.name, Numbers()), spec, wire_type, value, length
                )
                continue
            decoded = self._value(name, spec, (wire_type, value, length), depth)
            if spec.repeated:
                found.setdefault(spec.name, []).append(decoded)
            elif spec.name in found:
                # Protobuf takes the last number and merges messages; other readers need not.
                raise WireError(f"a {name} has the field {spec.name!r} twice")
            else:
                found[spec.name] = decoded
        for one_of in _ONE_OF.get(name, ()):
            if len(one_of & found.keys()) > 1:
                raise WireError(
                    f"a {name} has {' and '.join(sorted(one_of & found.keys()))}, of which only "
                    "one may be there"
                )
        return found

    def _count(self, fields: int) -> None:
        if self._left is not None:
            self._left -= fields
            if self._left < 0:
                self._refuse()

    def _refuse(self) -> NoReturn:
        raise Refused(
            f"it has more than {self._max_fields} fields",
            "raise it: limits=Limits(max_fields=...)",
        )

    def _value(self, name: str, spec: Field, found: tuple[int, int, int], depth: int) -> Any:
        wire_type, value, length = found
        expected = _WIRE_TYPES.get(spec.kind, LENGTH_DELIMITED)
        if wire_type != expected:
            # Protobuf would pass over it as unknown.
            raise WireError(f"{spec.name!r} of a {name} has wire type {wire_type}, not {expected}")
        if spec.kind == "int":
            number = signed(value)
            least, most = _RANGES.get(spec.name, _INT64)
            # Protobuf cuts them to 32 bits, and drops those that an enumeration lacks.
            if not least <= number <= most:
                raise WireError(f"{spec.name!r} of a {name} is {number}, beyond {least} to {most}")
            return number
        if spec.kind == "float":
            return None
        if spec.kind == "bytes":
            return value, length
        if spec.kind == "message":
            return self.message(spec.message, value, value + length, depth + 1)
        if length > MAX_TEXT_BYTES:
            raise WireError(f"{spec.name!r} of a {name} is longer than {MAX_TEXT_BYTES} bytes")
        try:
            return self._source.read(value, length).decode()
        except UnicodeDecodeError as error:
            raise WireError(f"{spec.name!r} of a {name} is not UTF-8") from error

    def _numbers(
        self, numbers: Numbers, spec: Field, wire_type: int, value: int, length: int
    ) -> None:
        """Add what one field holds of a list: one number, or any number of them packed."""
        kept: list[Any] = numbers.first
        if spec.kind == "varints":
            read = _NUMBERS.get(spec.name, signed)
            if wire_type == VARINT:
                numbers.count += 1
                if len(kept) < KEPT:
                    kept.append(read(value))
                return
            if wire_type == LENGTH_DELIMITED:
                self._count(length // PACKED_BYTES)
                numbers.count += self._packed_varints(kept, read, value, length)
                return
        else:
            size, single = (4, FIXED32) if spec.kind == "floats" else (8, FIXED64)
            if wire_type in (single, LENGTH_DELIMITED):
                length = size if wire_type == single else length
                if length % size:
                    raise WireError(f"{spec.name!r} holds {length} bytes, not a multiple of {size}")
                numbers.count += length // size
                count = min(length // size, KEPT - len(kept))
                data = self._source.read(value, size * count)
                kept += struct.unpack(f"<{count}{'f' if size == 4 else 'd'}", data)
                return
        raise WireError(f"{spec.name!r} has wire type {wire_type}")

    def _packed_varints(
        self, kept: list[Any], read: Callable[[int], int], start: int, length: int
    ) -> int:
        """How many varints there are; the first ones go to `kept`."""
        head = self._source.read(start, min(length, 10 * KEPT))
        at = 0
        while at < len(head) and len(kept) < KEPT:
            number, at = varint(head, at)
            kept.append(read(number))
        count, kinds = 0, b""
        for begin in range(start, start + length, 1 << 20):
            piece = self._source.read(begin, min(1 << 20, start + length - begin))
            kinds = kinds[-10:] + piece.translate(_KINDS)
            if _TOO_LONG in kinds:
                raise WireError("an integer is longer than 10 bytes")
            count += kinds.count(b"\0", -len(piece))
        if kinds.endswith(b"\1"):
            raise WireError("a packed list ends in the middle of a number")
        return count


_WIRE_TYPES = {"int": VARINT, "float": FIXED32}
"""Of single values; the others are length-delimited."""

_KINDS = bytes(byte >> 7 for byte in range(256))
"""The last byte of each varint has no high bit: 0."""
_TOO_LONG = b"\1" * 10


def _signed_32(value: int) -> int:
    value &= 0xFFFF_FFFF
    return value - (1 << 32) if value >> 31 else value


_NUMBERS: Mapping[str, Callable[[int], int]] = {"int32_data": _signed_32, "uint64_data": int}
"""Lists whose numbers are not signed ones of 64 bits."""

_INT64 = (-(1 << 63), (1 << 63) - 1)
_INT32 = (-(1 << 31), (1 << 31) - 1)
_RANGES = {"data_type": _INT32, "elem_type": _INT32, "data_location": (0, 1), "type": (0, 14)}
"""Single numbers that protobuf does not keep in 64 bits."""

_ONE_OF: Mapping[str, Sequence[Set[str]]] = {
    "type": [
        frozenset(field.name for field in MESSAGES["type"].values() if field.name != "denotation")
    ],
    "dim": [frozenset({"dim_value", "dim_param"})],
}
"""Fields of which protobuf keeps the last alone."""
