"""Build HTML and SVG in which text is always escaped: only these functions make markup."""

from __future__ import annotations

import html
from collections.abc import Iterable

__all__ = ["Markup", "element", "join"]

_VOID = frozenset({"meta", "input"})
"""Elements of HTML that have no end tag."""


class Markup(str):
    """Text that is markup already. Plain `str` is text, and is escaped wherever it is put in."""

    __slots__ = ()


def element(
    tag: str, *children: str | None, **attributes: str | int | float | bool | None
) -> Markup:
    """One element with its children.

    Args:
        tag: Its name.
        *children: `Markup` as it is, other text escaped, None left out.
        **attributes: Values are escaped. `class_` stands for `class`, and other underscores for
            hyphens. True: the name alone; False and None: left out.
    """
    named = "".join(
        f" {name}" if value is True else f' {name}="{html.escape(str(value))}"'
        for name, value in (
            (key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
        )
        if value is not None and value is not False
    )
    start = f"<{tag}{named}>"
    return Markup(start if tag in _VOID else f"{start}{join(children)}</{tag}>")


def join(children: Iterable[str | None]) -> Markup:
    """Markup and text one after the other, without what is None."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(child, quote=False)
            for child in children
            if child is not None
        )
    )
