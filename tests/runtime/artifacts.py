"""The fixture files, and small changes to them on the level of bytes."""

from __future__ import annotations

from pathlib import Path

FIXTURES = Path(__file__).parent / "fixtures"


def fixture(name: str) -> Path:
    return FIXTURES / f"{name}.onnx"


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, value: int | str | bytes) -> bytes:
    """One protobuf field: an integer as varint, all else length-delimited."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    payload = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def metadata(key: str, text: str) -> bytes:
    """An entry of metadata_props; protobuf allows it anywhere at the top level, also at the end."""
    return field(14, field(1, key) + field(2, text))
