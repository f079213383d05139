"""Requests of tensors in bodies of HTTP: JSON, with binary data behind it, compressed or not.

Source: github.com/kserve/open-inference-protocol, and Triton's "Binary Tensor Data Extension".
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.responses import Response

from causal_onnx.runtime.json_text import read_json
from causal_onnx.serve.errors import BadRequestError, TooLargeError
from causal_onnx.serve.inference_protocol.answers import json_bytes
from causal_onnx.serve.inference_protocol.datatypes import (
    datatype_of,
    from_bytes,
    from_values,
    input_error,
    read_shape,
    size_bytes,
    to_bytes,
    to_values,
)
from causal_onnx.serve.inference_protocol.tensors import (
    VERSION,
    Requested,
    TensorRequest,
    Tensors,
    input_of,
    read_parameters,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.serve.registry import ServedModel

    Array = npt.NDArray[Any]

__all__ = ["decompressed", "parse_object", "read_tensors", "write_tensors"]

HEADER_LENGTH = "inference-header-content-length"
MOST_TENSORS = 1024
LEAST_COMPRESSED = 512
"""Bytes; a shorter answer does not become shorter."""


def decompressed(body: bytes, headers: Headers, *, most: int) -> bytes:
    """The body as it was before it was compressed.

    Raises:
        BadRequestError: It is not compressed as its header says.
        TooLargeError: It becomes longer than `most` bytes.
    """
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding in ("identity", ""):
        return body
    if coding not in ("gzip", "deflate"):
        raise BadRequestError(f"Content-Encoding must be gzip or deflate, got {coding[:60]!r}")
    reader = zlib.decompressobj(31 if coding == "gzip" else 15)
    try:
        found = reader.decompress(body, most + 1)
    except zlib.error as error:
        raise BadRequestError(f"the body is not valid {coding}: {error}") from error
    if len(found) > most:
        raise TooLargeError(
            f"the decompressed body has more than {most} bytes, the limit of this server"
        )
    if not reader.eof or reader.unused_data:
        raise BadRequestError(f"the body is not one complete {coding} stream")
    return found


def parse_object(body: bytes, *, most: int) -> dict[str, Any]:
    """A JSON object; an empty body is one without fields.

    Raises:
        BadRequestError: It is something else.
    """
    if not body.strip():
        return {}
    try:
        data = read_json(body, max_bytes=most)
    except ValueError as error:
        raise BadRequestError(f"the body is not JSON that can be read: {error}") from error
    if not isinstance(data, dict):
        raise BadRequestError(f"the body must be a JSON object, got {type(data).__name__}")
    return data


def read_tensors(
    served: ServedModel, body: bytes, headers: Headers, *, most: int
) -> tuple[TensorRequest, bool]:
    """Read a request, and whether outputs come as bytes where it does not say it of each.

    Raises:
        BadRequestError: It is not what the protocol or the contract has.
        TooLargeError: It becomes too long.
    """
    body = decompressed(body, headers, most=most)
    stated = headers.get(HEADER_LENGTH)
    if stated is None:
        text, tail = body, memoryview(b"")
    else:
        if not (stated.isascii() and stated.isdigit()) or int(stated[:12]) > len(body):
            raise BadRequestError(
                f"Inference-Header-Content-Length must be a number of bytes of the body, which has "
                f"{len(body)}, got {stated[:30]!r}"
            )
        text, tail = body[: int(stated)], memoryview(body)[int(stated) :]
    data = parse_object(text, most=most)
    identity = data.pop("id", "")
    if not isinstance(identity, str):
        raise BadRequestError("id must be a string", param="id")
    parameters = read_parameters(data.pop("parameters", None), where="parameters")
    given, asked = _objects(data, "inputs"), _objects(data, "outputs")
    if data:
        raise BadRequestError(f"{next(iter(data))[:60]} is not supported; leave it out")
    inputs: dict[str, Array] = {}
    for item in given:
        name, array, tail = _input(served, item, tail)
        if name in inputs:
            raise input_error(name, "is given twice")
        inputs[name] = array
    if tail:
        raise BadRequestError(f"{len(tail)} bytes are left over after the data of the inputs")
    all_binary = parameters.get("binary_data_output", False)
    if type(all_binary) is not bool:
        raise BadRequestError("binary_data_output must be true or false")
    request = TensorRequest(
        id=identity,
        inputs=inputs,
        requested=[_requested(item) for item in asked],
        parameters=parameters,
    )
    return request, all_binary


def _objects(data: dict[str, Any], name: str) -> list[dict[str, Any]]:
    given = data.pop(name, None)
    if given is None and name == "outputs":
        return []
    if (
        not isinstance(given, list)
        or len(given) > MOST_TENSORS
        or not all(isinstance(item, dict) for item in given)
    ):
        raise BadRequestError(f"{name} must be a list of objects", param=name)
    return [dict(item) for item in given]


def _input(
    served: ServedModel, item: dict[str, Any], tail: memoryview
) -> tuple[str, Array, memoryview]:
    """An input, and the binary data behind it."""
    spec = input_of(served, item.pop("name", None), item.pop("datatype", None))
    shape = read_shape(spec.name, item.pop("shape", None))
    values = item.pop("data", None)
    parameters = read_parameters(item.pop("parameters", None), where=f"parameters of {spec.name}")
    size = parameters.pop("binary_data_size", None)
    for left in (*item, *parameters):
        raise input_error(spec.name, f"has {left[:60]!r}, which is not supported; leave it out")
    if size is None:
        if not isinstance(values, list):
            raise input_error(spec.name, "needs data: a list of values, or binary_data_size")
        return spec.name, from_values(spec, shape, values), tail
    if values is not None:
        raise input_error(spec.name, "has data as well as binary_data_size; give one of them")
    if type(size) is not int or size < 0:
        raise input_error(spec.name, f"has a binary_data_size of {size!r}, expected whole bytes")
    if size > len(tail):
        raise input_error(spec.name, f"has a binary_data_size of {size}, and {len(tail)} are there")
    expected = size_bytes(spec, shape)
    if size != expected:
        raise input_error(
            spec.name,
            f"has {size} bytes, but {datatype_of(spec)} of shape {list(shape)} has {expected}",
        )
    return spec.name, from_bytes(spec, shape, tail[:size]), tail[size:]


def _requested(item: dict[str, Any]) -> Requested:
    name = item.pop("name", None)
    if not isinstance(name, str):
        raise BadRequestError("an output needs a name, a string", param="outputs")
    where = f"parameters of {name[:60]}"
    parameters = read_parameters(item.pop("parameters", None), where=where)
    for left in (*item, *(key for key in parameters if key != "binary_data")):
        raise BadRequestError(
            f"output {name[:60]!r} has {left[:60]!r}, which is not supported; leave it out"
        )
    if type(parameters.get("binary_data", False)) is not bool:
        raise BadRequestError(f"{where}: binary_data must be true or false")
    return Requested(name, parameters)


def write_tensors(
    served: ServedModel, tensors: Tensors, headers: Headers, *, all_binary: bool
) -> Response:
    """An answer, compressed where the client takes that.

    Raises:
        BadRequestError: An output has values that JSON does not have.
    """
    outputs: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for spec, array, parameters in tensors.outputs:
        item: dict[str, Any] = {
            "name": spec.name,
            "datatype": datatype_of(spec),
            "shape": list(array.shape),
        }
        if parameters.get("binary_data", all_binary):
            parts.append(to_bytes(spec, array))
            item["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            item["data"] = to_values(spec, array)
        outputs.append(item)
    data: dict[str, Any] = {"model_name": served.name, "model_version": VERSION}
    if tensors.id:
        data["id"] = tensors.id
    if tensors.parameters:
        data["parameters"] = dict(tensors.parameters)
    text = json_bytes({**data, "outputs": outputs})
    kept = {"content-type": "application/octet-stream" if parts else "application/json"}
    if parts:
        kept["inference-header-content-length"] = str(len(text))
    body = b"".join((text, *parts))
    coding = _accepted(headers.get("accept-encoding", ""))
    if coding is not None and len(body) >= LEAST_COMPRESSED:
        body = gzip.compress(body, 1, mtime=0) if coding == "gzip" else zlib.compress(body, 1)
        kept |= {"content-encoding": coding, "vary": "accept-encoding"}
    return Response(body, headers=kept)


def _accepted(header: str) -> str | None:
    """The way of compressing that a client takes, if any."""
    found: Mapping[str, bool] = {
        name.strip().lower(): weight.replace(" ", "").lower() not in ("q=0", "q=0.0", "q=0.00")
        for name, _, weight in (part.partition(";") for part in header.split(","))
    }
    return next((name for name in ("gzip", "deflate") if found.get(name)), None)
