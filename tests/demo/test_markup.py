from __future__ import annotations

import json

from examples.demo.markup import Html, element, join, json_script, table

HOSTILE = "<script>alert('x')</script>&\"</td>"


def test_text_is_escaped_and_html_is_not() -> None:
    assert element("p", "<b>", Html("<i>x</i>")) == "<p>&lt;b&gt;<i>x</i></p>"
    assert join(["a & b", Html("&amp;")]) == "a &amp; b&amp;"


def test_attributes_are_escaped_named_and_left_out() -> None:
    made = element("input", class_="a", aria_label='"<', checked=True, disabled=False, id=None)
    assert made == '<input class="a" aria-label="&quot;&lt;" checked>'


def test_no_cell_of_a_table_can_end_it() -> None:
    made = table(HOSTILE, [HOSTILE], [[HOSTILE, HOSTILE]])
    assert "<script>" not in made
    assert made.count("</td>") == 1


def test_embedded_json_cannot_end_its_element() -> None:
    made = json_script("data", {"text": HOSTILE})
    inner = made.removeprefix('<script type="application/json" id="data">')
    assert inner.count("<") == 1
    assert json.loads(inner.removesuffix("</script>")) == {"text": HOSTILE}
