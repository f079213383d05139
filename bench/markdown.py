"""What the pages of all sections say alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.results import Section
from bench.rounds import Clock

__all__ = [
    "caution",
    "clock_text",
    "facts",
    "marked",
    "table",
    "threads_text",
    "versions_text",
]

BUSY = 0.25
"""Load per core, before the run, from which on threads have to wait for each other."""


def facts(section: Section, *, device: str | None = None) -> str:
    """When and on what the section was measured.

    Args:
        section: Any.
        device: Named, in place of the machine's memory.
    """
    machine = section.machine
    memory, load = machine["memory_bytes"], machine["load_before"]
    found = [
        f"{machine['cpu']} ({', '.join(machine['features']) or 'no vector features known'})",
        f"{machine['cores']} cores",
        f"{memory / 2**30:.0f} GiB" if memory and device is None else "",
        machine["system"],
        "" if load is None else f"load {load} when it began",
        "" if device is None else f"on {device}",
    ]
    return (
        f"Measured {section.date}, {section.seconds / 60:.0f} minutes, at revision "
        f"{machine['revision'] or 'unknown'}.\n"
        f"Machine: {'; '.join(fact for fact in found if fact)}.\n"
        f"Python {machine['python']}, {versions_text(machine)}."
    )


def versions_text(machine: Mapping[str, Any]) -> str:
    """Names and versions of the libraries."""
    return ", ".join(f"{name} {version}" for name, version in machine["versions"].items())


def caution(machine: Mapping[str, Any]) -> str:
    """What a busy machine makes figures worth; empty where it was not."""
    load = machine["load_before"]
    if load is None or load <= BUSY * machine["cores"]:
        return ""
    return (
        f"**The machine was busy with other work (load {load}): the times with several threads "
        "mean little.**"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 0) -> list[str]:
    """The lines of a table.

    Args:
        heads: Of the columns.
        rows: The cells of each line.
        left: How many columns, from the left, are text; the others are numbers.
    """
    first, *rest = (f"| {' | '.join(cells)} |" for cells in (heads, *rows))
    return [first, f"|{'--|' * left}{'--:|' * (len(heads) - left)}", *rest]


def marked(text: str, is_loss: bool) -> str:
    """In bold where it is a loss."""
    return f"**{text}**" if is_loss else text


def threads_text(threads: int) -> str:
    """A number of threads in words."""
    return {1: "one thread", 2: "two threads"}.get(threads, f"{threads} threads")


def clock_text(clock: Clock) -> str:
    """What the times are of."""
    return "processor time" if clock == "cpu" else "wall time"
