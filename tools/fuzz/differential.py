"""Compare the runtime's decoder with protobuf's own, on messages made at random.

    python -m tools.fuzz.differential --messages 1000000

The scan judges what `scan/decode.py` reads, and onnxruntime runs what protobuf reads. To refuse a
message is safe. One that ours takes must be taken by protobuf, with the same fields and numbers.
Messages are built on the level of the wire: with numbers of all sizes, packed lists and single
numbers, integers longer than they need be, fields that stand twice, that exclude each other or that
nobody knows, groups, and damage. Some are models of the tests, changed in one field. Exit code 0 if
there was no difference; a difference is printed with its seed.
"""

from __future__ import annotations

import argparse
import collections
import math
import random
import sys
import time
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import onnx
from tools.fuzz.layout import Layout

from causal_onnx.runtime import ArtifactError
from causal_onnx.runtime.artifact.header import read_header
from causal_onnx.runtime.artifact.protobuf import (
    FIXED32,
    FIXED64,
    LENGTH_DELIMITED,
    VARINT,
    WindowedFile,
    WireError,
    varint_bytes,
)
from causal_onnx.runtime.scan.decode import Decoder, Message, Numbers
from causal_onnx.runtime.scan.schema import MESSAGES, Field

__all__ = ["compare", "make", "run"]

FIXTURES = Path(__file__).resolve().parents[2] / "tests/runtime/fixtures"

OFFICIAL: dict[str, Any] = {
    "model": onnx.ModelProto,
    "opset": onnx.OperatorSetIdProto,
    "entry": onnx.StringStringEntryProto,
    "graph": onnx.GraphProto,
    "node": onnx.NodeProto,
    "attribute": onnx.AttributeProto,
    "tensor": onnx.TensorProto,
    "location": onnx.StringStringEntryProto,
    "value": onnx.ValueInfoProto,
    "type": onnx.TypeProto,
    "tensor_type": onnx.TypeProto.Tensor,
    "element_type": onnx.TypeProto.Sequence,
    "shape": onnx.TensorShapeProto,
    "dim": onnx.TensorShapeProto.Dimension,
}
"""Our names of messages -> protobuf's classes."""

KINDS = list(MESSAGES)
FIELDS = {name: list(known.items()) for name, known in MESSAGES.items()}
WHOLE = 0.01
"""The share of changed models; one takes as long as fifty small messages."""
NESTED = 5


def make(
    seed: int, models: Sequence[Layout] = (), contents: Sequence[bytes] = ()
) -> tuple[str, bytes]:
    """The name and the bytes of the message of a seed."""
    rng = random.Random(seed)
    if models and rng.random() < WHOLE:
        index = rng.randrange(len(models))
        return "model", _changed(rng, models[index], contents[index])
    name = rng.choice(KINDS)
    return name, _message(rng, name, 0)


def _changed(rng: random.Random, layout: Layout, content: bytes) -> bytes:
    """A model with one field made anew, left out, or made twice."""
    place = layout.choose(rng)
    assert place is not None
    spec = MESSAGES[place.field[0]][place.number]
    new = b"".join(_field(rng, place.number, spec, 2) for _ in range(rng.choice((0, 1, 1, 1, 2))))
    return layout.replace(content, place, new)


def _message(rng: random.Random, name: str, depth: int) -> bytes:
    known = FIELDS[name]
    chosen = rng.sample(known, min(len(known), rng.choice((0, 1, 1, 2, 2, 3, 5))))
    parts = [_field(rng, number, spec, depth) for number, spec in chosen]
    if rng.random() < 0.06:
        parts.insert(rng.randint(0, len(parts)), _oddity(rng, known, depth))
    content = b"".join(parts)
    if content and rng.random() < 0.01:
        return content[: rng.randrange(len(content))]
    return content


def _oddity(rng: random.Random, known: list[tuple[int, Field]], depth: int) -> bytes:
    """A field that stands twice, of another wire type, that nobody knows, a group, or damage."""
    number, spec = rng.choice(known)
    kind = rng.randrange(5)
    if kind == 0:
        return _field(rng, number, spec, depth)
    if kind == 1:
        return varint_bytes(number << 3 | rng.randrange(8)) + rng.randbytes(rng.randrange(9))
    if kind == 2:
        return varint_bytes(rng.choice((0, 27, 99, 1 << 28, 1 << 29)) << 3) + b"\1"
    if kind == 3:
        return varint_bytes(number << 3 | 3) + b"\x08\x01" + varint_bytes(number << 3 | 4)
    return rng.randbytes(rng.randrange(1, 12))


