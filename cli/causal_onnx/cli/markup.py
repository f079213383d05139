"""Build HTML in which text is always escaped: only `element` can make markup."""

from __future__ import annotations

import html

__all__ = ["Markup", "element"]

_VOID = frozenset({"meta", "br", "line", "circle", "polyline", "rect"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(tag: str, *children: str | None, **attributes: str | int | float | None) -> Markup:
    """One element with its children.

    Args:
        tag: Its name.
        *children: `Markup` as it is, other text escaped, None left out.
        **attributes: Values are escaped; None is left out. `class_` stands for `class`, and other
            underscores for hyphens.
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _VOID and not children:
        return Markup(f"<{tag}{named}/>" if tag != "meta" else f"<{tag}{named}>")
    inner = "".join(
        child if isinstance(child, Markup) else html.escape(child)
        for child in children
        if child is not None
    )
    return Markup(f"<{tag}{named}>{inner}</{tag}>")
