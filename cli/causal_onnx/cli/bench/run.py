"""Time a model by length and by past, and relate it to what its machine can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from causal_onnx.cli.bench.memory import Memory, measure_memory
from causal_onnx.cli.bench.rates import Rates, measure_rates
from causal_onnx.cli.errors import CommandError
from causal_onnx.cli.machine import Machine, this_machine
from causal_onnx.cli.timing import default_lengths, too_long
from causal_onnx.runtime import Model, load
from causal_onnx.runtime.profile import Profile, profile_all
from causal_onnx.runtime.profile.clock import CallTimes, time_calls
from causal_onnx.runtime.profile.workload import Workload
from causal_onnx.runtime.request.example import check_sizes

__all__ = ["BenchCase", "BenchResult", "measure"]

Tell = Callable[[str, float], None]

MOST_PROFILED = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchCase:
    """Calls of one size."""

    kind: str
    """"call" of a model without a cache; "prefill" and "decode" of one with."""
    times: CallTimes
    profile: Profile
    memory: Memory | None

    @property
    def positions_per_s(self) -> float:
        """New positions of all rows together."""
        return self.profile.batch * self.profile.seq / self.times.wall_ms * 1e3

    @property
    def read_bytes(self) -> int:
        """Weights and cache."""
        return self.profile.weight_bytes + self.profile.cache_bytes

    @property
    def rate_clock(self) -> str:
        """What the rates are by: "cpu" with one thread, which other work disturbs less."""
        return "cpu" if self.profile.threads == 1 and self.profile.device == "cpu" else "wall"

    @property
    def bytes_per_s(self) -> float:
        return self.read_bytes / self._rate_ms * 1e3

    @property
    def flops_per_s(self) -> float:
        return self.profile.flops / self._rate_ms * 1e3

    @property
    def _rate_ms(self) -> float:
        return self.times.cpu_ms if self.rate_clock == "cpu" else self.times.wall_ms

    def to_dict(self, rates: Rates | None) -> dict[str, Any]:
        """Plain data; parts of what the machine can do are None where that was not measured."""
        found = self.profile
        return {
            "kind": self.kind,
            "batch": found.batch,
            "seq": found.seq,
            "past": found.past,
            **asdict(self.times),
            "positions_per_s": self.positions_per_s,
            "flops": found.flops,
            "weight_bytes": found.weight_bytes,
            "cache_bytes": found.cache_bytes,
            "rate_clock": self.rate_clock,
            "flops_per_s": self.flops_per_s,
            "bytes_per_s": self.bytes_per_s,
            "part_of_flops": None if rates is None else self.flops_per_s / rates.flops_per_s,
            "part_of_bandwidth": None if rates is None else self.bytes_per_s / rates.bytes_per_s,
            "memory": None if self.memory is None else asdict(self.memory),
            "operators": [asdict(group) for group in found.by_operator()],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchResult:
    """All that was measured."""

    path: str
    device: str
    threads: int
    machine: Machine
    rates: Rates | None
    """None: not on the CPU."""
    cases: tuple[BenchCase, ...]
    left_out: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {
            "path": self.path,
            "device": self.device,
            "threads": self.threads,
            "machine": asdict(self.machine),
            "rates": None if self.rates is None else asdict(self.rates),
            "cases": [case.to_dict(self.rates) for case in self.cases],
            "left_out": list(self.left_out),
        }


def measure(
    path: Path,
    *,
    device: str,
    threads: int | None,
    trusted: bool,
    batch: int,
    lengths: Sequence[int] | None,
    tell: Tell,
) -> BenchResult:
    """Measure time, memory, work, and the machine.

    Args:
        path: The .onnx file; it needs a contract.
        device: As for `load`.
        threads: As for `load`.
        trusted: As for `load`.
        batch: Sequences of each call.
        lengths: Of a call, or of the prefill and of the past of a step; None: `default_lengths`.
        tell: Called with (step, fraction done).

    Raises:
        ArtifactError: Damaged, foreign, or without a contract.
        DeviceError: The device cannot be used.
        ValueError: A length or `batch` is not one that the contract allows.
        RunError: onnxruntime failed.
        CommandError: The process that measures memory failed.
    """
    machine = this_machine(threads)
    tell("load", 0.0)
    model = load(path, device=device, threads=threads, trusted=trusted)
    contract = model.contract
    chosen = sorted(set(default_lengths(contract) if lengths is None else lengths))
    for seq in chosen:
        check_sizes(contract, batch=batch, seq=seq, past=0)
    tell("machine", 0.0)
    before = measure_rates(model.runner.threads) if model.device == "cpu" else None
    timed, left_out = _times(model, batch, chosen, asked=lengths is not None, tell=tell)
    tell("machine", 0.0)
    # Other work on the machine may have held up one of the two.
    rates = None if before is None else before.best_with(measure_rates(model.runner.threads))
    memories: list[Memory | None] = []
    for index, (kind, (_, seq, _), _) in enumerate(timed):
        tell("memory", index / len(timed))
        memories.append(
            None
            if kind == "decode"
            else measure_memory(
                path, device=device, threads=threads, trusted=trusted, batch=batch, seq=seq
            )
        )
    profiles = profile_all(
        model.runner,
        [(sizes, times) for _, sizes, times in timed],
        most_calls=MOST_PROFILED,
        tell=tell,
    )
    return BenchResult(
        path=str(path),
        device=model.device,
        threads=model.runner.threads,
        machine=machine,
        rates=rates,
        cases=tuple(
            BenchCase(kind=kind, times=times, profile=found, memory=memory)
            for (kind, _, times), found, memory in zip(timed, profiles, memories, strict=True)
        ),
        left_out=tuple(left_out),
    )


Timed = tuple[str, tuple[int, int, int], CallTimes]
"""Kind, (batch, seq, past), times."""


def _times(
    model: Model, batch: int, lengths: Sequence[int], *, asked: bool, tell: Tell
) -> tuple[list[Timed], list[str]]:
    contract = model.contract
    timed: list[Timed] = []
    left_out: list[str] = []
    kind = "prefill" if contract.cache else "call"
    for index, seq in enumerate(lengths):
        tell(f"{kind} {seq}", index / len(lengths) / 2)
        if timed and not asked:
            _, (_, seq_before, _), before = timed[-1]
            if reason := too_long(seq, seq_before, before.wall_ms):
                left_out.append(f"length {seq}: {reason}; ask by --lengths")
                continue
        work = Workload(model.runner, batch=batch, seq=seq)
        timed.append((kind, (batch, seq, 0), time_calls(work)))
    if not timed:
        raise CommandError("no length was left to measure")
    if not contract.cache:
        return timed, left_out
    longest = contract.max_seq_len
    # A step needs room for one position more than its past.
    pasts = sorted({min(seq, (longest or seq + 1) - 1) for _, (_, seq, _), _ in timed})
    for index, past in enumerate(pasts):
        tell(f"decode {past}", 0.5 + index / len(pasts) / 2)
        work = Workload(model.runner, batch=batch, seq=1, past=past)
        timed.append(("decode", (batch, 1, past), time_calls(work)))
    return timed, left_out
