"""Serve models over HTTP, or answer many requests at once without it."""

from causal_onnx.serve.app import create_app
from causal_onnx.serve.engine.engine import Engine, EngineOptions, EngineState
from causal_onnx.serve.engine.generation import Generation, Score, Token
from causal_onnx.serve.engine.sequences import SequenceEngine, SequenceOptions, SequenceStep
from causal_onnx.serve.engine.tensors import TensorEngine, TensorOptions
from causal_onnx.serve.errors import (
    BadRequestError,
    BusyError,
    NotServedError,
    RequestError,
    UnavailableError,
)
from causal_onnx.serve.inference_protocol.grpc_server import GrpcServer
from causal_onnx.serve.options import ServeOptions
from causal_onnx.serve.registry import Registry, ServedModel, open_models
from causal_onnx.serve.server import Server

__all__ = [
    "BadRequestError",
    "BusyError",
    "Engine",
    "EngineOptions",
    "EngineState",
    "Generation",
    "GrpcServer",
    "NotServedError",
    "Registry",
    "RequestError",
    "Score",
    "SequenceEngine",
    "SequenceOptions",
    "SequenceStep",
    "ServeOptions",
    "ServedModel",
    "Server",
    "TensorEngine",
    "TensorOptions",
    "Token",
    "UnavailableError",
    "create_app",
    "open_models",
]
