"""The results as one JSON document: a section per kind of work, each measured in one run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, get_args, get_origin, get_type_hints

from bench.machine import describe_machine

__all__ = ["FORMAT", "Section", "begin_section", "read_results", "write_section"]

FORMAT = 1

LINE = 90
ROW_DEPTH = 4
"""document, sections, section, list of rows: deeper, everything is a row."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """What every section holds, beside all that its run found out."""

    date: str
    """ISO 8601, UTC."""
    seconds: float
    """How long the run took."""
    machine: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote, also after a passage through JSON.

        Raises:
            ValueError: A field is missing or unknown.
        """
        found: Self = _read(cls, data)
        return found


def begin_section(distributions: Sequence[str]) -> Callable[[], dict[str, Any]]:
    """Look at the machine before it is given work; at the end, the result gives a section's fields.

    Args:
        distributions: Whose versions are noted.
    """
    began, machine = time.monotonic(), describe_machine(distributions)
    return lambda: {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "seconds": round(time.monotonic() - began, 1),
        "machine": machine,
    }


def _read(hint: Any, data: Any) -> Any:
    """Data in the types that a field declares, where JSON has fewer."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is tuple:
        return tuple(data)
    if kind is Sequence:
        return [_read(parts[0], item) for item in data]
    if kind is Mapping:
        return {key: _read(parts[1], value) for key, value in data.items()}
    if not is_dataclass(hint):
        return data
    assert isinstance(hint, type)
    expected = {field.name for field in fields(hint)}
    # What a run before did not measure yet has a default.
    needed = {
        field.name
        for field in fields(hint)
        if field.default is MISSING and field.default_factory is MISSING
    }
    if not needed <= set(data) <= expected:
        raise ValueError(
            f"{hint.__name__} has the fields {', '.join(sorted(expected))}; missing: "
            f"{', '.join(sorted(needed - set(data))) or 'none'}, unknown: "
            f"{', '.join(sorted(set(data) - expected)) or 'none'}"
        )
    hints = get_type_hints(hint)
    return hint(**{name: _read(hints[name], value) for name, value in data.items()})


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
