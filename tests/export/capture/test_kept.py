"""One capture serves several exports of a module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from causal_onnx.export import export
from causal_onnx.export.capture.kept import reusing_captures
from causal_onnx.models import CausalMechanismV1
from tests.export.modules import Head, example


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What `torch.export.export` was called with."""
    seen: list[object] = []
    original = torch.export.export

    def counted(module: object, *args: object, **options: object) -> object:
        seen.append(module)
        return original(module, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.export, "export", counted)
    return seen


def test_forms_of_one_opset_share_a_capture_and_nothing_else(
    tmp_path: Path, traced: list[object]
) -> None:
    head = Head().eval()
    forms = [{"target": "portable", "opset": 20}, {"target": "tiled", "opset": 20}, {"cache": True}]
    with reusing_captures():
        for index, form in enumerate([*forms, forms[0]]):
            export(head, tmp_path / f"{index}.onnx", example=example(), **form)  # type: ignore[arg-type]
        assert len(traced) == 2  # opset 20, and 24 for the cache
    for index, form in enumerate(forms):
        export(head, tmp_path / "alone.onnx", example=example(), **form)  # type: ignore[arg-type]
        assert (tmp_path / "alone.onnx").read_bytes() == (tmp_path / f"{index}.onnx").read_bytes()
    assert len(traced) == 5


def test_another_precision_is_captured_anew(tmp_path: Path, traced: list[object]) -> None:
    module = CausalMechanismV1(32, 32, 12, seed=0)
    with reusing_captures():
        for precision in ("fp32", "fp16"):
            export(module, tmp_path / f"{precision}.onnx", precision=precision)
    assert len(traced) == 2


def test_weights_of_few_bits_are_rounded_in_one_capture(
    tmp_path: Path, traced: list[object]
) -> None:
    module = CausalMechanismV1(32, 32, 12, seed=0)
    precisions = ("int4", "fp32", "w8a8")
    with reusing_captures():
        for name in precisions:
            export(module, tmp_path / f"{name}.onnx", precision=name)
    assert len(traced) == 1
    for name in precisions:
        export(module, tmp_path / "alone.onnx", precision=name)
        assert (tmp_path / "alone.onnx").read_bytes() == (tmp_path / f"{name}.onnx").read_bytes()


def test_another_module_is_captured_anew(tmp_path: Path, traced: list[object]) -> None:
    with reusing_captures():
        for index in range(2):
            export(Head().eval(), tmp_path / f"{index}.onnx", example=example())
    assert len(traced) == 2
