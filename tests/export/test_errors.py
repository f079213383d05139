"""What a refusal says: the way that came farthest, what really happened, the node and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.export import CausalityError, ExportError, export
from causal_onnx.export.capture.capture import _chain, _headline
from causal_onnx.export.captures import farthest
from causal_onnx.export.errors import Stage
from tests.export.modules import DIM, Head, example, token_ids


def failed(text: str, stage: Stage) -> ExportError:
    return ExportError(text).at(stage)


def test_the_error_is_of_the_way_that_came_farthest_and_notes_say_the_others() -> None:
    ways = [
        failed("cannot be traced: einops", Stage.TRACE),
        failed("nothing to replay", Stage.NOT_TRIED),
        failed("no cache: the node mixes", Stage.FORM),
        failed("no cache: another", Stage.FORM),
        failed("not translated", Stage.TRANSLATE),
        failed("not translated", Stage.TRANSLATE),
    ]
    found = farthest(ways)
    assert str(found) == "no cache: the node mixes"
    assert found.__notes__ == [
        f"another way of capturing it: {text}"
        for text in ("cannot be traced: einops", "no cache: another", "not translated")
    ]


class Polygamma(nn.Module):
    """Uses an operator that ONNX has no words for."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(31, DIM)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return x + torch.polygamma(2, x)  # not in ONNX


def test_a_failed_translation_says_what_failed_and_where(tmp_path: Path) -> None:
    from causal_onnx.export.capture.capture import attempts
    from causal_onnx.export.source.inputs import CallSizes
    from causal_onnx.export.source.module import Observed, open_source

    source, specs = open_source(Polygamma().eval(), token_ids(), None)
    observed = Observed(output_names=("output",))
    error = next(attempts(source, specs, CallSizes(batch=3, seq=7), observed, opset=24))
    assert isinstance(error, ExportError)
    assert "An error occurred at step" not in str(error)
    assert "aten.polygamma" in str(error)
    assert "# not in ONNX" in str(error)
    assert "Remedy" in str(error)
    assert error.stage == Stage.TRANSLATE


def test_the_headline_is_the_innermost_message_that_says_something() -> None:
    def wrapped() -> Exception:
        try:
            try:
                raise KeyError("ndim")
            except KeyError:
                raise RuntimeError("folding node 'split'")  # noqa: B904 - the context counts, too
        except RuntimeError as error:
            outer = ValueError("An error occurred at step 0")
            outer.__cause__ = error
            return outer

    assert _headline(_chain(wrapped())) == "folding node 'split': KeyError: 'ndim'"
    assert _headline(_chain(ValueError("An error occurred at step 0"))) == "ValueError"


class Sees(Head):
    """Every second call of `masked` forgets the mask."""

    def masked(self, scores: Tensor) -> Tensor:
        return scores

    def forward(self, x: Tensor) -> Any:
        weights = self.masked(self.scores(x)).softmax(-1)
        return weights @ self.v(x)  # mixes


def test_a_leak_names_the_node_and_the_line_before_the_graph_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "causal_onnx.export.best_form.simplified", lambda *_, **__: pytest.fail("too late")
    )
    with pytest.raises(CausalityError, match=r"NOT causal: at length \d+, .* moved") as caught:
        export(Sees().eval(), tmp_path / "m.onnx", example=example())
    assert caught.value.violation is not None
    assert caught.value.violation.op_type in ("MatMul", "Softmax")
    assert "test_errors.py" in caught.value.violation.line
    assert str(caught.value.violation) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class SeesFar(Head):
    """Beyond 30 positions everything is seen."""

    def masked(self, scores: Tensor) -> Tensor:
        n = scores.shape[-1]
        i = torch.arange(n)
        return scores.masked_fill((i > i[:, None]) & (i < 30), -torch.inf)


def test_a_leak_at_a_length_that_only_the_file_was_asked_for_names_the_node_too(
    tmp_path: Path,
) -> None:
    with pytest.raises(CausalityError, match="NOT causal: at length 33") as caught:
        export(SeesFar().eval(), tmp_path / "m.onnx", example=example())
    assert "In the graph, the " in str(caught.value)
