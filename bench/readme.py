"""Write what was measured between two markers of a page, and leave the rest as it is."""

from __future__ import annotations

from pathlib import Path

__all__ = ["replace_between_markers", "rewrite_page"]


def rewrite_page(path: Path, section: str, content: str) -> None:
    """Put `content` between the markers of `section` in the file.

    Raises:
        ValueError: The file does not hold the pair of markers exactly once, in order.
    """
    old = path.read_text(encoding="utf-8")
    new = replace_between_markers(old, section, content, where=path.name)
    path.write_text(new, encoding="utf-8")


def replace_between_markers(page: str, section: str, content: str, *, where: str) -> str:
    """The page with `content` between `<!-- SECTION: begin -->` and `<!-- SECTION: end -->`.

    Raises:
        ValueError: The page does not hold the pair exactly once, in order.
    """
    begin, end = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
    for marker in (begin, end):
        if page.count(marker) != 1:
            raise ValueError(
                f"{where} must hold the marker {marker} exactly once, found {page.count(marker)}; "
                "put it back where the table belongs"
            )
    before, _, rest = page.partition(begin)
    if end not in rest:
        raise ValueError(f"{where} holds {end} before {begin}; swap them")
    after = rest.partition(end)[2]
    return f"{before}{begin}\n\n{content.strip()}\n\n{end}{after}"
