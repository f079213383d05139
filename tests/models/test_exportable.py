"""Every module survives PyTorch's own exporter, with batch and sequence dynamic."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

import causal_onnx.runtime  # noqa: F401 - switches onnxruntime's telemetry off before its import
from causal_onnx.export.torch_patches.translator import listed_once
from causal_onnx.models import (
    AttentionConfig,
    CausalMechanismV1,
    DecoderBlock,
    DecoderLM,
    GroupedQueryAttention,
    MultiHeadAttention,
    tiny_gpt2_config,
    tiny_llama_config,
)

pytestmark = [
    pytest.mark.slow,
    # torch 2.13 calls a deprecated function of its own while exporting.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
]


def attention(**options: object) -> AttentionConfig:
    return AttentionConfig(**{"embed_dim": 24, "num_heads": 4, "max_seq_len": 17, **options})


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mechanism": lambda: CausalMechanismV1(10, 6, 17, qkv_bias=True, seed=0),
    "multi-head": lambda: MultiHeadAttention(attention(qkv_bias=True, out_bias=True), seed=0),
    "grouped-rotary-window": lambda: GroupedQueryAttention(
        attention(num_kv_heads=2, rotary="half", window=4), seed=0
    ),
    "multi-query-interleaved": lambda: GroupedQueryAttention(
        attention(num_kv_heads=1, rotary="interleaved", qk_norm=True), seed=0
    ),
    "alibi": lambda: GroupedQueryAttention(attention(num_kv_heads=2, alibi=True), seed=0),
    "softcap": lambda: GroupedQueryAttention(
        attention(num_kv_heads=2, softcap=2.0, window=4, alibi=True), seed=0
    ),
    "block": lambda: DecoderBlock(tiny_gpt2_config(), seed=0),
    "gpt2": lambda: DecoderLM(tiny_gpt2_config(), seed=0),
    "llama": lambda: DecoderLM(tiny_llama_config(), seed=0),
}


# Opset 24 writes SDPA as one Attention node; without SDPA the graph is that of opset 20.
WITH_SDPA = ("multi-head", "grouped-rotary-window", "alibi", "llama")


@pytest.fixture(scope="module", params=MODULES.values(), ids=MODULES.keys())
def captured(request: pytest.FixtureRequest) -> tuple[nn.Module, ExportedProgram]:
    module = request.param().eval()
    dynamic = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    return module, torch.export.export(
        module, (module.example_input(3, 7),), dynamic_shapes=dynamic
    )


def test_only_the_length_limit_is_guarded(captured: tuple[nn.Module, ExportedProgram]) -> None:
    module, program = captured
    ranges = sorted(str(limits) for limits in program.range_constraints.values())
    assert ranges == sorted(["VR[2, int_oo]", f"VR[2, {module.max_seq_len}]"])


def test_onnx_graph_is_right_at_shapes_the_exporter_never_saw(
    captured: tuple[nn.Module, ExportedProgram],
) -> None:
    check_onnx(*captured, opset=20)


@pytest.mark.parametrize(
    "captured", [MODULES[name] for name in WITH_SDPA], indirect=True, ids=WITH_SDPA
)
def test_attention_node_is_right_at_shapes_the_exporter_never_saw(
    captured: tuple[nn.Module, ExportedProgram],
) -> None:
    check_onnx(*captured, opset=24)


def check_onnx(module: nn.Module, program: ExportedProgram, *, opset: int) -> None:
    import onnxruntime

    with listed_once():  # the same graph, sooner
        onnx_program = torch.onnx.export(program, (), opset_version=opset, verbose=False)
    session = onnxruntime.InferenceSession(
        onnx_program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (name,) = (item.name for item in session.get_inputs())
    for seq in (1, 2, 3, 5, 7, module.max_seq_len):
        for batch in (1, 2, 5):
            x = module.example_input(batch, seq)
            with torch.inference_mode():
                expected = module(x).numpy()
            (got,) = session.run(None, {name: x.numpy()})
            assert got.shape == expected.shape
            error = np.abs(got - expected).max() / np.abs(expected).max()
            # float32 in both, other orders of summation. Measured: 4e-7.
            assert error < 3e-6, f"batch {batch}, seq {seq}"


def test_mechanism_without_a_batch_axis_is_exportable() -> None:
    module = CausalMechanismV1(10, 6, 17, seed=0).eval()
    example = module.example_input(1, 7)[0]
    program = torch.export.export(module, (example,), dynamic_shapes=({0: Dim.DYNAMIC},))
    assert [str(limits) for limits in program.range_constraints.values()] == ["VR[2, 17]"]


def test_graph_holds_the_weights_once_and_nothing_of_the_context_length() -> None:
    sizes = []
    for context_length in (16, 100_000):
        module = CausalMechanismV1(10, 6, context_length, seed=0).eval()
        dynamic = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
        program = torch.export.export(module, (module.example_input(3, 7),), dynamic_shapes=dynamic)
        sizes.append(torch.onnx.export(program, (), verbose=False).model_proto.ByteSize())
    # Only the number itself may be longer, in the names the exporter writes down.
    assert abs(sizes[1] - sizes[0]) < 200
