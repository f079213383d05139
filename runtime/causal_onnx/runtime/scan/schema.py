"""The fields of ONNX's protobuf messages, as far as a model may use them.

Source: onnx.proto of onnx 1.23 (IR version 14). A field that is not listed is refused: a newer
onnxruntime may know one that this reader cannot judge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["MESSAGES", "Field"]

Kind = Literal[
    "int",  # varint, signed
    "float",  # 32 bits; the value is not read
    "text",  # a short UTF-8 text
    "bytes",  # (position, length); not read
    "varints",  # numbers, packed or one by one: counted, the first ones kept
    "floats",  # likewise, of 32 bits
    "doubles",  # likewise, of 64 bits
    "message",
]


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message."""

    name: str
    kind: Kind
    repeated: bool = False
    message: str = ""
    """The name of the message that it holds."""


def _message(name: str, message: str, *, repeated: bool = False) -> Field:
    return Field(name, "message", repeated, message)


_NOTES = _message("metadata_props", "entry", repeated=True)
_DOC = Field("doc_string", "bytes")

MESSAGES: dict[str, dict[int, Field]] = {
    "model": {
        1: Field("ir_version", "int"),
        2: Field("producer_name", "bytes"),
        3: Field("producer_version", "bytes"),
        4: Field("domain", "bytes"),
        5: Field("model_version", "int"),
        6: _DOC,
        7: _message("graph", "graph"),
        8: _message("opset_import", "opset", repeated=True),
        14: _NOTES,
        20: Field("training_info", "bytes", repeated=True),
        25: Field("functions", "bytes", repeated=True),
        26: Field("configuration", "bytes", repeated=True),
    },
    "opset": {1: Field("domain", "text"), 2: Field("version", "int")},
    "entry": {1: Field("key", "text"), 2: Field("value", "bytes")},
    "graph": {
        1: _message("node", "node", repeated=True),
        2: Field("name", "text"),
        5: _message("initializer", "tensor", repeated=True),
        10: _DOC,
        11: _message("input", "value", repeated=True),
        12: _message("output", "value", repeated=True),
        13: _message("value_info", "value", repeated=True),
        14: Field("quantization_annotation", "bytes", repeated=True),
        15: Field("sparse_initializer", "bytes", repeated=True),
        16: _NOTES,
    },
    "node": {
        1: Field("input", "text", repeated=True),
        2: Field("output", "text", repeated=True),
        3: Field("name", "text"),
        4: Field("op_type", "text"),
        5: _message("attribute", "attribute", repeated=True),
        6: _DOC,
        7: Field("domain", "text"),
        8: Field("overload", "text"),
        9: _NOTES,
        10: Field("device_configurations", "bytes", repeated=True),
    },
    "attribute": {
        1: Field("name", "text"),
        2: Field("f", "float"),
        3: Field("i", "int"),
        4: Field("s", "bytes"),
        5: _message("t", "tensor"),
        6: _message("g", "graph"),
        7: Field("floats", "floats", repeated=True),
        8: Field("ints", "varints", repeated=True),
        9: Field("strings", "bytes", repeated=True),
        10: _message("tensors", "tensor", repeated=True),
        11: _message("graphs", "graph", repeated=True),
        13: _DOC,
        14: _message("tp", "type"),
        15: _message("type_protos", "type", repeated=True),
        20: Field("type", "int"),
        21: Field("ref_attr_name", "text"),
        22: Field("sparse_tensor", "bytes"),
        23: Field("sparse_tensors", "bytes", repeated=True),
    },
    "tensor": {
        1: Field("dims", "varints", repeated=True),
        2: Field("data_type", "int"),
        3: Field("segment", "bytes"),
        4: Field("float_data", "floats", repeated=True),
        5: Field("int32_data", "varints", repeated=True),
        6: Field("string_data", "bytes", repeated=True),
        7: Field("int64_data", "varints", repeated=True),
        8: Field("name", "text"),
        9: Field("raw_data", "bytes"),
        10: Field("double_data", "doubles", repeated=True),
        11: Field("uint64_data", "varints", repeated=True),
        12: _DOC,
        13: _message("external_data", "location", repeated=True),
        14: Field("data_location", "int"),
        16: _NOTES,
    },
    "location": {1: Field("key", "text"), 2: Field("value", "text")},
    "value": {
        1: Field("name", "text"),
        2: _message("type", "type"),
        3: _DOC,
        4: _NOTES,
    },
    "type": {
        1: _message("tensor_type", "tensor_type"),
        4: _message("sequence_type", "element_type"),
        5: Field("map_type", "bytes"),
        6: Field("denotation", "text"),
        7: Field("opaque_type", "bytes"),
        8: Field("sparse_tensor_type", "bytes"),
        9: _message("optional_type", "element_type"),
    },
    "tensor_type": {1: Field("elem_type", "int"), 2: _message("shape", "shape")},
    "element_type": {1: _message("elem_type", "type")},
    "shape": {1: _message("dim", "dim", repeated=True)},
    "dim": {
        1: Field("dim_value", "int"),
        2: Field("dim_param", "text"),
        3: Field("denotation", "text"),
    },
}
