"""Draw what a query may attend to, from the mask pattern that a certificate names."""

from __future__ import annotations

import re
from collections.abc import Callable

from causal_onnx.cli.markup import Markup, element

__all__ = ["mask_picture"]

SIDE = 12
"""Positions of a picture: enough for a shape, few enough for a phone."""

SHOWN = 4
"""The size of a window, a chunk or a prefix that does not fit."""

CELL = 10

_PATTERNS: dict[str, Callable[[int, int, int], bool]] = {
    "causal": lambda t, j, size: j <= t,
    "causal window": lambda t, j, size: t - size < j <= t,
    "causal chunk": lambda t, j, size: j <= t and t // size == j // size,
    "prefix": lambda t, j, size: j <= t or j < size,
    "full": lambda t, j, size: True,
}


def mask_picture(text: str) -> Markup | None:
    """A grid with a filled cell where the query of the row may attend to the key of the column.

    Args:
        text: An attention site as a certificate describes it, such as "causal window 4096
            (Attention, 4 heads)". None is returned where its pattern has no fixed shape.
    """
    found = re.match(r"(causal window|causal chunk|prefix|causal|full)(?: (\d+))?(?=$|[ ,(])", text)
    if found is None:
        return None
    kind, stated = found[1], int(found[2]) if found[2] else SIDE
    size = stated if stated <= SIDE // 2 or found[2] is None else SHOWN
    allows = _PATTERNS[kind]
    cells = [
        element(
            "rect",
            x=column * CELL + 1,
            y=row * CELL + 1,
            width=CELL - 2,
            height=CELL - 2,
            rx=2,
            class_="seen" if allows(row, column, size) else "unseen",
        )
        for row in range(SIDE)
        for column in range(SIDE)
    ]
    scale = "" if size == stated else f", drawn with {size} positions in place of {stated}"
    caption = f"{found[0]}{scale}"
    box = f"0 0 {SIDE * CELL} {SIDE * CELL}"
    return element(
        "figure",
        element("svg", *cells, viewBox=box, role="img", aria_label=f"Mask pattern: {caption}"),
        element("figcaption", caption),
    )
