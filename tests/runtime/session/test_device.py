from __future__ import annotations

import logging
from typing import Any

import pytest

from causal_onnx.runtime import ArtifactError, DeviceError, load
from causal_onnx.runtime.artifact.artifact import read_artifact
from causal_onnx.runtime.session import open as session
from causal_onnx.runtime.session.device import Device, nodes_off_device, parse_device
from causal_onnx.runtime.session.open import SessionSettings, open_session
from causal_onnx.runtime.session.ort import import_onnxruntime
from tests.runtime.artifacts import fixture


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", Device("cpu")),
        ("cuda", Device("cuda", 0)),
        ("cuda:0", Device("cuda", 0)),
        ("cuda:12", Device("cuda", 12)),
        ("auto", None),
    ],
)
def test_a_device_is_named_as_in_pytorch(text: str, device: Device | None) -> None:
    assert parse_device(text) == device


@pytest.mark.parametrize("text", ["gpu", "CUDA", "cuda:", "cuda:-1", "cpu:0", "", " cpu", None, 0])
def test_other_names_are_refused(text: Any) -> None:
    with pytest.raises(ValueError, match='device must be "cpu", "cuda", "cuda:N" or "auto", got'):
        load(fixture("one_head"), device=text)


def test_a_device_says_its_own_name() -> None:
    assert str(Device("cpu")) == "cpu"
    assert str(Device("cuda", 1)) == "cuda:1"


class Node:
    def __init__(self, op_type: str, *, domain: str = "", name: str = "") -> None:
        self.op_type, self.domain, self.name = op_type, domain, name


class Part:
    def __init__(self, ep_name: str, *nodes: Node) -> None:
        self.ep_name, self._nodes = ep_name, nodes

    def get_nodes(self) -> tuple[Node, ...]:
        return self._nodes


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def test_arithmetic_on_shapes_may_be_on_the_cpu_and_nothing_else() -> None:
    assignment = [
        Part(CUDA, Node("MatMul"), Node("Attention")),
        Part(CPU, Node("Shape"), Node("Concat"), Node("Trilu"), Node("MatMul", name="/q/MatMul")),
        Part(CPU, Node("GroupQueryAttention", domain="com.microsoft"), Node("Add", domain="mine")),
    ]
    assert nodes_off_device(assignment, Device("cuda")) == [
        "MatMul (/q/MatMul)",
        "GroupQueryAttention",
        "Add",
    ]


def test_the_record_of_a_real_session_is_understood() -> None:
    """Its nodes run on the CPU; held against CUDA, what computes with data is named."""
    got, _ = open_session(read_artifact(fixture("grouped_query")), "cpu", SessionSettings())
    assignment = got.get_provider_graph_assignment_info()
    assert nodes_off_device(assignment, Device("cpu")) == []
    assert nodes_off_device(assignment, Device("cuda")) == ["GroupQueryAttention (attention)"]


class FakeOnnxruntime:
    """onnxruntime with CUDA, as far as opening a session goes."""

    __version__ = "1.32.0"
    SessionOptions = staticmethod(lambda: import_onnxruntime().SessionOptions())

    def __init__(
        self,
        *,
        providers: tuple[str, ...] = (CUDA, CPU),
        assignment: tuple[Part, ...] = (),
        error: Exception | None = None,
    ) -> None:
        self.providers, self.assignment, self.error = providers, assignment, error
        self.asked: Any = None

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def preload_dlls(self) -> None:
        print("Failed to load libcudnn.so.9")

    def InferenceSession(self, *args: Any, **kwargs: Any) -> Any:  # noqa: N802 - onnxruntime's name
        if kwargs["providers"] == [CPU]:
            return import_onnxruntime().InferenceSession(*args, **kwargs)
        if self.error is not None:
            raise self.error
        self.asked = kwargs
        return self

    def get_providers(self) -> list[str]:
        return list(self.providers)

    def get_provider_graph_assignment_info(self) -> tuple[Part, ...]:
        return self.assignment


def opened(
    monkeypatch: pytest.MonkeyPatch, fake: FakeOnnxruntime, device: str
) -> tuple[Any, Device]:
    monkeypatch.setattr(session, "import_onnxruntime", lambda: fake)
    return open_session(read_artifact(fixture("one_head")), device, SessionSettings())


def test_a_session_on_cuda_is_made_without_tf32_and_without_fallback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeOnnxruntime(assignment=(Part(CUDA, Node("MatMul")), Part(CPU, Node("Shape"))))
    got, device = opened(monkeypatch, fake, "cuda:1")
    assert got is fake
    assert device == Device("cuda", 1)
    assert fake.asked["providers"] == [(CUDA, {"device_id": "1", "use_tf32": "0"}), CPU]
    assert fake.asked["enable_fallback"] == 0
    assert capsys.readouterr().out == ""


BROKEN = {
    "silently on the CPU": (
        FakeOnnxruntime(providers=(CPU,)),
        "made a session for CPUExecutionProvider: Failed to load libcudnn.*pip install 'causal-",
    ),
    "some nodes on the CPU": (
        FakeOnnxruntime(
            assignment=(Part(CPU, *[Node("Softmax", name=str(i)) for i in range(12)]),)
        ),
        r"no kernel there for 12 nodes of .*: Softmax \(0\), .*Softmax \(9\) and others\. Export",
    ),
    "CUDA fails": (
        FakeOnnxruntime(error=RuntimeError("CUDA failure 100: no CUDA-capable device")),
        "CUDA fails: CUDA failure 100: no CUDA-capable device. See `causal-onnx doctor`",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_cuda_runs_on_cuda_or_raises(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    fake, message = BROKEN[case]
    with pytest.raises(DeviceError, match=f"device='cuda:0' was requested, .*{message}"):
        opened(monkeypatch, fake, "cuda")


@pytest.mark.parametrize("case", BROKEN)
def test_auto_falls_back_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    fake, _ = BROKEN[case]
    with caplog.at_level(logging.WARNING):
        got, device = opened(monkeypatch, fake, "auto")
    assert device == Device("cpu")
    assert got.get_providers() == [CPU]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "device='auto' runs" in caplog.text
    assert "was requested, but" in caplog.text


def test_auto_takes_cuda_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert opened(monkeypatch, FakeOnnxruntime(), "auto")[1] == Device("cuda")


def test_a_bad_model_is_not_blamed_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeOnnxruntime(error=RuntimeError("/models/cuda/gpu.onnx: No Op registered for Foo"))
    with pytest.raises(ArtifactError, match=r"does not load .*one_head.*No Op registered"):
        opened(monkeypatch, fake, "auto")


@pytest.mark.skipif(
    CUDA in import_onnxruntime().get_available_providers(), reason="this onnxruntime has CUDA"
)
class TestWithoutCuda:
    def test_cuda_is_refused_with_the_remedy(self) -> None:
        message = (
            "device='cuda:0' was requested, but this onnxruntime offers only .*CPUExecution.*"
            r"pip uninstall -y onnxruntime && pip install 'causal-onnx\[gpu\]'"
        )
        with pytest.raises(DeviceError, match=message):
            load(fixture("one_head"), device="cuda")

    def test_auto_is_the_cpu(self, caplog: pytest.LogCaptureFixture) -> None:
        model = load(fixture("one_head"), device="auto")
        assert model.device == "cpu"
        assert "device='auto' runs" in caplog.text
        assert model.selftest().passed
