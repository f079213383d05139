"""Mutations of a file: of its bytes, of its protobuf's structure, of the JSON in its metadata.

All are functions of a random generator, so that a seed makes the same file again.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tools.fuzz.layout import Layout, length_delimited

from causal_onnx.runtime.artifact.protobuf import varint_bytes

__all__ = ["Base", "change_bytes", "mutate_model"]

NUMBERS = (
    0, 1, 2, 3, 7, 8, 16, 63, 64, 127, 128, 255, 256, 1000, 65_535, 1 << 20, 1 << 24, (1 << 31) - 1,
    1 << 31, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, (1 << 64) - 2,
)  # fmt: skip

OPERATORS = (
    "If", "Loop", "Scan", "SequenceMap", "Expand", "ConstantOfShape", "Tile", "Range", "Pad",
    "Resize", "Attention", "GroupQueryAttention", "MatMulNBits", "MultiHeadAttention", "Einsum",
    "Reshape", "Transpose", "Slice", "Gather", "Split", "Concat", "Constant", "EPContext", "Conv",
    "LSTM", "TopK", "CumSum", "NonZero", "RotaryEmbedding", "SkipLayerNormalization", "Softmax",
)  # fmt: skip

TEXTS = (
    b"",
    b"x",
    b"batch",
    b"com.microsoft",
    b"ai.onnx.ml",
    b"\xff",
    b"a" * 300,
    b"%s%n",
    b"../x",
)

LOCATIONS = (
    b"../secret.data", b"link.data", b"hard.data", b"./../secret.data", b"m.onnx", b"..", b"",
    b"/proc/self/mem", b"sub/../../secret.data", b"*/_ORT_MEM_ADDR_/*", b"head_external.data",
    b"/dev/zero", b"pipe",
)  # fmt: skip

ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, 1, -1, 1 << 31, 1 << 63, 1e308, float("nan"), "", "seq", "batch", "float16", [],
    {}, [[]], "A" * 5000,
)  # fmt: skip


@dataclass(frozen=True)
class Base:
    """One file of the corpus."""

    name: str
    content: bytes
    layout: Layout


def mutate_model(base: Base, others: Sequence[Base], rng: random.Random) -> tuple[bytes, str]:
    """A changed file, and the names of the changes."""
    content, names = base.content, []
    for count in range(rng.choice((1, 1, 1, 2, 3))):
        # Structural changes need the places of the fields as they are now.
        layout = Layout.of(content) if count else base.layout
        name = rng.choices(list(_MODEL), [weight for _, weight in _MODEL.values()])[0]
        content = _MODEL[name][0](content, layout, others, rng)
        names.append(name)
    return content, "+".join(names)


def change_bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, drop, double or overwrite some bytes."""
    if not content:
        return b"\0"
    data = bytearray(content)
    kind = rng.randrange(6)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 2, 4, 8, 64, 1000)))
    if kind == 0:
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[start:]
    elif kind == 2:
        del data[start:end]
    elif kind == 3:
        data[start:start] = data[start:end]
    elif kind == 4:
        data[start:end] = rng.randbytes(end - start)
    else:
        data[start:end] = rng.choice((b"\0", b"\xff")) * (end - start)
    return bytes(data)


def _bytes(content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random) -> bytes:
    return change_bytes(content, rng)


def _splice(content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random) -> bytes:
    """The head of this file, the tail of another."""
    other = rng.choice(others).content
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other)) :]


def _length(content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random) -> bytes:
    """Another length of one field, and those around it as they were."""
    place = layout.choose(rng, lambda x: x.wire_type == 2)
    if place is None:
        return content
    size = place.end - place.payload
    wrong = rng.choice((0, size + 1, max(size - 1, 0), size * 2, 1 << 31, (1 << 64) - 1))
    head = content[place.start : place.start + place.tag_bytes] + varint_bytes(wrong)
    return content[: place.start] + head + content[place.payload :]


def _remove(content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random) -> bytes:
    place = layout.choose(rng)
    return content if place is None else layout.replace(content, place, b"")


def _double(content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random) -> bytes:
    place = layout.choose(rng)
    if place is None:
        return content
    whole = content[place.start : place.end]
    return layout.replace(content, place, whole * rng.choice((2, 2, 2, 10, 100)))


def _number(content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random) -> bytes:
    place = layout.choose(rng, lambda x: x.wire_type == 0)
    if place is None:
        return content
    head = content[place.start : place.start + place.tag_bytes]
    return layout.replace(content, place, head + varint_bytes(rng.choice(NUMBERS)))


def _text(content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random) -> bytes:
    """Another name: one that the file has elsewhere, an operator, or an odd one."""
    place = layout.choose(rng, lambda x: x.kind == "text")
    if place is None:
        return content
    if place.field == ("node", "op_type") and rng.random() < 0.8:
        text = rng.choice(OPERATORS).encode()
    elif rng.random() < 0.6:
        other = layout.choose(rng, lambda x: x.field == place.field) or place
        text = content[other.payload : other.end]
    else:
        text = rng.choice(TEXTS)
    return layout.replace(content, place, length_delimited(place.number, text))


