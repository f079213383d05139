"""What changing the future shows, and what it does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.nn import functional

from causal_onnx.export import CausalityError, export
from causal_onnx.export.arguments import ExportOptions
from causal_onnx.export.check.causality import perturb, perturb_source
from causal_onnx.export.source.module import Source
from causal_onnx.export.subject import prepare
from causal_onnx.runtime import load
from tests.export.modules import Head, example, through
from tests.zoo import entry


class Constant(Head):
    """Gives zeros, which depend on nothing."""

    def forward(self, x: Tensor) -> Any:
        return self.core(x) * 0.0


def test_an_output_that_never_moves_is_no_evidence(tmp_path: Path) -> None:
    with pytest.raises(CausalityError, match="moved no output at all"):
        export(Constant().eval(), tmp_path / "m.onnx", example=example())
    assert not (tmp_path / "m.onnx").exists()


def test_the_unchanged_input_is_run_once_for_all_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = prepare(
        Head().eval(),
        example(),
        None,
        options=ExportOptions(opset=24),
    )
    lengths: list[int] = []
    run = Source.run
    monkeypatch.setattr(Source, "run", lambda s, x: lengths.append(x[0].shape[1]) or run(s, x))

    assert perturb_source(subject.reference.fresh(), subject.specs, subject.contract) is None
    assert lengths.count(17) == 1 + len({1, 8, 16})


def test_positions_may_see_only_those_before_them(tmp_path: Path) -> None:
    item = entry("tricky_strict_mask_with_first_row")
    report = export(item.factory(), tmp_path / "m.onnx", example=item.inputs(2, 5), axes=item.axes)
    assert report.causality.is_causal
    assert {case.seq for case in report.causality.cases if not case.future_moved} >= {2}


@pytest.mark.parametrize("delay", [2, 5])
def test_positions_may_see_only_those_far_before_them(delay: int, tmp_path: Path) -> None:
    module = through(lambda y: functional.pad(y, (0, 0, delay, 0))[:, : y.shape[1]])
    report = export(module.eval(), tmp_path / "m.onnx", example=example())
    still = {case.seq for case in report.causality.cases} - {
        case.seq for case in report.causality.cases if case.future_moved
    }
    assert still == {n for n in (2, 3, 7, 17) if n <= delay + 1}
    certificate = load(tmp_path / "m.onnx").certificate
    assert certificate is not None
    assert certificate["verdict"] == "causal"


def test_a_length_at_which_nothing_moves_is_none_behind_one_at_which_something_does() -> None:
    subject = prepare(Head().eval(), example(), None, options=ExportOptions(opset=24))

    def session(inputs: Any) -> Any:
        (x,) = inputs
        return [x.cumsum(1) * (x.shape[1] < 7)]

    report = perturb(session, subject.reference, subject.specs, subject.contract)
    assert {case.seq for case in report.cases if case.passed} == {2, 3}
