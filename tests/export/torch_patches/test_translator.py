"""The translator gives the same graph with less work."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import onnx_ir as ir
import pytest
from onnxscript.optimizer import optimize_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.pattern import SimplePatternMatcher
from torch.onnx._internal._lazy_import import onnxscript_apis
from torch.onnx._internal.exporter import _registration

from causal_onnx.export.torch_patches.translator import listed_once, tried_where_they_can_match

HALVES = """
    first = Slice(x{i}, half, width, last{steps})
    second = Slice(x{i}, zero, half, last{steps})
    turned = Neg(first)
    joined = Concat<axis=-1>(turned, second)
    same = Mul(joined, one)
    there = Transpose<perm=[1, 0]>(same)
    back = Transpose<perm=[1, 0]>(there)
    x{next} = Add(x{i}, back)
"""


def _model(layers: int, *, steps: str = "") -> ir.Model:
    """Layers that turn halves of their input, as rotary positions do."""
    body = ""
    for i in range(layers):
        text = HALVES.format(i=i, next=i + 1, steps=steps)
        for name in ("first", "second", "turned", "joined", "same", "there", "back"):
            text = text.replace(name, f"{name}{i}")
        body += text
    return ir.from_onnx_text(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        main (float[n,8] x0) => (float[n,8] x{layers})
        <int64[1] zero = {{0}}, int64[1] half = {{4}}, int64[1] width = {{8}},
         int64[1] last = {{-1}}, int64[1] unit = {{1}}, float one = {{1}}>
        {{ {body} }}
        """
    )


def _optimised(model: ir.Model, around: AbstractContextManager[None]) -> str:
    with around:
        optimize_ir(model)
    return ir.to_onnx_text(model)


def _operators(text: str) -> set[str]:
    return {op for op in ("Slice", "Split", "Mul", "Transpose", "Neg") if f"{op} " in text}


@pytest.mark.parametrize("steps", ["", ", unit"])
def test_the_same_rules_apply(steps: str) -> None:
    plain = _optimised(_model(3, steps=steps), contextlib.nullcontext())

    assert _optimised(_model(3, steps=steps), tried_where_they_can_match()) == plain


def test_a_rule_for_two_nodes_still_finds_both() -> None:
    text = _optimised(_model(1), tried_where_they_can_match())

    assert _operators(text) == {"Split", "Neg"}


def test_the_work_grows_with_the_nodes_and_not_with_their_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = (_nodes_looked_at(monkeypatch, layers) for layers in (4, 8))

    assert many == 2 * few


def _nodes_looked_at(monkeypatch: pytest.MonkeyPatch, layers: int) -> int:
    """How often a node is asked for its operator, in a graph that no rule for two nodes fits."""
    count = 0
    original = ir.Node.op_identifier

    def counted(node: ir.Node) -> ir.OperatorIdentifier:
        nonlocal count
        count += 1
        return original(node)

    model = _model(layers, steps=", unit")
    with monkeypatch.context() as patch, tried_where_they_can_match():
        patch.setattr(ir.Node, "op_identifier", counted)
        rewrite(model)
    return count


def test_outside_the_rules_are_as_they_were() -> None:
    before = SimplePatternMatcher.match

    with tried_where_they_can_match():
        inside = SimplePatternMatcher.match

    assert inside is not before
    assert SimplePatternMatcher.match is before


def test_the_translations_are_listed_once_and_are_the_same() -> None:
    plain = _registration.ONNXRegistry.from_torchlib().functions
    with listed_once():
        first = onnxscript_apis.get_torchlib_ops()
        again = onnxscript_apis.get_torchlib_ops()
        kept = _registration.ONNXRegistry.from_torchlib().functions
    assert first is not again
    assert all(a is b for a, b in zip(first, again, strict=True))
    functions = {name: [meta.onnx_function for meta in metas] for name, metas in plain.items()}
    assert functions == {n: [meta.onnx_function for meta in metas] for n, metas in kept.items()}


def test_the_exporter_lists_its_translations_anew_afterwards() -> None:
    with listed_once():
        kept = onnxscript_apis.get_torchlib_ops()
    anew = onnxscript_apis.get_torchlib_ops()
    assert not any(a is b for a, b in zip(kept, anew, strict=True))
