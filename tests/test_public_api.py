"""The public names, written down: a new one needs a line here, in the README and the CHANGELOG."""

from __future__ import annotations

import importlib
import inspect

import pytest

PUBLIC = {
    "causal_onnx.models": """
        AttentionConfig CausalMechanismV1 DecoderBlock DecoderConfig DecoderLM
        GroupedQueryAttention LinearRopeScaling Llama3RopeScaling MultiHeadAttention
        convert_config convert_state_dict gpt2_config llama_135m_config load_checkpoint
        tiny_gpt2_config tiny_llama_config
    """,
    "causal_onnx.export": """
        BitsCase BitsReport CacheCase CacheReport CausalityCase CausalityError CausalityReport
        Certificate DriftError DriftReport ExportError ExportReport Input ParityCase ParityError
        ParityReport QuantisationReport adopt attest export export_checkpoint verify
    """,
    "causal_onnx.runtime": """
        Artifact ArtifactError BundleReport CausalOnnxError Chat Choice Codes Constraint
        Continuation Contract DepthDecoder DeviceError DraftHeads DraftModel Frame Limits Model
        PrefixCache PrefixStats Profile PromptLookup Reply RunError Sampling SelfTestCase
        SelfTestReport Speculation Stream TensorSpec Tokenizer ToolCall TrialLimits UnsafeFileError
        __version__ load read_artifact verify_bundle write_bundle
    """,
    "causal_onnx.serve": """
        BadRequestError BusyError Engine EngineOptions EngineState Generation GrpcServer
        NotServedError Registry RequestError Score SequenceEngine SequenceOptions SequenceStep
        ServeOptions ServedModel Server TensorEngine TensorOptions Token UnavailableError
        create_app open_models
    """,
}
NEEDS_TORCH = {"causal_onnx.models", "causal_onnx.export"}


@pytest.fixture(params=PUBLIC)
def package(request: pytest.FixtureRequest) -> str:
    if request.param in NEEDS_TORCH:
        pytest.importorskip("torch", reason=f"{request.param} needs PyTorch")
    if request.param == "causal_onnx.serve":
        pytest.importorskip("starlette", reason="serving needs the extra `serve`")
        pytest.importorskip("uvicorn", reason="serving needs the extra `serve`")
    return str(request.param)


def test_public_names_are_the_written_ones(package: str) -> None:
    assert sorted(importlib.import_module(package).__all__) == PUBLIC[package].split()


def test_public_names_exist_and_are_explained(package: str) -> None:
    module = importlib.import_module(package)
    assert module.__doc__
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name


def test_options_are_named_in_calls(package: str) -> None:
    """Everything after the subject of a call is keyword-only."""
    module = importlib.import_module(package)
    functions = [getattr(module, name) for name in module.__all__]
    for function in filter(inspect.isfunction, functions):
        positional = [
            parameter.name
            for parameter in inspect.signature(function).parameters.values()
            if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ]
        assert len(positional) <= 2, f"{function.__name__}({', '.join(positional)})"
