"""The results as one JSON document: a section per kind of work, each measured in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["FORMAT", "read_results", "write_section"]

FORMAT = 1

LINE = 90
ROW_DEPTH = 4
"""document, sections, section, list of rows: deeper, everything is a row."""


def read_results(path: Path) -> dict[str, Any]:
    """Section name -> section; empty where there is no file.

    Raises:
        ValueError: The file is not of this format.
    """
    if not path.exists():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not JSON ({error}); delete it and run again") from error
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT or not isinstance(document.get("sections"), dict):
        raise ValueError(
            f"{path.name} has format {found!r}, expected {FORMAT}; delete it and run again"
        )
    sections: dict[str, Any] = document["sections"]
    return sections


def write_section(path: Path, name: str, section: dict[str, Any]) -> None:
    """Replace one section; the others, measured in other runs, stay. Whole or not at all.

    Raises:
        ValueError: The file that is there is of another format, or a figure is NaN or infinite.
    """
    sections = {**read_results(path), name: section}
    document = {"format": FORMAT, "sections": sections}
    text = _lay_out(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def _lay_out(value: Any, indent: int = 0) -> str:
    """JSON with what fits on a line on one, so that a run's changes can be read as a diff."""
    text = json.dumps(value, sort_keys=True, allow_nan=False)
    is_row = indent >= ROW_DEPTH
    if is_row or not isinstance(value, dict | list) or not value or len(text) < LINE:
        return text
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        keys = sorted(value)
        inner = [f"{pad}{json.dumps(key)}: {_lay_out(value[key], indent + 1)}" for key in keys]
        return "{\n" + ",\n".join(inner) + "\n" + " " * indent + "}"
    inner = [f"{pad}{_lay_out(item, indent + 1)}" for item in value]
    return "[\n" + ",\n".join(inner) + "\n" + " " * indent + "]"
