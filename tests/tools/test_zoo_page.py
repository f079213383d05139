"""Judging results, keeping them, and the page that shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tools.zoo.judge import entry_steps, problems
from tools.zoo.page import mutant_rates, render, summary_lines
from tools.zoo.store import Store, code_key

from tests.zoo import entry

VERSIONS = {"torch": "1.2"}


def result(status: str = "right", **rest: Any) -> dict[str, Any]:
    given = {"status": status, "reason": "why not", "beyond": "", "max_error": 2e-7, "shapes": 21}
    return {**given, "names_place": True, "date": "2026-01-02", "key": "k", **rest}


def certificate(**rest: Any) -> dict[str, Any]:
    given = {"verdict": "causal", "every_length": True, "footprints": ["causal"], "reason": ""}
    return {**given, "footprint_fits": True, **rest}


@pytest.mark.parametrize(
    ("name", "steps", "found"),
    [
        ("guard_raise", {"ours": result()}, None),
        ("guard_raise", {"ours": result("wrong")}, "ours: wrong, right expected; why not"),
        ("guard_raise", {"ours": result("crash")}, "ours: crash, right expected"),
        ("guard_raise", {"ours": result(beyond="answers")}, "beyond the limit of 24 it answers"),
        ("guard_raise", {"cached": result("refused")}, "cached: refused, right expected"),
        ("guard_raise", {"tiled": result("fails")}, "tiled: fails, right expected"),
        ("guard_raise", {"plain": result("wrong")}, None),
        (
            "guard_raise",
            {"ours": result(certificate=certificate(verdict="undecided", reason="no rule"))},
            "certificate undecided: no rule",
        ),
        (
            "guard_raise",
            {"ours": result(certificate=certificate(footprint_fits=False, footprints=["full"]))},
            "footprint full, declared causal",
        ),
        ("guard_noise_in_eval", {"ours": result("refused")}, None),
        ("guard_noise_in_eval", {"ours": result()}, "ours: right, refused expected"),
        (
            "guard_noise_in_eval",
            {"ours": result("refused", names_place=False)},
            "refused without naming a place",
        ),
        ("pos_rotary_dynamic_ntk", {"ours": result(), "cached": result("refused")}, None),
        ("pos_rotary_dynamic_ntk", {"cached": result()}, "cached: right, refused expected"),
    ],
)
def test_results_are_judged(name: str, steps: dict[str, Any], found: str | None) -> None:
    said = problems(entry(name), steps)
    assert said == [] if found is None else any(found in text for text in said)


def test_steps_fit_the_entry() -> None:
    assert entry_steps(entry("guard_raise")) == (
        "ours", "cached", "portable20", "tiled", "plain"
    )  # fmt: skip
    assert entry_steps(entry("guard_noise_in_eval")) == ("ours", "plain")
    assert "cached" not in entry_steps(entry("cache_static_scatter"))


def test_page_shows_rows_refusals_and_what_was_not_run() -> None:
    entries = [entry("guard_raise"), entry("guard_noise_in_eval"), entry("pos_none")]
    results = {
        "guard_raise": {"ours": result(certificate=certificate()), "plain": result("wrong")},
        "guard_noise_in_eval": {"ours": result("refused")},
    }
    page = render(entries, results, VERSIONS, stale=3)
    assert page == render(entries, results, VERSIONS, stale=3)
    assert "Newest result: 2026-01-02. torch 1.2." in page
    assert "3 results come from earlier sources" in page
    row = next(line for line in page.splitlines() if line.startswith("| `guard_raise`"))
    assert "| wrong | right | causal | not run | not run | 2.0e-07 |" in row
    row = next(line for line in page.splitlines() if line.startswith("| `pos_none`"))
    assert "| not run | not run |" in row
    assert "- `guard_noise_in_eval`, ours (expected: refused:random in eval mode" in page


def test_summary_counts_ours_and_plain() -> None:
    results = {"guard_raise": {"ours": result(), "plain": result("wrong")}}
    lines = summary_lines([entry("guard_raise")], results)
    assert "| exported, right at every shape | 1 | 0 |" in lines
    assert "| exported, silently wrong at some shape | 0 | 1 |" in lines


def test_rates_count_what_was_let_through() -> None:
    edits = [{"rejected": True}, {"rejected": False}]
    results = {
        "mask_dropped": {"export": result("rejected"), "attest": result("rejected", named=True)},
        "mask_inverted": {"export": result("accepted"), "attest": result("accepted", named=False)},
        "hand-x": {"graph": result("accepted", mutants=edits)},
    }
    said = " ".join(mutant_rates(results))
    assert "rejected by `export`: 1 of 2." in said
    assert "by `attest`: 1 of 2; with the broken module or a fitting operator named: 1 of 2" in said
    assert "broken by one edit, rejected by `attest`: 1 of 2." in said
    assert "accepted by `attest`: 1 of 1." in said


def test_confirmed_witnesses_are_counted_wherever_the_static_pass_names_one() -> None:
    edits = [{"rejected": True, "confirmed": True}, {"rejected": False, "confirmed": False}]
    results = {
        "mask_dropped": {"attest": result("rejected", named=True, confirmed=True)},
        "guard_raise": {"ours": result(certificate=certificate()), "plain": None},
        "hand-x": {"graph": result("accepted", confirmed=None, mutants=edits)},
    }
    assert "changes): 2 of 3." in mutant_rates(results)[-1]


def test_result_is_kept_as_long_as_its_code_is_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.put("a", "ours", "key 1", {"status": "right"})
    store.put("a", "plain", "key 2", {"status": "wrong"})
    kept = Store(tmp_path).get("a", "ours", "key 1")
    assert kept is not None
    assert kept["status"] == "right"
    assert store.get("a", "ours", "key 2") is None
    assert store.get("a", "cached") is None
    assert store.get("b", "ours") is None
    (tmp_path / "a.json").write_text("{")
    assert store.get("a", "ours") is None


def test_key_follows_the_sources(tmp_path: Path) -> None:
    roots = ("export/causal_onnx/export", "runtime/causal_onnx/runtime")
    for folder in ("tests/zoo", "tools/zoo", "tools/judge", *roots):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("plain.py", "check.py"):
        (tmp_path / "tools/zoo" / name).touch()
    before = [code_key(ours=ours, root=tmp_path) for ours in (True, False)]
    (tmp_path / "export/causal_onnx/export/a.py").write_text("1")
    after = [code_key(ours=ours, root=tmp_path) for ours in (True, False)]
    assert before[0] != after[0]
    assert before[1] == after[1]
    (tmp_path / "tests/zoo/test_a.py").write_text("1")
    assert after == [code_key(ours=ours, root=tmp_path) for ours in (True, False)]
    (tmp_path / "tools/zoo/plain.py").write_text("1")
    assert after[1] != (changed := code_key(ours=False, root=tmp_path))
    (tmp_path / "tests/zoo/masks.py").write_text("1")
    assert changed != code_key(ours=False, root=tmp_path)


def test_the_page_counts_the_fallbacks_and_gives_the_reason_of_each() -> None:
    item = entry("guard_raise")
    whole = {"form": "cache for rows of different lengths", "reason": "MatMul reads positions"}
    part = {"form": "attention at Softmax 's'", "reason": "its scale changes"}
    steps = {"ours": result(fallbacks=[part]), "cached": result(fallbacks=[whole, part])}
    page = render([item], {item.name: steps}, VERSIONS, stale=0)
    assert "3 in 2 exports (1 to another form of the whole graph, 2 attentions left" in page
    assert "- `guard_raise`, cached: no cache for rows of different lengths: MatMul reads" in page
    assert "None." in render([item], {item.name: {"ours": result(fallbacks=[])}}, VERSIONS, stale=0)
