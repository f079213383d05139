"""Build HTML so that no text gets into it unescaped."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence

__all__ = ["Html", "element", "join", "json_script", "table"]

VOID = frozenset({"meta", "input", "br", "col"})
"""Elements that have no end tag."""


class Html(str):
    """Text that is HTML already. Plain `str` is text, and is escaped wherever it is put in."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: str | float | bool | None) -> Html:
    """Make one element.

    Args:
        tag: Its name.
        *children: `Html` as it is, other strings escaped.
        **attributes: An underscore at the end of a name is dropped (`class_`), others become
            hyphens. True: the name alone; False and None: left out.
    """
    parts = [tag]
    for key, value in attributes.items():
        name = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(name)
        elif value is not None and value is not False:
            parts.append(f'{name}="{html.escape(str(value))}"')
    start = f"<{' '.join(parts)}>"
    return Html(start if tag in VOID else f"{start}{join(children)}</{tag}>")


def join(children: Iterable[str]) -> Html:
    """Put HTML and text one after the other."""
    return Html(
        "".join(c if isinstance(c, Html) else html.escape(c, quote=False) for c in children)
    )


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """Make a table with a caption, whose first column holds the heads of its rows."""
    head = element("tr", *(element("th", text, scope="col") for text in heads))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell) for cell in row[1:]),
        )
        for row in rows
    ]
    inner = element(
        "table",
        element("caption", caption),
        element("thead", head),
        element("tbody", *body),
    )
    # A wide table scrolls by itself, not the page; with tabindex the keyboard can scroll it too.
    return element("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption)


def json_script(identifier: str, value: object) -> Html:
    """Embed JSON for the page's script to read; `<` is escaped, so it cannot end the element."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return element("script", Html(text), type="application/json", id=identifier)
