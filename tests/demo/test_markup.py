from __future__ import annotations

import json

from examples.demo.markup import json_script, table

HOSTILE = "<script>alert('x')</script>&\"</td>"


def test_no_cell_of_a_table_can_end_it() -> None:
    made = table(HOSTILE, [HOSTILE], [[HOSTILE, HOSTILE]])
    assert "<script>" not in made
    assert made.count("</td>") == 1


def test_embedded_json_cannot_end_its_element() -> None:
    made = json_script("data", {"text": HOSTILE})
    inner = made.removeprefix('<script type="application/json" id="data">')
    assert inner.count("<") == 1
    assert json.loads(inner.removesuffix("</script>")) == {"text": HOSTILE}
