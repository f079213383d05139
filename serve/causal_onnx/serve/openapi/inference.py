"""The Open Inference Protocol over HTTP, described."""

from __future__ import annotations

from causal_onnx.serve.inference_protocol.datatypes import MOST_AXES, NAMES
from causal_onnx.serve.inference_protocol.http_tensors import MOST_TENSORS
from causal_onnx.serve.inference_protocol.tensors import MOST_PARAMETERS, RESERVED, VERSION
from causal_onnx.serve.openapi.openai import ERRORS, choosing_schemas, id_schema
from causal_onnx.serve.openapi.schemas import (
    Schema,
    array,
    described,
    either,
    event_of,
    integer,
    json_answer,
    nullable,
    object_of,
    of_type,
    operation,
    path_parameter,
    text,
)
from causal_onnx.serve.service import Service

__all__ = ["paths"]

BOOL = of_type("boolean")
ERROR = object_of({"error": text()})
DATATYPE = text([*NAMES.values()])
SIZES = array(integer(-1))
TENSORS = array(object_of({"name": text(), "datatype": DATATYPE, "shape": SIZES}))

SERVER = object_of({"name": text(), "version": text(), "extensions": array(text())})
MODEL = object_of(
    {
        "name": text(),
        "versions": array(text([VERSION])),
        "platform": text(),
        "inputs": TENSORS,
        "outputs": TENSORS,
    }
)
_CONFIGURED = {"name": text(), "data_type": text(), "dims": SIZES}
CONFIG = object_of(
    {
        "name": text(),
        "platform": text(),
        "backend": text(),
        "max_batch_size": integer(0, 0),
        "input": array(object_of({**_CONFIGURED, "optional": BOOL})),
        "output": array(object_of(_CONFIGURED)),
    }
)
INDEX = array(
    object_of(
        {
            "name": text(),
            "version": text([VERSION]),
            "state": text(["READY", "UNAVAILABLE"]),
            "reason": text(),
        }
    )
)


def paths(service: Service) -> dict[str, Schema]:
    """All paths of this protocol, for the models that are served now."""
    models = list(service.models.values())
    speaking = [item for item in models if item.engine is not None]
    errors = {status: json_answer(ERROR, why) for status, why in ERRORS.items()}
    asked = {status: errors[status] for status in (401, 404, 429)}
    name = path_parameter("model", text([item.name for item in models]))
    speaker = path_parameter("model", text([item.name for item in speaking]))
    version = path_parameter("version", text([VERSION]))
    alive = {"live": BOOL}
    is_ready = {"name": text(), "ready": BOOL}
    known = service.models.source
    loadable = path_parameter("model", text(known.names() if known is not None else ()))

    found = {
        "/v2": {
            "get": operation(
                "serverMetadata",
                "What the server is.",
                answers={200: json_answer(SERVER, "The server.")},
                errors={status: errors[status] for status in (401, 429)},
            )
        },
        "/v2/health/live": {
            "get": operation(
                "serverLive",
                "Whether the process answers.",
                answers={200: json_answer(object_of(alive), "It does.")},
                errors={},
                is_open=True,
            )
        },
        "/v2/health/ready": {
            "get": operation(
                "serverReady",
                "Whether work is taken.",
                answers=_ready({"ready": BOOL}),
                errors={},
                is_open=True,
            )
        },
        "/v2/repository/index": {
            "post": operation(
                "repositoryIndex",
                "All models, with their states.",
                answers={200: json_answer(INDEX, "The models.")},
                errors=errors,
                body=object_of({"ready": BOOL}, required=[]),
                body_is_required=False,
            )
        },
        "/v2/repository/models/{model}/load": {
            "post": _change(
                "repositoryModelLoad", "Load a model, or load it anew.", loadable, errors, {}
            )
        },
        "/v2/repository/models/{model}/unload": {
            "post": _change(
                "repositoryModelUnload",
                "Serve a model no more.",
                name,
                errors,
                {"unload_dependents": {}},
            )
        },
    }
    for base, suffix, more in (
        ("/v2/models/{model}", "", []),
        ("/v2/models/{model}/versions/{version}", "OfVersion", [version]),
    ):
        of_model, of_speaker = [name, *more], [speaker, *more]
        found |= {
            base: {
                "get": operation(
                    f"modelMetadata{suffix}",
                    "What a model takes and gives.",
                    answers={200: json_answer(MODEL, "The model.")},
                    errors=asked,
                    parameters=of_model,
                )
            },
            f"{base}/config": {
                "get": operation(
                    f"modelConfig{suffix}",
                    "The same in the form of Triton's configuration.",
                    answers={200: json_answer(CONFIG, "The configuration.")},
                    errors=asked,
                    parameters=of_model,
                )
            },
            f"{base}/ready": {
                "get": operation(
                    f"modelReady{suffix}",
                    "Whether a model takes work.",
                    answers=_ready(is_ready),
                    errors=asked,
                    parameters=of_model,
                )
            },
            f"{base}/infer": {
                "post": operation(
                    f"modelInfer{suffix}",
                    "Tensors in, tensors out. Binary data comes behind the JSON, as the header "
                    "Inference-Header-Content-Length says.",
                    answers={200: _tensors_answer()},
                    errors=errors,
                    body=_infer(),
                    parameters=of_model,
                )
            },
            f"{base}/generate": {
                "post": operation(
                    f"generate{suffix}",
                    "Continue a text, all in one answer.",
                    answers={200: json_answer(_generated(), "The continuation.")},
                    errors=errors,
                    body=_generate(id_schema(speaking)),
                    parameters=of_speaker,
                )
            },
            f"{base}/generate_stream": {
                "post": operation(
                    f"generateStream{suffix}",
                    "Continue a text, with an event for each piece.",
                    answers={
                        200: {
                            "description": "Lines of data.",
                            "content": {
                                "text/event-stream": {"schema": event_of("A part of the answer.")}
                            },
                        }
                    },
                    errors=errors,
                    body=_generate(id_schema(speaking)),
                    parameters=of_speaker,
                )
            },
        }
    return found


