"""Requests of tensors in messages of gRPC, and the answers."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.serve.errors import BadRequestError
from causal_onnx.serve.inference_protocol.datatypes import (
    datatype_of,
    from_bytes,
    from_values,
    input_error,
    read_shape,
    to_bytes,
)
from causal_onnx.serve.inference_protocol.grpc_messages import CHOICE, message_class
from causal_onnx.serve.inference_protocol.tensors import (
    VERSION,
    Parameter,
    Requested,
    TensorRequest,
    Tensors,
    input_of,
    read_parameters,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.contract import TensorSpec
    from causal_onnx.serve.registry import ServedModel

    Array = npt.NDArray[Any]

__all__ = [
    "is_text_request",
    "plain_parameters",
    "read_tensors",
    "read_text",
    "text_message",
    "write_tensors",
]

TEXT_INPUT = "text_input"
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
"""Where values of a datatype stand, if not as raw bytes; the shorter floats only come as those."""


def plain_parameters(parameters: Mapping[str, Any]) -> dict[str, Parameter]:
    """Parameters as values."""
    found = {}
    for name, item in parameters.items():
        choice = item.WhichOneof(CHOICE)
        if choice is None:
            raise BadRequestError(f"the parameter {name[:60]!r} has no value")
        found[name] = getattr(item, choice)
    return found


def read_tensors(served: ServedModel, message: Any) -> TensorRequest:
    """Read a ModelInferRequest.

    Raises:
        BadRequestError: It is not what the protocol or the contract has.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise BadRequestError(
            f"raw_input_contents has {len(raw)} entries for {len(message.inputs)} inputs; give one "
            "to each or to none"
        )
    inputs: dict[str, Array] = {}
    for place, item in enumerate(message.inputs):
        spec = input_of(served, item.name, item.datatype)
        shape = read_shape(spec.name, list(item.shape))
        known = read_parameters(
            plain_parameters(item.parameters), where=f"parameters of {spec.name}"
        )
        for left in known:
            raise input_error(spec.name, f"has {left[:60]!r}, which is not supported")
        if spec.name in inputs:
            raise input_error(spec.name, "is given twice")
        if not raw:
            inputs[spec.name] = _from_contents(spec, shape, item.contents)
        elif item.HasField("contents"):
            raise input_error(spec.name, "has contents as well as raw bytes; give one of them")
        else:
            inputs[spec.name] = from_bytes(spec, shape, raw[place])
    return TensorRequest(
        id=message.id,
        inputs=inputs,
        requested=[_requested(item) for item in message.outputs],
        parameters=read_parameters(plain_parameters(message.parameters), where="parameters"),
    )


def _from_contents(spec: TensorSpec, shape: tuple[int, ...], contents: Any) -> Array:
    datatype = datatype_of(spec)
    field = CONTENTS.get(datatype)
    if field is None:
        raise input_error(spec.name, f"is {datatype}, which comes in raw_input_contents only")
    values = getattr(contents, field)
    if len(values) != math.prod(shape):
        raise input_error(
            spec.name,
            f"has {len(values)} values in {field}, but its shape {list(shape)} has "
            f"{math.prod(shape)}",
        )
    if np.dtype(spec.host_dtype).kind == "f":  # not finite ones among them, as in raw bytes
        return np.array(values, spec.host_dtype).reshape(shape)
    return from_values(spec, shape, list(values))


def _requested(item: Any) -> Requested:
    parameters = read_parameters(
        plain_parameters(item.parameters), where=f"parameters of {item.name[:60]}"
    )
    for left in parameters:
        if left != "binary_data":  # all come as raw bytes
            raise BadRequestError(
                f"output {item.name[:60]!r} has {left[:60]!r}, which is not supported"
            )
    return Requested(item.name, parameters)


def _put(target: Any, parameters: Mapping[str, Parameter]) -> None:
    for name, value in parameters.items():
        if isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int):
            field = "int64_param" if value < 1 << 63 else "uint64_param"
            setattr(target[name], field, value)
        elif isinstance(value, float):
            target[name].double_param = value
        else:
            target[name].string_param = value


def write_tensors(
    served: ServedModel, tensors: Tensors, *, more: Mapping[str, Parameter] | None = None
) -> Any:
    """A ModelInferResponse.

    Args:
        served: Whose outputs they are.
        tensors: The answer.
        more: Parameters besides its own.
    """
    message = message_class("ModelInferResponse")(
        model_name=served.name, model_version=VERSION, id=tensors.id
    )
    _put(message.parameters, {**tensors.parameters, **(more or {})})
    for spec, array, _ in tensors.outputs:
        message.outputs.add(name=spec.name, datatype=datatype_of(spec), shape=array.shape)
        message.raw_output_contents.append(to_bytes(spec, array))
    return message


def is_text_request(message: Any) -> bool:
    """Whether a ModelInferRequest holds a text to be continued."""
    return any(item.name == TEXT_INPUT for item in message.inputs)


def read_text(message: Any) -> dict[str, Any]:
    """The fields of a request to continue a text, as `generate` has them: its parameters, too.

    Raises:
        BadRequestError: It has other inputs, or more than one text.
    """
    if len(message.inputs) != 1 or message.inputs[0].datatype != "BYTES":
        raise BadRequestError(f"{TEXT_INPUT} must be the only input, of datatype BYTES")
    item, raw = message.inputs[0], message.raw_input_contents
    texts: Iterable[bytes] = item.contents.bytes_contents
    if raw:
        texts = _strings(raw[0]) if len(raw) == 1 else ()
    found = list(texts)
    if len(found) != 1 or any(size != 1 for size in item.shape):
        raise input_error(TEXT_INPUT, "must be one text, of shape [1]")
    try:
        text = found[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise input_error(TEXT_INPUT, f"is not UTF-8: {error}") from error
    for output in message.outputs:
        if output.name != "text_output":
            raise BadRequestError(f"unknown output {output.name[:60]!r}; it is text_output")
    parameters = {
        name: value
        for name, value in plain_parameters(message.parameters).items()
        if name != "triton_enable_empty_final_response"
    }
    if TEXT_INPUT in parameters:
        raise BadRequestError(f"{TEXT_INPUT} is given twice, as an input and in parameters")
    return {**parameters, TEXT_INPUT: text, "id": message.id or None}


def _strings(raw: bytes) -> Iterable[bytes]:
    """Texts as BYTES has them: each behind its length, four bytes."""
    while raw:
        size = struct.unpack("<I", raw[:4])[0] if len(raw) >= 4 else 1 << 32
        if size > len(raw) - 4:
            raise input_error(TEXT_INPUT, "has bytes that are no texts behind their lengths")
        yield raw[4 : 4 + size]
        raw = raw[4 + size :]


def text_message(part: Mapping[str, Any]) -> Any:
    """A ModelInferResponse of what `generate` would answer."""
    text = part["text_output"].encode("utf-8", "replace")
    message = message_class("ModelInferResponse")(
        model_name=part["model_name"], model_version=part["model_version"], id=part.get("id", "")
    )
    _put(
        message.parameters,
        {
            "triton_final_response": "finish_reason" in part,
            **{name: part[name] for name in ("finish_reason",) if name in part},
        },
    )
    message.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    message.raw_output_contents.append(struct.pack("<I", len(text)) + text)
    return message
