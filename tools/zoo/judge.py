"""Whether what became of an entry is what its author expects of an honest exporter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tools.zoo.tasks import FORMS

from tests.zoo import ZooEntry

__all__ = ["LENGTH_DEPENDENT", "entry_steps", "problems", "wants_cache"]

LENGTH_DEPENDENT = "length_dependent"
"""Tag of entries that are causal at every length and change with it: no cache can be derived."""
Results = Mapping[str, Mapping[str, Any] | None]


def wants_cache(item: ZooEntry) -> bool:
    """Whether a cache is asked for: it should be given, or refused for the reason expected."""
    causal = item.expect == "causal" and item.cacheable and not item.takes_past
    return causal or LENGTH_DEPENDENT in item.tags


def entry_steps(item: ZooEntry) -> tuple[str, ...]:
    """The steps to run, in order."""
    forms = FORMS if item.expect == "causal" else ()
    return ("ours", *(("cached",) if wants_cache(item) else ()), *forms, "plain")


def problems(item: ZooEntry, results: Results) -> list[str]:
    """What is not as expected, one line each; steps that were not run are passed over."""
    found = []
    for step in entry_steps(item):
        result = results.get(step)
        if result is None or step == "plain":
            continue
        wanted = _expected(item, step)
        status = result["status"]
        if status not in wanted:
            found.append(f"{step}: {status}, {' or '.join(wanted)} expected; {result['reason']}")
        elif status == "refused" and not result["names_place"]:
            found.append(f"{step}: refused without naming a place; {result['reason']}")
        elif status == "right":
            if result["beyond"] in ("answers", "differs"):
                found.append(f"{step}: beyond the limit of {item.limit} it {result['beyond']}")
            found += [f"{step}: {text}" for text in _certified(item, result.get("certificate"))]
    return found


def _expected(item: ZooEntry, step: str) -> tuple[str, ...]:
    if item.expect == "causal":
        return ("right",)
    if LENGTH_DEPENDENT in item.tags and step == "ours":
        return ("right", "refused")
    return ("refused",)


def _certified(item: ZooEntry, certificate: Mapping[str, Any] | None) -> list[str]:
    if certificate is None:
        return []
    if certificate["verdict"] != "causal":
        return [f"certificate {certificate['verdict']}: {certificate['reason']}"]
    if certificate["footprint_fits"] is False:
        seen = "; ".join(certificate["footprints"])
        return [f"footprint {seen}, declared {item.footprint}"]
    return []
