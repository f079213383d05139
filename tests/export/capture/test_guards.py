"""The guards of an exported program, read as the set of valid sizes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as fx_config

from causal_onnx.export.capture.guards import Domain, PyTorchsCheck, read_domain
from causal_onnx.export.errors import ExportError
from causal_onnx.export.source.inputs import CallSizes, describe_inputs

SPECS = describe_inputs(["x"], [torch.zeros(3, 7, 16)], None)
WITH_PAST = describe_inputs(
    ["x", "past"],
    [torch.zeros(3, 7, 16), torch.zeros(3, 2, 5, 8)],
    [{0: "batch", 1: "seq"}, {0: "batch", 2: "past_seq"}],
)
SEQ, BATCH, PAST = (
    "L['inputs'][0].size()[1]",
    "L['inputs'][0].size()[0]",
    "L['inputs'][1].size()[2]",
)


def domain(*guards: str, specs: Any = SPECS, **ranges: tuple[int, float]) -> Domain:
    return Domain(guards, specs, ranges)


def limit(found: Domain) -> int | None:
    """The largest valid length, where the guards are a plain upper bound."""
    bound = found.bound(least=1, top=None)
    assert bound is None or bound.is_plain
    return None if bound is None else bound.largest


@pytest.mark.parametrize(
    ("guards", "largest"),
    [
        ([], None),
        ([f"{SEQ} <= 24"], 24),
        ([f"24 >= {SEQ}"], 24),
        ([f"{SEQ} < 25"], 24),
        ([f"1 + {SEQ} <= 64"], 63),
        ([f"not ({SEQ} > 24)"], 24),
        ([f"{SEQ} == min(24, {SEQ})"], 24),
        ([f"max(24, {SEQ}) == 24"], 24),
        ([f"(16*{SEQ}) == (16*max(0, {SEQ} + ((-1)*max(0, (-24) + {SEQ}))))"], 24),
        ([f"{SEQ} != 1", f"{SEQ} != 24"], None),
        ([f"2*{SEQ} < 50"], 24),
        ([f"{SEQ} <= 24 or {SEQ} <= 40"], 40),
        ([f"{SEQ} <= 12345"], 12345),
        (["L['inputs'][0].size()[2] == 16"], None),
        (["L['inputs'][0].stride()[1] == 16"], None),
        ([f"L['inputs'][0].stride()[0] <= 16*24 and {BATCH} >= 1"], 24),
        (["L['flat_args'][0].size()[1] <= 24"], 24),  # as strict mode says it
        ([f"math.floor({SEQ} / 2) <= 5"], 11),
    ],
)
def test_largest_length(guards: list[str], largest: int | None) -> None:
    assert limit(domain(*guards)) == largest


def test_range_of_a_symbol_is_a_limit() -> None:
    assert limit(domain(seq=(2, 32.0))) == 32
    assert limit(domain(seq=(2, math.inf))) is None
    assert domain(seq=(4, math.inf)).refusal(CallSizes(batch=2, seq=3)) == "seq >= 4"


@pytest.mark.parametrize("guard", [f"{SEQ} + {PAST} <= 64", f"{SEQ} <= 64", f"{PAST} < 64"])
def test_positions_of_a_past_count(guard: str) -> None:
    bound = domain(guard, specs=WITH_PAST).bound(least=1, top=None)
    assert bound is not None
    assert (bound.largest, bound.is_plain) == (64, True)


@pytest.mark.parametrize(
    "guard",
    [
        f"{SEQ} == 7",
        f"{SEQ} == 5000",
        f"{SEQ} % 2 == 1",
        f"({SEQ} % 2) != 0",
        f"{SEQ} <= 7 or {SEQ} >= 40",
        f"{BATCH} <= 4",
        f"{BATCH}*{SEQ} <= 4096",
    ],
)
def test_what_is_no_upper_bound_of_the_length_is_not_taken_for_one(guard: str) -> None:
    bound = domain(guard).bound(least=1, top=None)
    assert bound is not None
    assert bound.largest < 1 or not bound.is_plain


def test_refusal_names_the_guard_with_the_names_of_axes() -> None:
    found = domain(f"{BATCH} <= 4")
    assert found.refusal(CallSizes(batch=5, seq=3)) == "batch <= 4"
    assert found.refusal(CallSizes(batch=4, seq=3)) is None


@pytest.mark.parametrize(
    "guard",
    [
        "L['inputs'][0].device.type == 'cpu'",
        "L['inputs'][0].dtype == torch.float32",
        "L['inputs'][0].is_contiguous()",
    ],
)
def test_guard_about_the_tensor_itself_is_no_refusal(guard: str) -> None:
    assert limit(domain(guard)) is None


@pytest.mark.parametrize(
    "guard",
    [
        f"{SEQ} <=",  # does not compile
        f"{SEQ} <= context_length",  # a name that is not known
        "L['self'].size()[0] <= 24",
        "L['inputs'][3].size()[1] <= 24",
        "L['inputs'][0].size()[7] <= 24",
        "L['inputs'][0].bounds(1) <= 24",
        f"torch.something({SEQ}) <= 24",
        f"__import__('os').getpid() > {SEQ}",
        f"{SEQ} <= 24 if L['inputs'][0].device.type == 'cpu' else {SEQ} <= 12",
    ],
)
def test_guard_of_an_unknown_form_is_refused_by_name(guard: str) -> None:
    with pytest.raises(ExportError, match=r"valid only where .* cannot read") as caught:
        domain(guard)
    assert repr(guard) in str(caught.value)


@pytest.mark.parametrize("guard", [f"1 // ({SEQ} - 9) < 5", f"math.sqrt(9 - {SEQ}) >= 0"])
def test_what_cannot_be_computed_does_not_hold(guard: str) -> None:
    shorter, longer = CallSizes(batch=2, seq=8), CallSizes(batch=2, seq=9 if "//" in guard else 10)
    assert domain(guard).refusal(shorter) is None
    assert domain(guard).refusal(longer) is not None


def test_sizes_that_torch_excludes_are_to_be_compared() -> None:
    found = domain(f"{SEQ} != 1", f"{SEQ} != 37", f"{BATCH} != 9")
    assert found.guards == []
    assert found.excluded == [CallSizes(batch=2, seq=37), CallSizes(batch=9, seq=7)]


class Limited(nn.Module):
    """Takes 24 positions, as Python code says."""

    def forward(self, *inputs: Tensor) -> Tensor:
        (x,) = inputs
        if x.shape[1] > 24:
            raise ValueError("too long")
        return x * 2


def program(module: nn.Module) -> ExportedProgram:
    shapes = {"inputs": ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)}
    with fx_config.patch(backed_size_oblivious=True):
        return torch.export.export(
            module, (torch.zeros(3, 7, 16),), dynamic_shapes=shapes, strict=False
        )


def test_canary_a_known_limit_is_read_from_this_pytorch() -> None:
    """If this fails on a new PyTorch, its bound in pyproject.toml must stay where it is."""
    found = program(Limited())
    assert limit(read_domain(found, SPECS)) == 24
    check = PyTorchsCheck(found)
    assert check.refusal([torch.empty(5, 24, 16, device="meta")]) is None
    assert "24" in (check.refusal([torch.empty(5, 25, 16, device="meta")]) or "")


@pytest.mark.parametrize("guards", [None, "x", [1], {"a": 1}])
def test_a_pytorch_that_keeps_its_guards_elsewhere_is_refused(guards: object) -> None:
    found = program(Limited())
    found._guards_code = guards  # type: ignore[assignment]
    with pytest.raises(
        ExportError, match=rf"torch {torch.__version__[:4]}.* does not say for which"
    ):
        read_domain(found, SPECS)


def test_a_reading_that_differs_from_pytorchs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PyTorchsCheck, "refusal", lambda self, inputs: None)
    with pytest.raises(
        ExportError, match="differently at batch 1, seq 64: valid against seq <= 24"
    ):
        read_domain(program(Limited()), SPECS)


def test_a_program_without_pytorchs_check_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = program(Limited())
    monkeypatch.setattr(found, "module", lambda check_guards: torch.fx.symbolic_trace(nn.ReLU()))
    with pytest.raises(ExportError, match="writes no check of its guards"):
        PyTorchsCheck(found)


def test_sizes_at_which_two_sizes_coincide_are_compared_at_some() -> None:
    found = domain(f"16*{SEQ} + 16*((-{SEQ}) % 4) != 16*{SEQ}")
    assert found.bound(least=1, top=None) is None
    assert [sizes.seq for sizes in found.excluded][:4] == [4, 8, 12, 16]
    assert all(sizes.seq % 4 == 0 for sizes in found.excluded)
    assert max(sizes.seq for sizes in found.excluded) > 256
    assert found.sampled == ["16*seq + 16*((-seq) % 4) != 16*seq"]


def test_one_size_at_which_two_sizes_coincide_is_no_bound() -> None:
    found = domain(f"{SEQ}*{SEQ} != {SEQ}")
    assert (found.bound(least=1, top=None), found.sampled) == (None, [])
