"""Sums over the past as onnxruntime's LinearAttention: where it is used, and that it is right."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field uses
from torch import Tensor, nn

from causal_onnx.export.cache import states
from causal_onnx.export.errors import RewriteError
from causal_onnx.runtime import ArtifactError, Model, load
from causal_onnx.runtime.session.ort import import_onnxruntime
from tests.export.cache.test_states import (
    Made,
    Mix,
    checked,
    decays_of_each_feature,
    fed,
    heads_of,
    joined_heads,
    refuse_any_difference,
    retained,
    segment_sums,
    state_space_dual,
    summed_by_triangle,
    tokens,
    wanted,
    within_a_window,
)
from tests.export.quick import quick_export


def divided_by_sums(x: Tensor, _: nn.Conv1d) -> Tensor:
    """Nothing but the sum itself is divided by."""
    q, k, v = heads_of(x)
    weights = (q.sigmoid() @ k.sigmoid().mT).tril()
    return joined_heads((weights / weights.sum(-1, keepdim=True)) @ v)


def shared_by_queries(x: Tensor, _: nn.Conv1d) -> Tensor:
    """Two heads of queries for one of keys and values, whose decays both share."""
    q, k, v = x.unflatten(-1, (2, 8)), x[..., :8].cos(), (2 * x[..., :8]).sin()
    decay = segment_sums(-F.softplus(x[..., 0])).exp()
    return torch.einsum("bihd,bjd,bij,bje->bihe", q, k, decay, v).flatten(2)


def summed_without_heads(x: Tensor, _: nn.Conv1d) -> Tensor:
    apart = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    decay = torch.where(apart >= 0, 0.9 ** apart.clamp(0).to(x.dtype), 0.0)
    return (x @ x.cos().mT * decay) @ x.sin() / 8


def decays_as_reciprocals(x: Tensor, _: nn.Conv1d) -> Tensor:
    """The exponential is not what is computed last."""
    (q, k, v), total = heads_of(x), F.softplus(x[..., :2]).cumsum(1).transpose(1, 2)
    growth = (total.unsqueeze(3) - total.unsqueeze(2)).tril().exp()
    return joined_heads((q @ k.mT * growth.reciprocal().tril()) @ v) / 8


def decays_of_either_sign(x: Tensor, _: nn.Conv1d) -> Tensor:
    q, k, v = heads_of(x)
    apart = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    decay = torch.where(apart >= 0, (-0.9) ** apart.clamp(0).to(x.dtype), 0.0)
    return joined_heads((q @ k.mT * decay) @ v) / 8


def ratios_of_products(x: Tensor, _: nn.Conv1d) -> Tensor:
    """Each position has a factor of its own, of either sign: the past does not fade."""
    (q, k, v), total = heads_of(x), (1.5 * x[..., :2].cos()).cumprod(1).transpose(1, 2)
    decay = (total.unsqueeze(3) / total.unsqueeze(2)).tril()
    return joined_heads((q @ k.mT * decay) @ v) / 8


def decays_from_nothing_to_all(x: Tensor, _: nn.Conv1d) -> Tensor:
    """Where the first entry is above 1 the past is gone, and below -1 all of it stays."""
    (q, k, v), first = heads_of(x), x[..., :1]
    step = torch.where(first > 1, -torch.inf, torch.where(first < -1, 0.0, -0.1)).expand(-1, -1, 2)
    decay = segment_sums(step.transpose(1, 2)).exp()
    return joined_heads((q @ k.mT * decay) @ v) / 8


USED: dict[str, tuple[Mix, int]] = {
    "retention": (retained, 1),
    "linear attention": (summed_by_triangle, 1),
    "state space dual": (state_space_dual, 1),
    "decays of each feature": (decays_of_each_feature, 1),
    "divided by sums": (divided_by_sums, 2),
    "shared by queries": (shared_by_queries, 1),
    "without heads": (summed_without_heads, 1),
    "decays as reciprocals": (decays_as_reciprocals, 1),
    "decays of either sign": (decays_of_either_sign, 0),
    "ratios of products": (ratios_of_products, 1),
    "a window": (within_a_window, 0),
}


@cache
def module_of(mix: Mix) -> nn.Module:
    """The same for all tests, so that it is captured once."""
    torch.manual_seed(0)
    return Made(mix).eval()


def exported(mix: Mix, folder: Path, **options: str) -> tuple[nn.Module, Model, int]:
    """The module, its file, and how many of the operator are in it."""
    module, path = module_of(mix), folder / "m.onnx"
    model = quick_export(module, path, example=tokens(2, 5), cache=True, **options)
    nodes = onnx.load(path, load_external_data=False).graph.node
    return module, model, sum(node.op_type == "LinearAttention" for node in nodes)


@pytest.mark.parametrize("name", USED)
def test_the_operator_is_used_where_it_fits(name: str, tmp_path: Path) -> None:
    mix, count = USED[name]
    module, model, found = exported(mix, tmp_path)
    assert found == count
    assert model.contract.min_onnxruntime == ("1.30" if count else None)
    refuse_any_difference(module, model)


@pytest.mark.parametrize("name", [name for name, (_, count) in USED.items() if count])
def test_other_targets_have_a_sum_of_products(name: str, tmp_path: Path) -> None:
    module, model, found = exported(USED[name][0], tmp_path, target="portable")
    assert found == 0
    assert model.contract.min_onnxruntime is None
    refuse_any_difference(module, model)


def test_other_precisions_have_a_sum_of_products(tmp_path: Path) -> None:
    assert exported(summed_by_triangle, tmp_path, precision="fp16")[2] == 0


def test_an_older_onnxruntime_gets_a_sum_of_products(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_onnxruntime(), "__version__", "1.29.0")
    assert exported(retained, tmp_path)[2] == 0


def test_both_forms_keep_states_of_one_shape(tmp_path: Path) -> None:
    contracts = [
        exported(state_space_dual, tmp_path, target=target)[1].contract
        for target in ("ort", "portable")
    ]
    assert contracts[0].cache == contracts[1].cache
    assert contracts[0].inputs == contracts[1].inputs


def test_a_past_that_is_gone_and_one_that_stays_are_right(tmp_path: Path) -> None:
    module, model, found = exported(decays_from_nothing_to_all, tmp_path)
    assert found == 1
    x = 2 * tokens(2, 45)
    for cuts in ([0, 45], [*range(30), 45], [0, 7, 8, 40, 45]):
        got = fed(model.stream(batch=2), x.numpy(), cuts)
        np.testing.assert_allclose(got, wanted(module, x), rtol=0, atol=2e-5)


def test_outputs_at_padding_are_finite_in_a_row_that_read_nothing(tmp_path: Path) -> None:
    _, model, _ = exported(divided_by_sums, tmp_path)
    mask = np.array([[1, 1, 1], [0, 0, 0]])
    found = model.run(x=tokens(2, 3).numpy(), attention_mask=mask)
    assert all(np.isfinite(array).all() for array in found.values())


@pytest.mark.parametrize("mix", [decays_as_reciprocals, shared_by_queries, decays_of_each_feature])
def test_the_file_is_proved_for_every_length(mix: Mix, tmp_path: Path) -> None:
    report = checked(module_of(mix), tmp_path / "m.onnx")
    assert report.certificate is not None
    assert report.certificate.every_length
    assert report.contract.min_onnxruntime == "1.30"
    assert "onnxruntime >= 1.30" in str(report)


def with_padding(writer: states.LinearAttentionWriter, made: Callable[..., object], *given: int):
    """Padding enters the state."""
    is_token = made(writer, *given)
    return writer.write("Or", is_token, writer.write("Not", is_token))


def twice(writer: states.LinearAttentionWriter, made: Callable[..., object], *given: int):
    found = made(writer, *given)
    return writer.write("Add", found, found)


def begun_anew(writer: states.LinearAttentionWriter, made: Callable[..., object], *given: int):
    return writer.write("Mul", made(writer), writer.write.number(0.0, writer.states[-1].past))


@pytest.mark.parametrize(
    ("part", "change"),
    [("is_token", with_padding), ("decay_of_steps", twice), ("carried_sum", begun_anew)],
)
def test_a_wrong_state_is_found_before_a_file_appears(
    part: str,
    change: Callable[..., object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = getattr(states.LinearAttentionWriter, part)
    monkeypatch.setattr(
        states.LinearAttentionWriter, part, lambda self, *given: change(self, made, *given)
    )
    with pytest.raises(RewriteError, match=r"cache: .* is off|first at \w+ '"):
        checked(module_of(retained), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_refused_by_an_older_onnxruntime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(retained, tmp_path)
    monkeypatch.setattr(import_onnxruntime(), "__version__", "1.29.1")
    with pytest.raises(
        ArtifactError, match=r"needs onnxruntime 1\.30 or newer, and this is 1\.29\.1"
    ):
        load(tmp_path / "m.onnx")