def _data(content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random) -> bytes:
    """Other numbers in a small tensor: a shape, axes, a limit."""
    place = layout.choose(
        rng, lambda x: x.field == ("tensor", "raw_data") and x.end - x.payload <= 64
    )
    if place is None or place.end == place.payload:
        return content
    data = bytearray(content[place.payload : place.end])
    if len(data) % 8 == 0:
        at = rng.randrange(len(data) // 8) * 8
        data[at : at + 8] = rng.choice(NUMBERS).to_bytes(8, "little")
    else:
        data[:] = rng.randbytes(len(data))
    return layout.replace(content, place, length_delimited(place.number, bytes(data)))


def _transplant(
    content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random
) -> bytes:
    """A field of the same kind from another file, in the place of this one or beside it."""
    place = layout.choose(rng)
    if place is None:
        return content
    other = rng.choice(others)
    donor = other.layout.choose(rng, lambda x: x.field == place.field)
    if donor is None:
        return content
    new = other.content[donor.start : donor.end]
    kept = content[place.start : place.end] if rng.random() < 0.5 else b""
    return layout.replace(content, place, kept + new)


def _copy(content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random) -> bytes:
    """One field in the place of another of its kind: a node, an attribute, an input."""
    place = layout.choose(rng)
    if place is None:
        return content
    other = layout.choose(rng, lambda x: x.field == place.field) or place
    if other.start < place.end and place.start < other.end:
        return content
    return layout.replace(content, place, content[other.start : other.end])


def _outside(content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random) -> bytes:
    """A weight that lies in another file."""
    place = layout.choose(rng, lambda x: x.field == ("location", "value"))
    if place is not None and rng.random() < 0.6:
        new = length_delimited(place.number, rng.choice(LOCATIONS))
        return layout.replace(content, place, new)
    place = layout.choose(rng, lambda x: x.field == ("tensor", "raw_data"))
    if place is None:
        return content
    pairs = {b"location": rng.choice(LOCATIONS)}
    if rng.random() < 0.7:
        pairs[b"offset"] = rng.choice((b"0", b"4", b"-1", b"99999999", b"0x0", b"4096"))
    if rng.random() < 0.7:
        sizes = (str(place.end - place.payload).encode(), b"0", b"-1", b"9" * 19)
        pairs[b"length"] = rng.choice(sizes)
    new = b"".join(
        length_delimited(13, length_delimited(1, key) + length_delimited(2, text))
        for key, text in pairs.items()
    )
    kept = content[place.start : place.end] if rng.random() < 0.1 else b""
    return layout.replace(content, place, kept + new + varint_bytes(14 << 3) + varint_bytes(1))


def _metadata(content: bytes, layout: Layout, others: Sequence[Base], rng: random.Random) -> bytes:
    """The JSON of contract, goldens, certificate or source, changed in one place or several."""
    place = layout.choose(rng, lambda x: x.field == ("entry", "value"))
    if place is None:
        return content
    text = content[place.payload : place.end]
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):  # an earlier change may have nested it deeply
        return content
    if rng.random() < 0.1:
        new = change_bytes(text, rng)
    elif rng.random() < 0.05:
        new = b"[" * rng.choice((10, 5000, 200_000)) + text
    else:
        for _ in range(rng.choice((1, 1, 2, 5))):
            _edit(document, rng)
        new = json.dumps(document).encode()
    return layout.replace(content, place, length_delimited(place.number, new))


def _edit(document: Any, rng: random.Random) -> None:
    """Change one value somewhere below."""
    node = document
    while isinstance(node, dict | list) and node:
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        if not isinstance(node[key], dict | list) or not node[key] or rng.random() < 0.15:
            kind = rng.randrange(4)
            if kind == 0:
                del node[key]
            elif kind == 1 and isinstance(node, dict):
                node[rng.choice(("unknown", "inputs", "shape", "axes", ""))] = node.pop(key)
            elif kind == 2 and isinstance(node, list):
                node.append(node[key])
            else:
                # A copy: a list among them would grow from one file to the next.
                node[key] = copy.deepcopy(rng.choice(ODD_VALUES))
            return
        node = node[key]


Mutation = Callable[[bytes, Layout, Sequence[Base], random.Random], bytes]

_MODEL: dict[str, tuple[Mutation, float]] = {
    "bytes": (_bytes, 3),
    "splice": (_splice, 1),
    "length": (_length, 1),
    "remove": (_remove, 2),
    "double": (_double, 2),
    "number": (_number, 4),
    "text": (_text, 4),
    "data": (_data, 3),
    "transplant": (_transplant, 2),
    "copy": (_copy, 2),
    "outside": (_outside, 2),
    "metadata": (_metadata, 3),
}
"""Name -> (what it does, how often)."""
