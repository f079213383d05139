"""The drift report: what it measures, against numbers computed another way."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from causal_onnx.export import DriftReport, export
from causal_onnx.export.check.drift import _divergence
from causal_onnx.models import CausalMechanismV1, DecoderLM, tiny_llama_config
from causal_onnx.runtime import load


def test_divergence_is_that_of_pytorch() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(2, 3, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    expected = torch.nn.functional.kl_div(
        q.log_softmax(-1), p.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    np.testing.assert_allclose(_divergence(p.numpy(), q.numpy()), expected.numpy(), rtol=1e-9)


def test_a_language_model_is_measured_on_text(tmp_path: Path) -> None:
    report = export(DecoderLM(tiny_llama_config(), seed=0), tmp_path / "m.onnx", precision="int4")
    drift = report.drift
    assert drift is not None
    assert drift.mean_kl is not None
    assert drift.max_kl is not None
    assert 0 < drift.mean_kl <= drift.max_kl
    assert drift.positions == 1024
    assert "mean KL" in str(report)
    certificate = load(tmp_path / "m.onnx").certificate
    assert certificate is not None
    assert certificate["drift"]["mean_kl"] == pytest.approx(drift.mean_kl, rel=0.05)  # two digits
    assert certificate["quantisation"]["bits"] == 4


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
    ],
)
def test_the_limit_is_for_the_right_number(changes: dict[str, float], passed: bool) -> None:
    fields = {"positions": 8, "relative_error": 0.01, "limit": 0.1, **changes}
    assert DriftReport(**fields).passed is passed  # type: ignore[arg-type]
