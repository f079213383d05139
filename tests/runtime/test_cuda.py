"""What only a GPU can show. Run with onnxruntime-gpu: python -m pytest tests/runtime -m cuda"""

from __future__ import annotations

import logging

import numpy as np
import pytest

from causal_onnx.runtime import DeviceError, load
from causal_onnx.runtime.doctor import diagnose
from tests.runtime.artifacts import fixture


def why_no_cuda() -> str | None:
    try:
        load(fixture("one_head"), device="cuda")
    except DeviceError as error:
        return str(error)
    return None


WHY = why_no_cuda()

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(WHY is not None, reason=f"no CUDA here: {WHY}"),
]


def random_input(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("seq", [1, 2, 3, 13, 16])
def test_attention_gives_what_the_cpu_gives(batch: int, seq: int) -> None:
    x = random_input(batch, seq, 8)
    on_cpu, on_gpu = load(fixture("one_head"))(x), load(fixture("one_head"), device="cuda")(x)
    error = np.abs(on_gpu - on_cpu).max() / np.abs(on_cpu).max()
    print(f"batch {batch}, seq {seq}: {error:.1e}")
    assert error < 1e-5  # fp32 rounding over 16 positions; TF32 would give 1e-3


def test_the_golden_vectors_of_pytorch_are_repeated() -> None:
    report = load(fixture("one_head"), device="cuda:0").selftest()
    assert report.device == "cuda:0"
    assert report.passed


def test_changing_the_future_leaves_the_past_bit_identical() -> None:
    model = load(fixture("one_head"), device="cuda")
    x = random_input(2, 16, 8)
    before = model(x)
    x[:, 7:] += 1
    assert model(x)[:, :7].tobytes() == before[:, :7].tobytes()


@pytest.mark.parametrize("name", ["decoder", "cached", "seq_first", "half"])
def test_every_kind_of_input_reaches_the_gpu(name: str) -> None:
    inputs = {
        "decoder": (np.array([[3, 1, 4]]),),
        "cached": (random_input(1, 2, 4), random_input(1, 0, 4), np.ones((1, 2), np.int64)),
        "seq_first": (random_input(3, 2, 4),),
        "half": (np.ones((1, 2), np.float16), np.array([[True, False]])),
    }[name]
    on_cpu = load(fixture(name)).run(*inputs)
    on_gpu = load(fixture(name), device="cuda").run(*inputs)
    for key, value in on_cpu.items():
        np.testing.assert_allclose(on_gpu[key], value, rtol=1e-5, atol=1e-6)


def test_a_stream_gives_what_one_on_the_cpu_gives() -> None:
    ids = np.random.default_rng(0).integers(0, 280, (1, 12))
    streams = [load(fixture("language"), device=device).stream() for device in ("cpu", "cuda")]
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 8), (8, 12)):
        on_cpu, on_gpu = (stream(ids[:, start:stop]) for stream in streams)
        np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-5, atol=1e-6)
    for stream in streams:
        stream.rewind(6)
    on_cpu, on_gpu = (stream.fork()(ids[:, 6:9]) for stream in streams)
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-5, atol=1e-6)


def test_a_node_without_a_cuda_kernel_is_refused_by_name() -> None:
    message = r"no kernel there for 1 nodes of .*: GroupQueryAttention \(attention\)\. Export"
    with pytest.raises(DeviceError, match=message):
        load(fixture("grouped_query"), device="cuda")


def test_auto_takes_cuda_and_falls_back_for_a_model_that_it_cannot_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert load(fixture("one_head"), device="auto").device == "cuda:0"
        assert not caplog.records
        assert load(fixture("grouped_query"), device="auto").device == "cpu"
    assert "GroupQueryAttention" in caplog.text


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match="device='cuda:99' was requested"):
        load(fixture("one_head"), device="cuda:99")


def test_the_doctor_finds_it() -> None:
    devices = {finding.name: finding for finding in diagnose().devices}
    assert devices["cuda:0"].works
