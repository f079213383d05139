"""Write what was measured between two markers of a page, and leave the rest as it is."""

from __future__ import annotations

from pathlib import Path

from bench.results import Section, write_section

__all__ = ["publish", "replace_between_markers", "rewrite_page"]


def publish(name: str, section: Section, text: str, folder: Path, *, page: Path | None) -> None:
    """Print what a run found and write its figures, also beside a page that shows the text.

    Args:
        name: Of the section.
        section: The figures.
        text: The same as Markdown.
        folder: Of the run's files.
        page: The folder of the page, for whole runs; None: a run that may not replace its tables.
    """
    written = [folder / "results.json"]
    write_section(written[0], name, section.to_dict())
    if page is not None:
        written += [page / "results.json", page / "README.md"]
        write_section(written[1], name, section.to_dict())
        rewrite_page(written[2], name, text)
    print(text)
    print(f"\nwrote {', '.join(str(path) for path in written)}")


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
