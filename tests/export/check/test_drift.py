"""The drift report: what it measures, against numbers computed another way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import DriftReport, ExportReport, export
from causal_onnx.export.check import drift as drift_module
from causal_onnx.export.check.drift import _divergence, measure_drift
from causal_onnx.export.check.parity import Session
from causal_onnx.export.source.meaning import find_meanings
from causal_onnx.export.source.module import open_source
from causal_onnx.models import CausalMechanismV1, DecoderLM, tiny_llama_config
from causal_onnx.runtime import Contract, TensorSpec, load

VOCAB = 37


def test_divergence_is_that_of_pytorch() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = torch.nn.functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    np.testing.assert_allclose(_divergence(p.numpy(), q.numpy()), expected.numpy(), rtol=1e-9)


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Of a language model in few bits."""
    path = tmp_path_factory.mktemp("drift") / "m.onnx"
    return export(DecoderLM(tiny_llama_config(), seed=0), path, precision="int4")


def test_a_language_model_is_measured_on_text(decoders: ExportReport) -> None:
    drift = decoders.drift
    assert drift is not None
    assert drift.mean_kl is not None
    assert drift.max_kl is not None
    assert 0 < drift.mean_kl <= drift.max_kl
    assert drift.positions == 1024
    assert "mean KL" in str(decoders)
    certificate = load(decoders.path).certificate
    assert certificate is not None
    assert certificate["drift"]["mean_kl"] == pytest.approx(drift.mean_kl, rel=0.05)  # two digits
    assert certificate["quantisation"]["bits"] == 4


def test_a_language_model_is_measured_on_text_that_it_writes_itself(
    decoders: ExportReport,
) -> None:
    drift = decoders.drift
    assert drift is not None
    assert drift.sampled_positions == 8 * 64
    assert drift.sampled_mean_kl is not None
    assert drift.sampled_mean_kl > 0
    assert "of its own text" in drift.summary()


class Counts(nn.Module):
    """A language model that goes on with the next number, and is all but sure of it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCAB, VOCAB)
        with torch.no_grad():
            self.table.weight.copy_(30 * torch.eye(VOCAB).roll(1, 1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids)


class FailsAt(Session):
    """`Counts`, wrong after each number that does not follow the one before it, or that does."""

    def __init__(self, *, counting: bool) -> None:
        self.output_names = ["logits"]
        self.counting = counting

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        logits = Counts()(torch.from_numpy(inputs[0])).detach().numpy()
        follows = inputs[0][:, 1:] == (inputs[0][:, :-1] + 1) % VOCAB
        logits[:, 1:][follows if self.counting else ~follows] = 0.0
        return [logits]


def counted(*, fails_counting: bool) -> DriftReport:
    source, specs = open_source(Counts().eval(), (torch.zeros(2, 5, dtype=torch.int64),), None)
    specs = find_meanings(source.fresh(), specs)
    ids = TensorSpec(name="ids", dtype="int64", axes=("batch", "seq"), vocab_size=VOCAB)
    logits = TensorSpec(name="logits", dtype="float32", axes=("batch", "seq", VOCAB))
    contract = Contract(inputs=(ids,), outputs=(logits,), precision="int8")
    return measure_drift(FailsAt(counting=fails_counting), source, specs, contract)


def test_a_file_that_fails_on_what_its_module_writes_is_found() -> None:
    drift = counted(fails_counting=True)
    assert drift.sampled_mean_kl is not None
    assert drift.sampled_mean_kl > 1
    assert drift.sampled_argmax_flips is not None
    assert drift.sampled_argmax_flips > 0.9 * drift.sampled_positions
    assert not drift.passed


def test_a_file_that_fails_on_other_text_is_right_on_what_its_module_writes() -> None:
    drift = counted(fails_counting=False)
    assert drift.sampled_mean_kl == pytest.approx(0, abs=1e-6)
    assert drift.mean_kl is not None
    assert drift.mean_kl > 1


def test_logits_are_widened_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = counted(fails_counting=True)
    monkeypatch.setattr(drift_module, "WIDENED_AT_ONCE", 5 * VOCAB)
    parts = counted(fails_counting=True)
    assert (parts.mean_kl, parts.max_kl) == (whole.mean_kl, whole.max_kl)
    assert parts.argmax_flips == whole.argmax_flips > 0
    assert parts.max_logit_error == whole.max_logit_error > 0
    assert parts.relative_error == pytest.approx(whole.relative_error, rel=1e-12)


def test_other_modules_are_measured_by_their_relative_error(tmp_path: Path) -> None:
    module = CausalMechanismV1(64, 64, 12, seed=0).eval()
    report = export(module, tmp_path / "m.onnx", precision="fp16")
    assert report.drift is not None
    assert report.drift.mean_kl is None
    x = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(5)).half()
    got = load(tmp_path / "m.onnx")(x.numpy()).astype(np.float64)
    exact = module(x.float()).detach().double().numpy()
    error = np.linalg.norm(got - exact) / np.linalg.norm(exact)
    assert error / 3 < report.drift.relative_error < error * 3


def test_full_precision_has_no_drift(tmp_path: Path) -> None:
    report = export(CausalMechanismV1(8, 4, 12, seed=0), tmp_path / "m.onnx")
    assert report.drift is None


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"relative_error": 0.2}, False),
        ({"relative_error": math.nan}, False),
        ({"mean_kl": 0.2, "max_kl": 0.3, "argmax_flips": 1, "max_logit_error": 0.1}, False),
        ({"mean_kl": 0.05, "sampled_mean_kl": 0.05}, True),
        ({"mean_kl": 0.05, "sampled_mean_kl": 0.2}, False),
        ({"mean_kl": 0.05, "sampled_mean_kl": math.nan}, False),
    ],
)
def test_the_limit_is_for_the_right_number(changes: dict[str, float], passed: bool) -> None:
    fields = {"positions": 8, "relative_error": 0.01, "limit": 0.1, **changes}
    assert DriftReport(**fields).passed is passed  # type: ignore[arg-type]
