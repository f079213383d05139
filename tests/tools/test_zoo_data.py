"""The page's tables as data: what is packed comes back, and the figures stay a page."""

from __future__ import annotations

from pathlib import Path

from tools.zoo.data import pack, split, unpack

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = """# Page

| figure | |
|---|---|
| right | 2 |

## Masks

| entry | origin |
|---|---|
| `a` | x \\| y |
| `b` |  |

Text.
- one
- two
"""


def test_the_figures_stay_and_the_sections_come_back() -> None:
    figures, sections = split(PAGE)
    assert figures.endswith("| right | 2 |\n")
    assert sections.startswith("## Masks")
    assert unpack(pack(sections)) == sections


def test_equal_sections_give_equal_bytes_and_others_do_not() -> None:
    _, sections = split(PAGE)
    assert pack(sections) == pack(sections)
    assert pack(sections) != pack(sections.replace("two", "three"))


def test_the_data_in_the_repository_is_that_of_the_page() -> None:
    page = (DOCS / "zoo.md").read_text(encoding="utf-8")
    sections = unpack((DOCS / "zoo.json.gz").read_bytes())
    modules = int(page.partition(" modules: ")[0].rpartition("\n")[2])
    tables = sections.partition("## Not as expected")[0]
    assert sum(line.startswith("| `") for line in tables.splitlines()) == modules
    assert len(page) < 8000
