"""Tables, and data for the script, of the demo's page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from causal_onnx.cli.markup import Markup, element

__all__ = ["json_script", "table"]


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Markup:
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


def json_script(identifier: str, value: object) -> Markup:
    """Embed JSON for the page's script to read; `<` is escaped, so it cannot end the element."""
    text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
    return element("script", Markup(text), type="application/json", id=identifier)
