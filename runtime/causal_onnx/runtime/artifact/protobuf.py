"""The protobuf wire format: fields of a message in a file, read without what they hold.

A length-delimited field is stepped over with a seek, so that a message of several gigabytes costs a
few small reads.
Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

__all__ = [
    "FIXED32",
    "FIXED64",
    "LENGTH_DELIMITED",
    "VARINT",
    "Piece",
    "WindowedFile",
    "WireError",
    "field_bytes",
    "fields",
    "messages",
    "rewritten",
    "signed",
    "varint",
    "varint_bytes",
]

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5

WINDOW_BYTES = 1 << 14
"""Read at once. Most nodes of a graph take 100 to 300 bytes, and between two weights of a large
model there are as many."""

LONGEST_HEAD = 15
"""A tag (5 bytes at most) and a varint (10 at most)."""


Piece = bytes | tuple[int, int]
"""New bytes, or those of the old file from the first to before the second place."""


class WireError(Exception):
    """The bytes do not follow the wire format, or not the message's fields."""


class WindowedFile:
    """A seekable file with a small part of it in memory."""

    def __init__(self, file: BinaryIO):
        """Measure `file`, whose position is changed from now on."""
        self._file = file
        self.size = file.seek(0, os.SEEK_END)
        self._window, self._base = b"", 0

    def window(self, position: int) -> tuple[bytes, int]:
        """Bytes of the file, and where among them `position` is.

        What follows it are `LONGEST_HEAD` bytes at least, or all up to the end of the file.
        """
        at = position - self._base
        if at < 0 or at + LONGEST_HEAD > len(self._window):
            self._file.seek(position)
            self._window, self._base = self._file.read(WINDOW_BYTES), position
            at = 0
        return self._window, at

    def read(self, position: int, length: int) -> bytes:
        """`length` bytes from `position` on.

        Raises:
            WireError: The file ends before.
        """
        at = position - self._base
        if at >= 0 and at + length <= len(self._window):
            return self._window[at : at + length]
        self._file.seek(position)
        data = self._file.read(length)
        if len(data) != length:
            raise WireError("it ends in the middle of a field")
        return data


def fields(source: WindowedFile, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the fields of the message in bytes `start` to `end`, in order.

    Yields:
        (field number, wire type, value, length, end). Of a varint the value is the number,
        unsigned, and the length 0; of the other types the value is the position of the payload in
        the file. `end` is the position behind the field.

    Raises:
        WireError: The bytes do not follow the format.
    """
    position = start
    window, base = b"", 0
    while position < end:
        at = position - base
        if at + LONGEST_HEAD > len(window):
            window, at = source.window(position)
            base = position - at
        begun = at
        # Nearly every tag and length is one byte, and a call takes as long as all else here.
        tag = window[at] if at < len(window) else 0x80
        if tag < 0x80:
            at += 1
        else:
            tag, at = varint(window, at)
        number, wire_type = tag >> 3, tag & 7
        # Protobuf reads a tag as 32 bits, in 5 bytes.
        if number == 0 or tag >> 32 or at - begun > 5:
            raise WireError(f"field number {number} at byte {position}")
        value, length = 0, 0
        if wire_type == VARINT:
            value, at = varint(window, at)
            position += at - begun
        else:
            if wire_type == LENGTH_DELIMITED:
                stated = at
                length = window[at] if at < len(window) else 0x80
                if length < 0x80:
                    at += 1
                else:
                    length, at = varint(window, at)
                if at - stated > 5:  # as protobuf reads it
                    raise WireError(f"the length of field {number} takes {at - stated} bytes")
            elif wire_type in (FIXED64, FIXED32):
                length = 8 if wire_type == FIXED64 else 4
            else:
                raise WireError(f"wire type {wire_type} at byte {position}")
            value = position + at - begun
            position = value + length
        if position > end:
            where = "the file" if end == source.size else "what holds it"
            raise WireError(f"field {number} ends {position - end} bytes after the end of {where}")
        yield number, wire_type, value, length, position


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Read one variable-length integer of up to 64 bits; return it and the place behind it."""
    try:
        byte = data[at]
        if byte < 0x80:
            return byte, at + 1
        result, shift = byte & 0x7F, 7
        while shift < 70:
            at += 1
            byte = data[at]
            result |= (byte & 0x7F) << shift
            if byte < 0x80:
                return result & 0xFFFF_FFFF_FFFF_FFFF, at + 1
            shift += 7
    except IndexError:
        raise WireError("it ends in the middle of a field") from None
    raise WireError("an integer is longer than 10 bytes")


def signed(value: int) -> int:
    """A varint's number as a signed one of 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def varint_bytes(value: int) -> bytes:
    """A number of up to 64 bits as a varint."""
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field_bytes(number: int, value: int | str | bytes) -> bytes:
    """One field of a message: a number as a varint, a text or bytes with their length before."""
    if isinstance(value, int):
        return varint_bytes(number << 3 | VARINT) + varint_bytes(value)
    payload = value.encode() if isinstance(value, str) else value
    return varint_bytes(number << 3 | LENGTH_DELIMITED) + varint_bytes(len(payload)) + payload


def messages(source: WindowedFile, start: int, end: int, field: int) -> Iterator[tuple[int, int]]:
    """(first byte, byte behind) of each length-delimited field of this number."""
    for number, wire_type, first, length, _ in fields(source, start, end):
        if number == field and wire_type == LENGTH_DELIMITED:
            yield first, first + length


def rewritten(
    source: WindowedFile, path: Sequence[int], change: Callable[[int, int], list[Piece]]
) -> list[Piece]:
    """A file with some messages in it changed.

    Args:
        source: The file.
        path: The field in which the messages are, from the outermost message on.
        change: Makes the pieces of the message in bytes `start` to `end`; `[(start, end)]`: as it
            was.
    """

    def message(start: int, end: int, path: Sequence[int]) -> list[Piece]:
        if not path:
            return change(start, end)
        pieces: list[Piece] = []
        kept = begun = start
        for number, wire_type, value, length, after in fields(source, start, end):
            if number == path[0] and wire_type == LENGTH_DELIMITED:
                inside = message(value, value + length, path[1:])
                if inside != [(value, value + length)]:
                    size = sum(len(x) if isinstance(x, bytes) else x[1] - x[0] for x in inside)
                    head = varint_bytes(number << 3 | LENGTH_DELIMITED) + varint_bytes(size)
                    pieces += [(kept, begun), head, *inside]
                    kept = after
            begun = after
        return [*pieces, (kept, end)]

    return message(0, source.size, path)
