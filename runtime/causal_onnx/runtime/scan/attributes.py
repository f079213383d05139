"""What a node's attributes hold, and of which types its values are."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

from causal_onnx.runtime.artifact.protobuf import WindowedFile
from causal_onnx.runtime.scan.decode import KEPT, Message, Numbers
from causal_onnx.runtime.scan.limits import Refused
from causal_onnx.runtime.scan.numbers import Contents, of_type

__all__ = ["check_attribute", "check_value", "contents", "integers", "read_texts", "tensors_of"]

_FIELDS = {
    1: "f", 2: "i", 3: "s", 4: "t", 5: "g", 6: "floats", 7: "ints", 8: "strings", 9: "tensors",
    10: "graphs", 13: "tp", 14: "type_protos",
}  # fmt: skip
"""AttributeProto.AttributeType -> the field that holds it."""

_AT_LEAST_ONE = frozenset(
    {
        "num_heads", "kv_num_heads", "q_num_heads", "block_size", "bits", "blocksize", "group",
        "num_groups", "strides", "dilations", "kernel_shape",
    }
)  # fmt: skip
"""onnxruntime divides by them; 0 ends the process (SIGFPE)."""

_ZERO_IS_DEFAULT = frozenset({("RotaryEmbedding", "num_heads")})
"""0 is the same as leaving it out: the width of a head then is that of its tables."""

_ANY_SIZE = frozenset({"value_int", "value_ints", "starts", "ends", "value", "seed"})
"""Numbers that onnxruntime keeps in 64 bits. Of others it takes the lower 32: 2^32 becomes 0."""

MAX_TEXT_BYTES = 1 << 12
"""Of a text that a rule reads: an equation, a mode."""


def check_attribute(attribute: Message, where: str, *, op_type: str = "") -> None:
    key, kind = attribute["name"], attribute.get("type", 0)
    held = [name for name in _FIELDS.values() if name in attribute]
    if "ref_attr_name" in attribute or "sparse_tensor" in attribute:
        raise Refused(f"{where}: the attribute {key!r} is a sparse tensor or of a local function")
    if "sparse_tensors" in attribute or kind not in _FIELDS:
        raise Refused(f"{where}: the attribute {key!r} is of the type {kind}")
    # A list without entries, and a number that is 0, have no field.
    if held and held != [_FIELDS[kind]]:
        raise Refused(
            f"{where}: the attribute {key!r} of type {kind} holds {' and '.join(held)}, expected "
            f"{_FIELDS[kind]}"
        )
    if not held and kind in (4, 5, 13):
        raise Refused(f"{where}: the attribute {key!r} of type {kind} is empty")
    if kind == 10:
        raise Refused(f"{where}: the attribute {key!r} is a list of graphs")
    sizes = [attribute["i"]] if "i" in attribute else attribute.get("ints", Numbers()).first
    if key not in _ANY_SIZE and any(abs(size) >= 1 << 31 for size in sizes):
        raise Refused(f"{where}: the attribute {key!r} is {sizes}, beyond 32 bits")
    # Of an attribute without a field, the number is 0.
    is_optional = (op_type, key) in _ZERO_IS_DEFAULT
    if key in _AT_LEAST_ONE and not is_optional and (not sizes or min(sizes) < 1):
        raise Refused(f"{where}: the attribute {key!r} is {sizes or 0}, expected 1 or more")


def check_value(value: Message, key: str) -> None:
    """The type of an input, an output or a value between."""
    where = f"the {key.replace('_', ' ')} {value.get('name', '')!r}"
    kind = value.get("type", {})
    if any(name in kind for name in ("map_type", "opaque_type", "sparse_tensor_type")):
        raise Refused(f"{where} is neither a tensor nor a list of tensors")
    tensor = kind.get("tensor_type", {})
    for dim in tensor.get("shape", {}).get("dim", []):
        if not 0 <= dim.get("dim_value", 0) <= 1 << 40:
            raise Refused(f"{where} has an axis of size {dim['dim_value']}")


def integers(attributes: dict[str, Message]) -> dict[str, list[int]]:
    """The integer attributes of a node by name, single ones as lists of one."""
    return {
        key: [value["i"]] if "i" in value else list(value["ints"].first)
        for key, value in attributes.items()
        if "i" in value or "ints" in value
    }


def tensors_of(attributes: dict[str, Message]) -> list[tuple[str, Message]]:
    """The tensors among the attributes of a node, each with the attribute's name."""
    found = []
    for key, attribute in attributes.items():
        held = [attribute["t"]] if "t" in attribute else []
        found += [(key, tensor) for tensor in held + attribute.get("tensors", [])]
    return found


def read_texts(source: WindowedFile, attributes: dict[str, Message]) -> None:
    """Read the texts among the attributes of a node, for its rule."""
    for attribute in attributes.values():
        if "s" in attribute:
            position, length = attribute["s"]
            attribute["text"] = source.read(position, min(length, MAX_TEXT_BYTES))


_FORMATS = {
    1: "f", 2: "B", 3: "b", 4: "H", 5: "h", 6: "i", 7: "q", 9: "B", 11: "d", 12: "I", 13: "Q"
}  # fmt: skip


def contents(source: WindowedFile, tensor: Message, shape: tuple[int, ...]) -> Contents | None:
    """The numbers of a small tensor of integers or floats."""
    count = math.prod(shape)
    letter = _FORMATS.get(tensor.get("data_type", 0))
    if letter is None or not 0 < count <= KEPT or tensor.get("data_location"):
        return None
    values: Sequence[Any] = []
    if "raw_data" in tensor:
        values = struct.unpack(f"<{count}{letter}", source.read(*tensor["raw_data"]))
    else:
        for key in ("int64_data", "int32_data", "float_data", "double_data", "uint64_data"):
            values = tensor[key].first if key in tensor else values
    if len(values) != count or not all(math.isfinite(x) for x in values):
        return None
    whole = letter not in "fd"
    found = Contents.of([int(x) if whole else x for x in values])
    return of_type(found, tensor.get("data_type", 0))
