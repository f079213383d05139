"""A small section of results, made up, for the tests of tables and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.attention.section import LeftOut, MemoryRow, Section, TimeRow
from bench.rounds import Clock
from bench.subject import SubjectRow

MACHINE = {
    "cpu": "Some Processor",
    "features": ["avx2", "avx512f"],
    "cores": 2,
    "memory_bytes": 8 << 30,
    "system": "Linux x86_64",
    "load_before": 0.1,
    "python": "3.11.0",
    "versions": {"numpy": "2.0"},
    "revision": "abc1234",
}


def time_row(
    subject: str,
    ratios: Mapping[str, float],
    *,
    seq: int = 16,
    batch: int = 1,
    threads: int = 1,
    wall_s: float = 0.001,
) -> TimeRow:
    clock: Clock = "cpu" if threads == 1 else "wall"
    return TimeRow(
        subject=subject,
        batch=batch,
        seq=seq,
        threads=threads,
        clock=clock,
        rounds=7,
        wall_s=wall_s,
        cpu_s=wall_s,
        quartiles_s=(0.9 * wall_s, wall_s, 1.1 * wall_s),
        ratios={name: (0.98 * value, value, 1.03 * value) for name, value in ratios.items()},
        error=1e-7,
    )


def memory_row(subject: str, extra_mb: float, *, seq: int = 16, batch: int = 1) -> MemoryRow:
    extra = round(extra_mb * 1e6)
    return MemoryRow(
        subject=subject,
        batch=batch,
        seq=seq,
        loaded_bytes=100_000_000,
        peak_bytes=100_000_000 + extra,
        extra_bytes=extra,
    )


def section(
    times: Sequence[TimeRow] = (),
    memory: Sequence[MemoryRow] = (),
    left_out: Sequence[LeftOut] = (),
    machine: Mapping[str, object] = MACHINE,
) -> Section:
    names = ("eager", "compile", "plain20", "ours")
    return Section(
        date="2026-01-01T00:00+00:00",
        seconds=60.0,
        machine=machine,
        sizes={"embed_dim": 768, "num_heads": 12, "seed": 0},
        reference="eager",
        ours="ours",
        baselines=["eager", "plain20"],
        subjects=[SubjectRow(name=name, title=f"the {name}", about="as is") for name in names],
        times=times,
        memory=memory,
        left_out=left_out,
    )
