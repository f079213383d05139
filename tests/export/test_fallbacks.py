"""Another form is written where a rewrite says what it does not support, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import CausalityError, ExportReport, ParityError, captures, export, forms
from causal_onnx.export.capture.capture import Capture
from causal_onnx.export.capture.kept import captures_of
from causal_onnx.export.check.blame import changes_as_it_grows
from causal_onnx.export.errors import NotSupportedError, RewriteError
from causal_onnx.export.source.module import open_source
from causal_onnx.runtime import load
from causal_onnx.runtime.contract import Contract, TensorSpec
from tests.export.modules import Head
from tests.zoo import MUTANTS, entry


class Scaled(nn.Module):
    """One head with something in it that the logarithm of the whole length decides."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.how = nn.Linear(16, 48), how

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        batch, n = x.shape[:2]
        growing = torch.log(torch.tensor(n + 1.0))
        q = q * growing if self.how == "queries" else q
        scores = q @ k.transpose(1, 2) / 4
        if self.how == "scores":
            scores = scores * growing
        if self.how == "softcap":
            scores = growing * torch.tanh(scores / growing)
        scores = scores.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), float("-inf"))
        if self.how == "sink":
            joined = torch.cat([scores, growing * torch.ones(batch, n, 1)], -1)
            return joined.softmax(-1)[..., :-1] @ v
        return scores.softmax(-1) @ v


def exported(folder: Path, how: str = "plain", **options: object) -> ExportReport:
    example = torch.randn(2, 5, 16)
    return export(Scaled(how), folder / "m.onnx", example=example, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("scores", "the scale of the scores changes with the length: 0.44794 at 5 positions, 0.62"),
        ("queries", "the scale of the scores changes with the length"),
        ("softcap", "the softcap changes with the length"),
        ("sink", "the score of the sink changes with the length"),
    ],
)
def test_numbers_that_grow_with_the_length_stay_as_captured(
    how: str, reason: str, tmp_path: Path
) -> None:
    report = exported(tmp_path, how)
    (fallback,) = report.fallbacks
    assert fallback.form == "attention at Softmax 'node_softmax'"
    assert fallback.reason.startswith(reason)
    assert report.to_dict()["fallbacks"] == [{"form": fallback.form, "reason": fallback.reason}]


def test_no_cache_is_derived_where_the_scale_grows_with_the_length(tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match=r"no cache .*scale of the scores changes with the"):
        exported(tmp_path, "scores", cache=True)


def test_a_mask_of_keys_alone_is_written_out_for_each_query(tmp_path: Path) -> None:
    item = entry("pos_learned_from_mask")  # onnxruntime's Attention refuses one for all queries
    report = export(item.factory(), tmp_path / "m.onnx", example=item.inputs(2, 5), axes=item.axes)
    assert report.fallbacks == ()
    assert {node.op_type for node in onnx.load(report.path).graph.node} >= {"Attention", "Expand"}


def test_weights_zeroed_after_the_softmax_are_found_to_leak_and_are_no_defect(
    tmp_path: Path,
) -> None:
    mutant = next(m for m in MUTANTS if m.name == "mask_after_softmax")
    with pytest.raises(CausalityError, match="NOT causal"):
        export(mutant.factory(), tmp_path / "m.onnx", example=mutant.inputs(2, 5), axes=mutant.axes)


class Padded(nn.Module):
    """One head that hides later positions and padding, in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.qkv, self.how = nn.Embedding(40, 16), nn.Linear(16, 48), how

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embedding(input_ids)).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 4
        n = input_ids.shape[1]
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        padding = attention_mask[:, None, :] == 0
        if self.how == "finite twice":
            scores = scores.masked_fill(later, -1e9).masked_fill(padding, -1e9)
        elif self.how == "finite sums":
            scores = scores + later.float() * -1e9 + padding.float() * -1e9
        elif self.how == "finite over infinite":
            scores = scores.masked_fill(later, float("-inf")).masked_fill(padding, -1e9)
        else:
            low = torch.finfo(torch.float32).min
            scores = scores + torch.where(later | padding, low, 0.0)
        return scores.softmax(-1) @ v


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("finite twice", "hides positions by a finite number, beside a mask that data decides"),
        ("finite sums", "hides positions by a finite number, beside a mask that data decides"),
        ("finite over infinite", "hides by a finite number what triu hid before"),
        ("one least number", None),  # onnxruntime's Attention takes it for -inf
    ],
)
def test_rows_of_padding_alone_stay_what_they_are(
    how: str, reason: str | None, tmp_path: Path
) -> None:
    example = (torch.randint(40, (2, 5)), torch.ones(2, 5, dtype=torch.int64))
    report = export(Padded(how), tmp_path / "m.onnx", example=example)
    assert {case.note for case in report.parity.cases} >= {"left padding", "right padding"}
    assert [reason in fallback.reason for fallback in report.fallbacks if reason] == (
        [True] if reason else []
    )


def spoil_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attention be rewritten with another scale than it has."""
    canonicalise = forms.canonicalise

    def spoilt(*args: object, **named: object) -> object:
        cores, others = canonicalise(*args, **named)  # type: ignore[arg-type]
        for core in cores:
            scale = core.node.attributes["scale"].as_float()
            core.node.attributes["scale"] = ir.AttrFloat32("scale", scale * 1.5)
        return cores, others

    monkeypatch.setattr(forms, "canonicalise", spoilt)


