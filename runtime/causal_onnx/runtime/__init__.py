"""Run exported causal attention on numpy and onnxruntime; needs nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING

from causal_onnx.runtime.artifact.artifact import Artifact, read_artifact
from causal_onnx.runtime.artifact.selftest import SelfTestCase, SelfTestReport
from causal_onnx.runtime.contract import Contract, TensorSpec
from causal_onnx.runtime.errors import (
    ArtifactError,
    CausalOnnxError,
    DeviceError,
    RunError,
    UnsafeFileError,
)
from causal_onnx.runtime.generation.chat import Chat, Reply
from causal_onnx.runtime.generation.codes import Codes, Frame
from causal_onnx.runtime.generation.constraint import Constraint
from causal_onnx.runtime.generation.continuation import Continuation, Speculation
from causal_onnx.runtime.generation.prefix_cache import PrefixCache, PrefixStats
from causal_onnx.runtime.generation.sampling import Choice, Sampling
from causal_onnx.runtime.generation.speculate import DraftHeads, DraftModel, PromptLookup
from causal_onnx.runtime.model import Model, load
from causal_onnx.runtime.scan import Limits
from causal_onnx.runtime.session.trial import TrialLimits
from causal_onnx.runtime.stream.stream import Stream
from causal_onnx.runtime.text.tokenizer import Tokenizer
from causal_onnx.runtime.text.tool_calls import ToolCall

if TYPE_CHECKING:
    from causal_onnx.runtime.bundle import BundleReport, verify_bundle, write_bundle
    from causal_onnx.runtime.profile import Profile

__version__ = "0.1.0"

_LATER = {
    "BundleReport": "bundle",
    "Profile": "profile",
    "verify_bundle": "bundle",
    "write_bundle": "bundle",
}
"""What is imported when it is asked for: whoever runs a model need not wait for it."""


def __getattr__(name: str) -> object:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Artifact",
    "ArtifactError",
    "BundleReport",
    "CausalOnnxError",
    "Chat",
    "Choice",
    "Codes",
    "Constraint",
    "Continuation",
    "Contract",
    "DeviceError",
    "DraftHeads",
    "DraftModel",
    "Frame",
    "Limits",
    "Model",
    "PrefixCache",
    "PrefixStats",
    "Profile",
    "PromptLookup",
    "Reply",
    "RunError",
    "Sampling",
    "SelfTestCase",
    "SelfTestReport",
    "Speculation",
    "Stream",
    "TensorSpec",
    "Tokenizer",
    "ToolCall",
    "TrialLimits",
    "UnsafeFileError",
    "__version__",
    "load",
    "read_artifact",
    "verify_bundle",
    "write_bundle",
]
