"""Write figures of a profile for people: tables, and numbers in the unit that fits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from causal_onnx.cli.describe import size_text

if TYPE_CHECKING:
    from causal_onnx.runtime.profile import GroupCost, Profile

__all__ = ["GROUP_HEADERS", "count_text", "group_rows", "part_text", "sizes_text"]

GROUP_HEADERS = ["nodes", "calls", "us", "share", "operations", "weights"]


def group_rows(groups: Sequence[GroupCost], top: int) -> list[list[str]]:
    """The costliest groups, and one row for all others."""
    rows = [
        [
            group.name,
            str(group.nodes),
            str(group.calls),
            f"{group.time_us:,.0f}",
            part_text(group.share),
            count_text(group.flops),
            size_text(group.weight_bytes) if group.weight_bytes else "-",
        ]
        for group in groups[:top]
    ]
    rest = groups[top:]
    if rest:
        flops, weights = (sum(g.flops for g in rest), sum(g.weight_bytes for g in rest))
        rows.append(
            [
                f"{len(rest)} other{'s' if len(rest) > 1 else ''}",
                str(sum(g.nodes for g in rest)),
                str(sum(g.calls for g in rest)),
                f"{sum(g.time_us for g in rest):,.0f}",
                part_text(sum(g.share for g in rest)),
                count_text(flops),
                size_text(weights) if weights else "-",
            ]
        )
    return rows


def count_text(count: float) -> str:
    """A number of operations, with the unit's first letter."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f}" if count else "-"


def part_text(part: float) -> str:
    """A part of a whole in percent."""
    return f"{part:.1%}"


def sizes_text(found: Profile) -> str:
    """The sizes of a call in words."""
    rows = "" if found.batch == 1 else f"{found.batch} rows of "
    after = f" after {found.past}" if found.past else ""
    return f"{rows}{found.seq} position{'' if found.seq == 1 else 's'}{after}"
