"""The protocol's messages over gRPC: their fields, and the classes that protobuf makes of them.

The classes are made when they are first needed, in a pool of their own: whoever has the messages of
another library of the same names in the same process, such as a client's, is not in the way.

Source: github.com/kserve/open-inference-protocol and Triton's grpc_service.proto, whose numbers and
types these are; tests compare them with those of a client.
"""

from __future__ import annotations

import functools
from typing import Any

from causal_onnx.runtime.text.extras import import_extra

__all__ = ["SERVICE", "message_class"]

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

FIELDS = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "1 live bool",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "1 ready bool",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "1 name string, 2 version string, 3 extensions string*",
    "ModelReadyRequest": "1 name string, 2 version string",
    "ModelReadyResponse": "1 ready bool",
    "ModelMetadataRequest": "1 name string, 2 version string",
    "ModelMetadataResponse": """1 name string, 2 versions string*, 3 platform string,
        4 inputs ModelMetadataResponse.TensorMetadata*,
        5 outputs ModelMetadataResponse.TensorMetadata*""",
    "ModelMetadataResponse.TensorMetadata": "1 name string, 2 datatype string, 3 shape int64*",
    "ModelConfigRequest": "1 name string, 2 version string",
    "ModelConfigResponse": "1 config ModelConfig",
    "ModelConfig": """1 name string, 2 platform string, 17 backend string, 4 max_batch_size int32,
        5 input ModelInput*, 6 output ModelOutput*""",
    "ModelInput": "1 name string, 2 data_type DataType, 4 dims int64*, 8 optional bool",
    "ModelOutput": "1 name string, 2 data_type DataType, 3 dims int64*",
    "InferParameter": """1 bool_param bool|, 2 int64_param int64|, 3 string_param string|,
        4 double_param double|, 5 uint64_param uint64|""",
    "InferTensorContents": """1 bool_contents bool*, 2 int_contents int32*,
        3 int64_contents int64*, 4 uint_contents uint32*, 5 uint64_contents uint64*,
        6 fp32_contents float*, 7 fp64_contents double*, 8 bytes_contents bytes*""",
    "ModelInferRequest": """1 model_name string, 2 model_version string, 3 id string,
        4 parameters InferParameter%, 5 inputs ModelInferRequest.InferInputTensor*,
        6 outputs ModelInferRequest.InferRequestedOutputTensor*, 7 raw_input_contents bytes*""",
    "ModelInferRequest.InferInputTensor": """1 name string, 2 datatype string, 3 shape int64*,
        4 parameters InferParameter%, 5 contents InferTensorContents""",
    "ModelInferRequest.InferRequestedOutputTensor": """1 name string,
        2 parameters InferParameter%""",
    "ModelInferResponse": """1 model_name string, 2 model_version string, 3 id string,
        4 parameters InferParameter%, 5 outputs ModelInferResponse.InferOutputTensor*,
        6 raw_output_contents bytes*""",
    "ModelInferResponse.InferOutputTensor": """1 name string, 2 datatype string, 3 shape int64*,
        4 parameters InferParameter%, 5 contents InferTensorContents""",
    "ModelStreamInferResponse": "1 error_message string, 2 infer_response ModelInferResponse",
    "ModelRepositoryParameter": """1 bool_param bool|, 2 int64_param int64|,
        3 string_param string|, 4 bytes_param bytes|""",
    "RepositoryIndexRequest": "1 repository_name string, 2 ready bool",
    "RepositoryIndexResponse": "1 models RepositoryIndexResponse.ModelIndex*",
    "RepositoryIndexResponse.ModelIndex": """1 name string, 2 version string, 3 state string,
        4 reason string""",
    "RepositoryModelLoadRequest": """1 repository_name string, 2 model_name string,
        3 parameters ModelRepositoryParameter%""",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": """1 repository_name string, 2 model_name string,
        3 parameters ModelRepositoryParameter%""",
    "RepositoryModelUnloadResponse": "",
}
"""Message -> number, name and type of each field. "*": a list; "%": values by name; "|": one of
those that are so marked."""

DATA_TYPES = (
    "INVALID BOOL UINT8 UINT16 UINT32 UINT64 INT8 INT16 INT32 INT64 FP16 FP32 FP64 STRING BF16"
)
"""Of `DataType`, from 0."""

CHOICE = "parameter_choice"


def message_class(name: str) -> Any:
    """The class of a message, such as "ModelInferRequest".

    Raises:
        ImportError: protobuf is not installed.
    """
    return _classes()[f"{PACKAGE}.{name}"]


@functools.cache
def _classes() -> dict[str, Any]:
    purpose = "serving over gRPC"
    import_extra("grpc", extra="grpc", purpose=purpose)
    pb = import_extra("google.protobuf.descriptor_pb2", extra="grpc", purpose=purpose)
    pool = import_extra("google.protobuf.descriptor_pool", extra="grpc", purpose=purpose)
    factory = import_extra("google.protobuf.message_factory", extra="grpc", purpose=purpose)
    file = pb.FileDescriptorProto(
        name="causal_onnx/inference.proto", package=PACKAGE, syntax="proto3"
    )
    types = file.enum_type.add(name="DataType")
    for number, word in enumerate(DATA_TYPES.split()):
        types.value.add(name=f"TYPE_{word}", number=number)
    messages: dict[str, Any] = {}
    for name in FIELDS:
        outer, _, own = name.rpartition(".")
        place = messages[outer].nested_type if outer else file.message_type
        messages[name] = place.add(name=own)
    for name, text in FIELDS.items():
        for part in filter(None, map(str.strip, text.split(","))):
            _add_field(pb, name, messages[name], part)
    own_pool = pool.DescriptorPool()
    own_pool.Add(file)
    found: dict[str, Any] = factory.GetMessageClassesForFiles([file.name], own_pool)
    for name in FIELDS:
        full = f"{PACKAGE}.{name}"
        found[full] = factory.GetMessageClass(own_pool.FindMessageTypeByName(full))
    return found


def _add_field(pb: Any, owner: str, message: Any, text: str) -> None:
    number, name, kind = text.split()
    bare, mark = kind.rstrip("*%|"), kind[len(kind.rstrip("*%|")) :]
    proto = pb.FieldDescriptorProto
    field = message.field.add(name=name, number=int(number), label=proto.LABEL_OPTIONAL)
    if mark == "%":
        entry = message.nested_type.add(
            name="".join(word.capitalize() for word in name.split("_")) + "Entry"
        )
        entry.options.map_entry = True
        _add_field(pb, owner, entry, "1 key string")
        _add_field(pb, owner, entry, f"2 value {bare}")
        bare, mark = f"{owner}.{entry.name}", "*"
    if bare[0].islower():
        field.type = proto.Type.Value(f"TYPE_{bare.upper()}")
    else:
        field.type = proto.TYPE_ENUM if bare == "DataType" else proto.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{bare}"
    if mark == "*":
        field.label = proto.LABEL_REPEATED
    elif mark == "|":
        if not message.oneof_decl:
            message.oneof_decl.add(name=CHOICE)
        field.oneof_index = 0
