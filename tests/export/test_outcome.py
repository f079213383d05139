"""What the user's module raises is its answer; what this package raises is a bug and passes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import ExportError, export
from causal_onnx.export.capture import capture
from causal_onnx.export.capture import grown_buffers as caches
from causal_onnx.export.check import parity
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.outcome import Refusal, SessionError, ask, ask_onnxruntime
from causal_onnx.export.source import dry_run, probe
from causal_onnx.export.source import module as source
from causal_onnx.export.source import padding_mask as padding
from causal_onnx.export.source.inputs import CallSizes, InputSpec
from causal_onnx.export.source.module import open_source
from causal_onnx.export.torch_patches import attention
from tests.export.modules import DIM, Head, example


class Raising(Head):
    """Raises what it is given beyond 9 positions."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Any:
        if x.shape[1] > 9:
            raise self.error
        return self.core(x)


class OwnError(Exception):
    pass


class Growing(Head):
    """Keeps its mask from call to call."""

    mask: Tensor | None = None

    def masked(self, scores: Tensor) -> Tensor:
        n = scores.shape[-1]
        if self.mask is None or self.mask.shape[0] < n:
            self.mask = torch.ones(n, n, dtype=torch.bool).triu(1)
        return scores.masked_fill(self.mask[:n, :n], -torch.inf)


class Masked(nn.Module):
    """Attention that looks up positions, with a mask in PyTorch's own operator."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4096, DIM)

    def forward(self, x: Tensor) -> Any:
        q = (x + self.table(torch.arange(x.shape[1])))[:, None]
        n = x.shape[1]
        allowed = torch.ones(n, n, dtype=torch.bool).tril()
        return nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=allowed)[:, 0]


def opened(module: nn.Module) -> tuple[source.Source, tuple[InputSpec, ...]]:
    return open_source(module.eval(), example(), None)


@pytest.mark.parametrize(
    "error",
    [ValueError("too long"), TypeError("too long"), AttributeError("too long"), OwnError("x")],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_module_raises_is_its_answer(error: Exception) -> None:
    subject, specs = opened(Raising(error))
    outcome = ask(subject.run, [example(seq=10)])
    assert isinstance(outcome, Refusal)
    assert type(outcome.error) is type(error)
    assert probe.find_max_seq_len(subject, specs) == 9


def test_want_of_memory_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(MemoryError, match="no more"):
        export(Raising(MemoryError("no more")).eval(), tmp_path / "m.onnx", example=example())


def test_pytorchs_want_of_memory_is_no_answer() -> None:
    subject, _ = opened(Raising(RuntimeError("DefaultCPUAllocator: can't allocate memory")))
    with pytest.raises(MemoryError, match="DefaultCPUAllocator"):
        ask(subject.run, [example(seq=10)])


def broken(*_: Any, **__: Any) -> Any:
    raise AttributeError("a slip of ours")


@pytest.mark.parametrize(
    ("owner", "name", "module"),
    [
        (probe, "make_inputs", Head()),
        (probe, "_same", Head()),
        (source, "flatten_outputs", Head()),
        (source.Source, "_call", Head()),
        (dry_run, "_check_indices", Masked()),
        (attention, "_attention", Masked()),
        (capture, "make_inputs", Head()),
        (capture, "_name_axes", Head()),
        (parity, "grid", Head()),
        (parity, "to_numpy", Head()),
    ],
    ids=lambda value: getattr(value, "__name__", value if isinstance(value, str) else ""),
)
def test_a_slip_of_ours_leaves_the_export(
    owner: Any, name: str, module: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(AttributeError, match="a slip of ours"):
        export(module.eval(), tmp_path / "m.onnx", example=example())
    assert list(tmp_path.iterdir()) == []


def test_a_slip_while_caches_are_emptied_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, specs = opened(Growing())
    subject.run([example()])
    sizes = CallSizes(batch=2, seq=6)
    for name, call in (("_shortened", caches.without_caches), ("_kept", caches.grows)):
        with monkeypatch.context() as patch:
            patch.setattr(caches, name, broken)
            patch.setattr(caches, "_none", lambda before, after: "no mask")  # does not work
            with pytest.raises(AttributeError, match="a slip of ours"):
                call(subject, specs, sizes)


def test_a_slip_while_a_mask_is_tried_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Padded(Head):
        def forward(self, x: Tensor, keep: Tensor) -> Any:
            return self.core(x) * keep[..., None]

    keep = torch.ones(2, 6, dtype=torch.bool)
    subject, specs = open_source(Padded().eval(), (example(), keep), None)
    for owner, name in ((padding, "_changed"), (padding, "_cut"), (source.Filled, "make")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, broken)
            with pytest.raises(AttributeError, match="a slip of ours"):
                padding.fill_padding(subject, specs)


def test_what_is_raised_before_the_module_is_entered_is_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("before")

    subject, _ = opened(Head())
    monkeypatch.setattr(source.Source, "forward", refuse)
    with pytest.raises(RuntimeError, match="before"):
        ask(subject.run, [example()])


def adding() -> onnxruntime.InferenceSession:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
    node = ir.node("Add", [x, x])
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 20}, name="g")
    return onnxruntime.InferenceSession(
        ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )


def test_onnxruntimes_refusal_is_typed_and_a_wrong_call_of_ours_is_not() -> None:
    session = adding()
    with pytest.raises(SessionError, match=r"InvalidArgument: .*Got: 3 Expected: 2"):
        ask_onnxruntime(session.run, None, {"x": np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match="missing from input feed"):
        ask_onnxruntime(session.run, None, {})
    with pytest.raises(SessionError, match="INVALID_PROTOBUF"):
        ask_onnxruntime(
            onnxruntime.InferenceSession, b"no model", providers=["CPUExecutionProvider"]
        )


def test_a_slip_in_an_evaluation_is_no_refusal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Layouts, "at_two_lengths", broken)
    with pytest.raises(AttributeError, match="a slip of ours"):
        export(Masked().eval(), tmp_path / "m.onnx", example=example(), cache=True)


def test_a_long_loop_is_not_followed_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looping(Head):
        def forward(self, x: Tensor) -> Any:
            rows = [x[:, :1] * 0.5]
            for t in range(1, x.shape[1]):
                rows.append(rows[-1] * 0.5 + x[:, t : t + 1])
            return torch.cat(rows, 1)

    subject, specs = opened(Looping())
    sizes = CallSizes(batch=1, seq=90)
    assert dry_run.dry_run(subject, specs, sizes).accepted
    monkeypatch.setattr(dry_run, "MOST_STEPS", 100)
    found = dry_run.dry_run(subject, specs, sizes)
    assert (found.accepted, found.flops) == (None, math.inf)


def test_the_example_may_be_refused_with_the_modules_own_words(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"does not accept the example .*OwnError: words"):
        export(Raising(OwnError("words")).eval(), tmp_path / "m.onnx", example=example(seq=12))