def _field(rng: random.Random, number: int, spec: Field, depth: int) -> bytes:
    if spec.kind in ("varints", "floats", "doubles"):
        return _list(rng, number, spec)
    count = rng.choice((1, 1, 2, 3)) if spec.repeated else 1
    return b"".join(_single(rng, number, spec, depth) for _ in range(count))


def _single(rng: random.Random, number: int, spec: Field, depth: int) -> bytes:
    if spec.kind == "int":
        return _tag(rng, number, VARINT) + _varint(rng, _integer(rng))
    if spec.kind == "float":
        return _tag(rng, number, FIXED32) + rng.randbytes(4)
    if spec.kind == "message":
        inside = b"" if depth >= NESTED else _message(rng, spec.message, depth + 1)
    elif spec.kind == "text" and rng.random() < 0.02:
        inside = rng.randbytes(3)
    else:
        inside = rng.choice((b"", b"x", b"key", "ä".encode(), b"\0", b"location", bytes(130)))
    return _tag(rng, number, LENGTH_DELIMITED) + _varint(rng, len(inside)) + inside


def _list(rng: random.Random, number: int, spec: Field) -> bytes:
    """Numbers, in some packed lists and single fields."""
    out = b""
    for _ in range(rng.choice((1, 1, 2, 3))):
        count = rng.choice((0, 1, 1, 2, 5, 70))
        if spec.kind == "varints":
            items = [_varint(rng, _integer(rng)) for _ in range(count)]
            wire_type = VARINT
        else:
            wire_type = FIXED32 if spec.kind == "floats" else FIXED64
            items = [rng.randbytes(4 if wire_type == FIXED32 else 8) for _ in range(count)]
        if rng.random() < 0.5:
            out += b"".join(_tag(rng, number, wire_type) + item for item in items)
            continue
        packed = b"".join(items)
        if packed and rng.random() < 0.03:
            packed = packed[:-1]
        out += _tag(rng, number, LENGTH_DELIMITED) + _varint(rng, len(packed)) + packed
    return out