def _ready(fields: dict[str, Schema]) -> dict[int, Schema]:
    schema = object_of(fields)
    return {200: json_answer(schema, "It is."), 503: json_answer(schema, "It is not.")}


def _change(
    name: str, summary: str, model: Schema, errors: dict[int, Schema], taken: dict[str, Schema]
) -> Schema:
    return operation(
        name,
        summary,
        answers={200: json_answer(object_of({}), "It is done.")},
        errors=errors,
        body=object_of({"parameters": nullable(object_of(taken, required=[]))}, required=[]),
        body_is_required=False,
        parameters=[model],
    )


def _parameters(*taken: str) -> Schema:
    """Plain values by name; `taken` are of the protocol, and read elsewhere."""
    value = either(BOOL, of_type("number"), text())
    names = {"not": {"enum": [*RESERVED]}}
    return nullable(
        of_type(
            "object",
            properties={name: {"type": kind} for name, kind in _KINDS.items() if name in taken},
            additionalProperties=value,
            propertyNames=names,
            maxProperties=MOST_PARAMETERS,
        )
    )


_KINDS = {
    "binary_data_output": "boolean",
    "binary_data": "boolean",
    "sequence_id": ["integer", "string"],
    "sequence_start": "boolean",
    "sequence_end": "boolean",
    "timeout": "integer",
}


def _infer() -> Schema:
    given = {
        "name": text(),
        "datatype": DATATYPE,
        "shape": array(integer(0, (1 << 31) - 1), maxItems=MOST_AXES),
    }
    item = object_of(
        {
            **given,
            "data": described(of_type("array"), "Values, flat or nested as the shape is."),
            "parameters": nullable(
                object_of({"binary_data_size": integer(0)}, required=[]),
            ),
        },
        required=given,
    )
    wanted = object_of(
        {
            "name": text(),
            "parameters": nullable(object_of({"binary_data": BOOL}, required=[])),
        },
        required=["name"],
    )
    return object_of(
        {
            "id": text(),
            "parameters": _parameters(
                "binary_data_output", "sequence_id", "sequence_start", "sequence_end", "timeout"
            ),
            "inputs": array(item, maxItems=MOST_TENSORS),
            "outputs": nullable(array(wanted, maxItems=MOST_TENSORS)),
        },
        required=["inputs"],
    )


def _tensors_answer() -> Schema:
    output = {
        "name": text(),
        "datatype": DATATYPE,
        "shape": array(integer(0)),
    }
    more = {"data": of_type("array"), "parameters": object_of({"binary_data_size": integer(0)})}
    head = {
        "model_name": text(),
        "model_version": text([VERSION]),
        "outputs": array(object_of({**output, **more}, required=output)),
    }
    schema = object_of({**head, "id": text(), "parameters": of_type("object")}, required=head)
    found = json_answer(schema, "The outputs.")
    raw = described(of_type("string"), "The same, with binary data behind it.")
    return {**found, "content": {**found["content"], "application/octet-stream": {"schema": raw}}}


def _generate(ids: Schema) -> Schema:
    options = {"id": nullable(text()), "max_tokens": nullable(integer(1, 1 << 31))}
    options |= {**choosing_schemas(), "n": nullable(integer(1, 1))}
    parameters = nullable(object_of(options, required=[]))
    fields = {**options, "parameters": parameters}
    return either(
        object_of({"text_input": text(), **fields}, required=["text_input"]),
        object_of({"input_ids": array(ids, minItems=1), **fields}, required=["input_ids"]),
    )


def _generated() -> Schema:
    head = {"model_name": text(), "model_version": text([VERSION])}
    return object_of(
        {
            **head,
            "id": text(),
            "text_output": text(),
            "output_ids": array(integer(0)),
            "finish_reason": text(),
        },
        required=head,
    )