def count_captures(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    taken: list[object] = []

    def counting(*args: object, **named: object) -> Iterator[object]:
        for capture in captures_of(*args, **named):  # type: ignore[arg-type]
            taken.append(capture)
            yield capture

    monkeypatch.setattr(captures, "captures_of", counting)
    return taken


@pytest.mark.parametrize(
    ("options", "form"),
    [
        ({}, "attention rewritten for target='ort'"),
        ({"target": "portable"}, "attention rewritten for target='portable'"),
        ({"cache": True}, "cache for rows of different lengths for target='ort'"),
        ({"precision": "int8"}, "attention rewritten for target='ort'"),
    ],
)
def test_a_wrong_rewrite_is_a_defect_that_names_itself_and_the_node(
    options: dict[str, object], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = count_captures(monkeypatch)
    spoil_scale(monkeypatch)
    message = f"(?s)a defect of causal-onnx, please report it: {form} disagrees with Scaled, and .*"
    with pytest.raises(
        RewriteError, match=message + r"first at \w+ .*try target=.*batch 1"
    ) as caught:
        exported(tmp_path, **options)
    assert not caught.value.report.passed
    assert len(taken) == 1  # another capture must not hide it
    assert list(tmp_path.iterdir()) == []


def test_a_rewrite_that_fails_otherwise_is_no_fallback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise IndexError("a defect in fuse")

    monkeypatch.setattr(forms, "fuse", broken)
    with pytest.raises(IndexError, match="a defect in fuse"):
        exported(tmp_path)


def spoil_capture(monkeypatch: pytest.MonkeyPatch, *, count: int) -> None:
    """Let the first `count` ways of capturing give a graph with another weight."""

    def spoilt(*args: object, **named: object) -> Iterator[object]:
        for index, found in enumerate(captures_of(*args, **named)):  # type: ignore[arg-type]
            if index < count and isinstance(found, Capture):
                weight = next(
                    v for v in found.model.graph.initializers.values() if len(v.shape or ()) == 2
                )
                assert weight.const_value is not None
                weight.const_value = ir.tensor(weight.const_value.numpy() * 1.5)
            yield found

    monkeypatch.setattr(captures, "captures_of", spoilt)


def test_after_a_wrong_capture_the_next_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_capture(monkeypatch, count=1)
    report = exported(tmp_path)
    assert report.parity.passed
    assert report.fallbacks == ()


def test_where_every_capture_is_wrong_nobody_is_told_of_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_capture(monkeypatch, count=99)
    with pytest.raises(ParityError, match="the graph disagrees with Scaled") as caught:
        exported(tmp_path)
    assert not isinstance(caught.value, RewriteError)


@pytest.mark.parametrize(("how", "grows"), [("scores", True), ("plain", False)])
def test_a_module_is_asked_whether_early_outputs_change_as_it_grows(how: str, grows: bool) -> None:
    source, specs = open_source(Scaled(how), torch.randn(2, 5, 16), None)
    output = TensorSpec(name="output", dtype="float32", axes=("batch", "seq", 16))
    contract = Contract(inputs=(replace(output, name="x"),), outputs=(output,))
    said = changes_as_it_grows(source, specs, contract)
    assert said.startswith("of 7 positions the first ") if grows else said == ""


class SmallTable(nn.Module):
    """A label per row, looked up in a table that is shorter than the module's sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.labels, self.core = nn.Embedding(10, 16), Head()

    def forward(self, labels: Tensor, x: Tensor) -> Tensor:
        return self.core(x + self.labels(labels)[:, None])


def test_a_table_that_rows_are_looked_up_in_bounds_no_length(tmp_path: Path) -> None:
    inputs = (torch.randint(10, (3,)), torch.randn(3, 7, 16))
    axes = [{0: "batch"}, {0: "batch", 1: "seq"}]
    report = export(SmallTable().eval(), tmp_path / "m.onnx", example=inputs, axes=axes)
    assert report.contract.max_seq_len is None
    with pytest.raises(ValueError, match="labels"):
        load(report.path).run(labels=np.array([10]), x=np.zeros((1, 2, 16), np.float32))


def test_a_bias_of_data_that_is_written_anew_is_followed_still(tmp_path: Path) -> None:
    source = entry("pos_relative_skew")
    inputs, axes = source.inputs(2, 5), source.axes
    report = export(source.factory().eval(), tmp_path / "m.onnx", example=inputs, axes=axes)
    assert report.certificate.verdict == "causal"