INTEGERS = [0, 1, 1, 2, 3, 7, 9, 14, 15, 127, 128, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
INTEGERS += [1 << 32, (1 << 32) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - (1 << 31)]
"""Unsigned; the last ones are negative."""


def _integer(rng: random.Random) -> int:
    return rng.choice(INTEGERS) if rng.random() < 0.8 else rng.getrandbits(rng.randint(1, 64))


def _varint(rng: random.Random, value: int) -> bytes:
    """As short as can be, or with zeros behind; some have more bits than 64."""
    plain = varint_bytes(value)
    if rng.random() > 0.02:
        return plain
    longer = (
        plain[:-1]
        + bytes([plain[-1] | 0x80])
        + b"\x80" * rng.randrange(9 if rng.random() < 0.5 else 3)
    )
    return longer + bytes([rng.choice((0, 0, 0, 2, 0x7F))])


def _tag(rng: random.Random, number: int, wire_type: int) -> bytes:
    plain = varint_bytes(number << 3 | wire_type)
    return plain if rng.random() > 0.004 else plain[:-1] + bytes([plain[-1] | 0x80]) + b"\0"


def compare(name: str, content: bytes) -> tuple[str, str]:
    """What came of a message: "equal", "refused" by ours, or "difference", and where it is."""
    try:
        ours = Decoder(WindowedFile(BytesIO(content))).message(name, 0, len(content))
    except WireError:
        return "refused", ""
    theirs = OFFICIAL[name]()
    try:
        theirs.ParseFromString(content)
    except Exception as error:  # protobuf's errors have no common base in all versions
        if _has_sealed(name, ours):
            return "refused", ""
        return "difference", f"protobuf refuses the {name}: {error}"
    found = _difference(name, ours, theirs, content)
    if not found and name == "model":
        found = _difference_of_headers(content, theirs)
    return ("difference", found) if found else ("equal", "")


SEALED = {
    (name, number)
    for name, known in MESSAGES.items()
    for number, spec in known.items()
    if spec.kind == "bytes" and OFFICIAL[name].DESCRIPTOR.fields_by_number[number].message_type
}
"""Messages whose insides ours does not read: most are refused for being there."""


def _has_sealed(name: str, ours: Message) -> bool:
    """Whether a message holds one that ours did not look into, where the damage may be."""
    for number, spec in MESSAGES[name].items():
        if spec.name not in ours:
            continue
        if (name, number) in SEALED:
            return True
        if spec.kind == "message":
            items = ours[spec.name] if spec.repeated else [ours[spec.name]]
            if any(_has_sealed(spec.message, item) for item in items):
                return True
    return False


def _difference(name: str, ours: Message, theirs: Any, content: bytes) -> str:
    """The first field that is not the same, or ""."""
    for number, spec in MESSAGES[name].items():
        field = OFFICIAL[name].DESCRIPTOR.fields_by_number[number]
        value = getattr(theirs, field.name)
        is_there = bool(len(value)) if spec.repeated else theirs.HasField(field.name)
        mine: Any = ours.get(spec.name)
        if isinstance(mine, Numbers):
            found = _different_numbers(mine, value)
        elif (mine is not None or (spec.kind == "float" and spec.name in ours)) != is_there:
            found = f"ours has {mine!r}, protobuf {value!r}"
        elif not is_there or spec.kind == "float" or (name, number) in SEALED:
            continue
        else:
            pairs = list(zip(mine, value, strict=True)) if spec.repeated else [(mine, value)]
            if spec.repeated and len(mine) != len(value):
                return f"{name}.{spec.name}: ours has {len(mine)}, protobuf {len(value)}"
            found = next((text for a, b in pairs if (text := _different(spec, a, b, content))), "")
        if found:
            return f"{name}.{spec.name}: {found}"
    return ""


def _different(spec: Field, mine: Any, value: Any, content: bytes) -> str:
    if spec.kind == "message":
        return _difference(spec.message, mine, value, content)
    if spec.kind == "bytes":
        position, length = mine
        mine = content[position : position + length]
        value = value if isinstance(value, bytes) else value.encode("utf-8", "surrogateescape")
    return "" if mine == value else f"ours has {mine!r}, protobuf {value!r}"


def _different_numbers(mine: Numbers, value: Sequence[Any]) -> str:
    if mine.count != len(value):
        return f"ours counts {mine.count} numbers, protobuf {len(value)}"
    for a, b in zip(mine.first, value, strict=False):
        if a != b and not (math.isnan(a) and math.isnan(b)):
            return f"ours has {a!r}, protobuf {b!r}"
    return ""


def _difference_of_headers(content: bytes, theirs: onnx.ModelProto) -> str:
    """Of what is read of a model before its graph."""
    try:
        header = read_header(BytesIO(content), name="it")
    except ArtifactError:
        return ""
    opsets = {"" if x.domain == "ai.onnx" else x.domain: x.version for x in theirs.opset_import}
    metadata = {entry.key: entry.value for entry in theirs.metadata_props}
    mine = (header.ir_version, dict(header.opsets), dict(header.metadata))
    if mine != (theirs.ir_version, opsets, metadata):
        return f"the header: ours has {mine!r}, protobuf {theirs.ir_version, opsets, metadata!r}"
    return ""


def run(seeds: range) -> tuple[collections.Counter[str], list[str]]:
    """Compare the messages of these seeds: what came of them, and the differences."""
    contents = [path.read_bytes() for path in sorted(FIXTURES.glob("*.onnx"))]
    layouts = [Layout.of(content) for content in contents]
    counts: collections.Counter[str] = collections.Counter()
    found = []
    for seed in seeds:
        name, content = make(seed, layouts, contents)
        outcome, where = compare(name, content)
        counts[outcome] += 1
        if where:
            found.append(f"seed {seed}: {where}")
    return counts, found


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the messages that the arguments name, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--messages", type=int, default=1_000_000, help="how many")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="the first seed")
    args = parser.parse_args(argv)
    started = time.monotonic()
    counts, found = run(range(args.first, args.first + args.messages))
    rate = f"{args.messages / (time.monotonic() - started):.0f} a second"
    for what, count, meaning in (
        ("messages", args.messages, rate),
        ("equal", counts["equal"], "read alike by the runtime and by protobuf"),
        ("refused", counts["refused"], "by the runtime"),
        ("difference", counts["difference"], "taken by the runtime, read otherwise: a defect"),
    ):
        print(f"{what:16} {count:9,}  {meaning}")
    for line in found[:20]:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
