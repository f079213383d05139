"""One capture serves several exports of a module."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import pytest
import torch

from causal_onnx.export import export
from causal_onnx.export.capture.kept import Kept, reusing_captures
from causal_onnx.export.source.module import Source
from causal_onnx.models import CausalMechanismV1
from tests.export.content import content_of
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


def test_modules_of_one_content_are_captured_once_where_content_is_what_counts(
    tmp_path: Path, traced: list[object]
) -> None:
    kept = Kept(key_of=content_of)
    with reusing_captures(kept):
        for name, seed in (("first", 0), ("alike", 0), ("other", 1)):
            export(CausalMechanismV1(32, 32, 12, seed=seed), tmp_path / f"{name}.onnx")
    assert len(traced) == len(kept.tried) == 2
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "alike.onnx").read_bytes()
    kept.forget_all_but(1)
    assert len(kept.tried) == 1


def test_a_module_that_was_changed_since_serves_no_other(
    tmp_path: Path, traced: list[object]
) -> None:
    first, alike = (CausalMechanismV1(32, 32, 12, seed=0) for _ in range(2))
    with reusing_captures(Kept(key_of=content_of)):
        export(first, tmp_path / "first.onnx")
        with torch.no_grad():
            next(first.parameters()).mul_(2)  # the graph that is kept shares its memory
        export(alike, tmp_path / "alike.onnx")
    assert len(traced) == 2
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "alike.onnx").read_bytes()


class _Other(Head):
    pass


def _shared(head: Head) -> Head:
    head.k = head.q
    return head


def _equal(head: Head) -> Head:
    head.k.load_state_dict(head.q.state_dict())
    return head


def _with_attribute(head: Head) -> Head:
    head.note = "other"
    return head


def test_content_is_all_that_a_graph_comes_from() -> None:
    def key(head: Head, fixed: dict[str, object] | None = None) -> Hashable:
        return content_of(Source(head, [None], fixed or {}), head)

    assert key(Head()) == key(Head()) != id(Head())
    assert key(_shared(Head())) == key(_shared(Head()))
    others = [_Other(), Head(seed=1), Head().double(), _with_attribute(Head())]
    keys = [key(head) for head in (Head(), *others, _shared(Head()), _equal(Head()))]
    keys.append(key(Head(), {"flag": True}))
    assert len(set(keys)) == len(keys)
