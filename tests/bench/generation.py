"""A small section of generation results, made up, for the tests of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from bench.figures import Figure, figures
from bench.generation.cases import BATCH, TINY
from bench.generation.overhead import OVERHEAD
from bench.generation.overhead import ROW as STEP
from bench.generation.section import Section
from bench.generation.subjects import subjects_for
from bench.sizes import FULL, ModuleSizes
from tests.bench.sections import MACHINE


def section(found: Sequence[Figure], *, load: float = 0.1) -> Section:
    subjects = subjects_for(("fp32", "int4"))
    return Section(
        date="2026-11-24T20:00+00:00",
        seconds=60.0,
        machine={**MACHINE, "load_before": load},
        device="cpu",
        sizes=asdict(FULL),
        tiny=asdict(TINY),
        module=asdict(ModuleSizes()),
        batch=asdict(BATCH),
        subjects=[one.row for one in subjects],
        graphs={"ours-int4": "11 products of 4 bits"},
        errors={"ours-fp32": 1e-6},
        figures=found,
    )


def work(row: str, seconds: Mapping[str, float], *, threads: int = 1) -> list[Figure]:
    """Every subject at one work of 100 tokens, in two rounds of one set."""
    times = {name: [value, value] for name, value in seconds.items()}
    return figures(row, [times], threads=threads, clock="cpu", amount=100)


def overhead(microseconds: float) -> list[Figure]:
    times = {OVERHEAD: [microseconds * 1e-6]}
    return figures(STEP, [times], threads=1, clock="cpu", amount=1e6, unit="us")
