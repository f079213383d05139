"""Run exported causal attention on numpy and onnxruntime; needs nothing else."""

from importlib import import_module
from typing import TYPE_CHECKING

from causal_onnx.runtime.errors import (
    ArtifactError,
    CausalOnnxError,
    DeviceError,
    RunError,
    UnsafeFileError,
)
from causal_onnx.runtime.model import Model, load

if TYPE_CHECKING:
    from causal_onnx.runtime.artifact.artifact import Artifact, read_artifact
    from causal_onnx.runtime.artifact.selftest import SelfTestCase, SelfTestReport
    from causal_onnx.runtime.bundle import BundleReport, verify_bundle, write_bundle
    from causal_onnx.runtime.contract import Contract, TensorSpec
    from causal_onnx.runtime.generation.chat import Chat, Reply
    from causal_onnx.runtime.generation.codes import Codes, Frame
    from causal_onnx.runtime.generation.constraint import Constraint
    from causal_onnx.runtime.generation.continuation import Continuation, Speculation
    from causal_onnx.runtime.generation.depth import DepthDecoder
    from causal_onnx.runtime.generation.prefix_cache import PrefixCache, PrefixStats
    from causal_onnx.runtime.generation.sampling import Choice, Sampling
    from causal_onnx.runtime.generation.speculate import DraftHeads, DraftModel, PromptLookup
    from causal_onnx.runtime.profile import Profile
    from causal_onnx.runtime.scan import Limits
    from causal_onnx.runtime.session.trial import TrialLimits
    from causal_onnx.runtime.stream.stream import Stream
    from causal_onnx.runtime.text.tokenizer import Tokenizer
    from causal_onnx.runtime.text.tool_calls import ToolCall

__version__ = "0.1.0"

_LATER = {
    "artifact.artifact": ("Artifact", "read_artifact"),
    "artifact.selftest": ("SelfTestCase", "SelfTestReport"),
    "bundle": ("BundleReport", "verify_bundle", "write_bundle"),
    "contract": ("Contract", "TensorSpec"),
    "generation.chat": ("Chat", "Reply"),
    "generation.codes": ("Codes", "Frame"),
    "generation.constraint": ("Constraint",),
    "generation.continuation": ("Continuation", "Speculation"),
    "generation.depth": ("DepthDecoder",),
    "generation.prefix_cache": ("PrefixCache", "PrefixStats"),
    "generation.sampling": ("Choice", "Sampling"),
    "generation.speculate": ("DraftHeads", "DraftModel", "PromptLookup"),
    "profile": ("Profile",),
    "scan": ("Limits",),
    "session.trial": ("TrialLimits",),
    "stream.stream": ("Stream",),
    "text.tokenizer": ("Tokenizer",),
    "text.tool_calls": ("ToolCall",),
}
"""What is imported when it is asked for: whoever only runs a model need not wait for it."""


def __getattr__(name: str) -> object:
    for module, names in _LATER.items():
        if name in names:
            found: object = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = found
            return found
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
    "DepthDecoder",
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
