"""Every entry of the zoo is what it says, and every mutant is broken, in eager PyTorch alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.zoo import MUTANTS, ZOO, entry
from tests.zoo.claims import broken_claims, broken_mutant_claims
from tests.zoo.entry import ZooEntry, features, output_tensors, seeded
from tests.zoo.huggingface import ARCHITECTURES
from tests.zoo.mutants import Mutant
from tests.zoo.probes import Sizes, call, first_difference, influence, past_change, relative_change

OWN = tuple(item for item in ZOO if "hf" not in item.tags)
HUGGING_FACE = tuple(item for item in ZOO if "hf" in item.tags)


def mutant(name: str) -> Mutant:
    return next(item for item in MUTANTS if item.name == name)


@pytest.mark.parametrize("item", OWN, ids=lambda item: item.name)
def test_entry_keeps_its_claims(item: ZooEntry) -> None:
    assert broken_claims(item) == []


@pytest.mark.slow  # 129 models of two layers: about half a minute of processor time
@pytest.mark.parametrize("item", HUGGING_FACE, ids=lambda item: item.name)
def test_library_entry_keeps_its_claims(item: ZooEntry) -> None:
    pytest.importorskip("transformers")
    assert broken_claims(item) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width"),
    [("mistral_eager", 9), ("mistral_sdpa", 9), ("phi3_sdpa", 9), ("starcoder2_eager", 9)],
)
def test_library_windows_are_in_force(name: str, width: int) -> None:
    pytest.importorskip("transformers")
    seen = influence(entry(f"hf_{name}"), Sizes(1, 12))  # two layers of 5: 1 + 2 x 4 positions
    assert torch.equal(seen, torch.ones(12, 12).tril().triu(1 - width).bool())


# Falcon's eager attention adds ALiBi to the scores and, within the mask, once more; its SDPA path
# adds it once. Each entry is its own reference, so both stand in the zoo as they are.
DISAGREE = ("falcon_alibi",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [a.name for a in ARCHITECTURES if len(a.implementations) == 2 and a.name not in DISAGREE],
)
def test_library_implementations_agree(name: str) -> None:
    pytest.importorskip("transformers")
    eager, sdpa = (entry(f"hf_{name}_{kind}") for kind in ("eager", "sdpa"))
    a = call(eager.factory().eval(), eager, Sizes(2, 9))[0]
    b = call(sdpa.factory().eval(), sdpa, Sizes(2, 9))[0]
    assert relative_change(a, b) < 1e-5


@pytest.mark.parametrize("item", MUTANTS, ids=lambda item: item.name)
def test_mutant_is_broken_as_told(item: Mutant) -> None:
    assert broken_mutant_claims(item) == []


def test_names_are_unique_and_the_zoo_is_large() -> None:
    names = [item.name for item in ZOO] + [item.name for item in MUTANTS]
    assert len(set(names)) == len(names)
    assert len(OWN) >= 110
    assert len({architecture.model_type for architecture in ARCHITECTURES}) >= 28
    assert len(MUTANTS) >= 40


def test_entry_is_found_by_name_and_a_slip_names_similar_ones() -> None:
    assert entry("guard_raise").limit == 24
    with pytest.raises(KeyError, match=r"similar: .*guard_raise"):
        entry("guard_rise")


# The failing side of each check: a false claim, or a module that breaks it, is found out.


@pytest.mark.parametrize(
    ("name", "false_claim", "found"),
    [
        ("guard_raise", {"beyond": "accepts"}, "beyond the limit it raises"),
        ("guard_raise", {"limit": 20}, "beyond the limit it accepts"),
        ("guard_crop_to_context", {"beyond": "raises"}, "beyond the limit it crops"),
        ("mask_multiplicative_renormalised", {"causal_up_to": 0.0}, "the past moves by"),
        ("mask_dropped_like", {}, "the past moves by"),
        ("pad_left_finfo_min", {"padded_rows_leak": False}, "the past moves by"),
        ("pad_left_sdpa_bool", {"padded_rows_leak": True}, "leak at padding, and does not"),
        ("pos_rotary_dynamic_ntk", {"tags": frozenset()}, "a prefix alone differs by"),
        ("pos_alibi_relative", {"tags": frozenset({"length_dependent"})}, "does not"),
        ("win_tril_minus_tril", {"footprint": "window:4"}, "not window:4"),
        ("win_tril_minus_tril", {"footprint": "window:6"}, "not window:6"),
        ("win_tril_minus_tril", {"footprint": "causal"}, "not causal"),
        ("win_of_one", {"tags": frozenset()}, "does not depend on earlier tokens"),
        ("pos_none", {"tags": frozenset({"random"})}, "two runs in eval mode are equal"),
        ("pos_none", {"tags": frozenset({"state"})}, "two runs in eval mode are equal"),
    ],
)
def test_false_claim_is_found_out(name: str, false_claim: dict, found: str) -> None:
    if name == "mask_dropped_like":
        broken = mutant("mask_dropped")
        item = replace(entry("attn_one_head_3d"), factory=broken.factory)
    else:
        item = replace(entry(name), **false_claim)
    if "prefix" in found:
        item = replace(item, prefix_up_to=1e-5)
    assert any(found in problem for problem in broken_claims(item))


def test_factory_that_draws_from_the_global_state_is_found_out() -> None:
    item = replace(entry("attn_sdpa_3d"), factory=lambda: nn.Linear(16, 16))
    problems = broken_claims(item)
    assert any("moves the global random state" in problem for problem in problems)
    assert any("other weights each time: weight" in problem for problem in problems)


def test_module_that_fails_at_a_length_is_found_out() -> None:
    class NanAtOne(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(1) / (x.size(1) - 1)

    item = replace(entry("attn_sdpa_3d"), factory=NanAtOne)
    assert any("not finite at batch 1, length 1" in problem for problem in broken_claims(item))


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("leak", "moves by 0.0e"),
        ("length", "a longer input changes nothing"),
        ("footprint", "sees just what was declared"),
    ],
)
def test_mutant_that_is_not_broken_is_found_out(kind: str, found: str) -> None:
    good = entry("attn_sdpa_is_causal")
    item = replace(
        mutant("mask_dropped"), factory=good.factory, kind=kind, declared="causal", breaks=""
    )
    assert any(found in problem for problem in broken_mutant_claims(item))


def test_mutant_that_names_a_missing_submodule_is_found_out() -> None:
    item = replace(mutant("mask_dropped"), breaks="middle.attn")
    assert "has no submodule 'middle.attn'" in broken_mutant_claims(item)


def test_whole_mask_by_the_caller_decides_what_is_seen() -> None:
    item = entry("pad_whole_mask_given")

    def everything(batch: int, seq: int) -> tuple[torch.Tensor, ...]:
        x, mask = item.inputs(batch, seq)
        return x, torch.ones_like(mask)

    assert past_change(replace(item, inputs=everything), Sizes(2, 8), 4) > 1e-2


def test_influence_of_a_shift_is_one_diagonal() -> None:
    class Shift(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]

    made = features(4)
    item = replace(entry("attn_sdpa_3d"), factory=Shift, inputs=made.make)
    assert torch.equal(influence(item, Sizes(1, 5)), torch.eye(5).bool().roll(1, 0).tril(-1))


def test_relative_change_sees_shape_dtype_and_nan() -> None:
    a = torch.tensor([1.0, -4.0])
    assert relative_change(a, a.clone()) == 0.0
    assert relative_change(a, torch.tensor([1.0, -3.0])) == 0.25
    assert relative_change(a, a.double()) == float("inf")
    assert relative_change(a, a[:1]) == float("inf")
    assert relative_change(a, torch.tensor([1.0, float("nan")])) == float("inf")


def test_first_difference_names_the_tensor() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    b.load_state_dict(a.state_dict())
    assert first_difference(a, b) is None
    with torch.no_grad():
        b.bias.add_(1)
    assert first_difference(a, b) == "bias"


def test_seeded_moves_norms_off_one_and_leaves_the_global_state() -> None:
    before = torch.get_rng_state()
    norm = seeded(lambda: nn.LayerNorm(8), seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert (norm.weight != 1).all()
    assert (norm.bias != 0).all()


def test_output_tensors_walks_nested_outputs_in_order() -> None:
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    found = output_tensors({"first": a, "rest": [(b, None), (c, "text")]})
    assert [t.numel() for t in found] == [1, 2, 3]
