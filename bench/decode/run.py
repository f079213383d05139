"""Measure the steps: agreement first, then rounds of turns, in several pairs of processes.

Where the system puts the weights of a process in memory makes a single token up to a quarter faster
or slower, for as long as the process lives; so one pair of processes proves little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from bench.agreement import check_agreement
from bench.decode.cases import Step
from bench.decode.section import Section
from bench.decode.subjects import BUILT, OURS, OURS_NAME, REFERENCE, SUBJECTS
from bench.figures import Figure
from bench.interleave import Bench, Outputs
from bench.make import job
from bench.peers import Builder, install_peers
from bench.progress import Progress
from bench.results import begin_section
from bench.rounds import RoundPolicy, clock_of
from bench.sizes import ModelSizes

__all__ = ["Plan", "run"]

TOLERANCE = 1e-5
"""Of the scale of the logits, in float32."""

DISTRIBUTIONS = ("onnxruntime", "torch", "transformers", "onnx", "causal-onnx")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure, and where files lie."""

    sizes: ModelSizes
    steps: Sequence[Step]
    threads: Sequence[int]
    folder: Path
    policy: RoundPolicy = field(default_factory=RoundPolicy)
    processes: int = 5
    """Pairs of fresh processes that each measure everything."""
    keeps_files: bool = False
    """The files of an earlier run are there and are taken."""


def run(plan: Plan) -> Section:
    """Measure all of it.

    Raises:
        DisagreementError: The two graphs compute different things.
        WorkerError: A subject failed.
        RuntimeError: A file could not be made.
    """
    ended = begin_section(DISTRIBUTIONS)
    progress = Progress(1.0, len(plan.steps) * len(plan.threads) * plan.processes)
    if not plan.keeps_files:
        progress.note(f"making the files of the {plan.sizes.name} model")
        make_files(plan.folder, plan.sizes)
    setup = {"folder": str(plan.folder), "sizes": asdict(plan.sizes)}
    errors: dict[str, float] = {}

    def check(step: Step, outputs: Outputs) -> None:
        ours, built = outputs[OURS_NAME], outputs[REFERENCE]
        error = check_agreement(OURS_NAME, ours, built, tolerance=TOLERANCE, where=str(step))
        errors[str(step)] = max(error, errors.get(str(step), 0.0))

    found: list[Figure] = []
    for threads in plan.threads:

        def begin(step: Step, number: int, threads: int = threads) -> None:
            progress.begin(f"{step}, threads: {threads}, processes: {number}")

        bench = Bench(
            folder=plan.folder,
            policy=plan.policy,
            threads=threads,
            clock=clock_of(threads),
            reference=REFERENCE,
        )
        found += bench.measure(
            {one.name: partial(one.start, threads, plan.folder, setup) for one in SUBJECTS},
            plan.steps,
            sets=plan.processes,
            check=check,
            begin=begin,
            amount=lambda step: 1.0,
            unit="s",
        )
    progress.close()
    return Section(
        **ended(), sizes=asdict(plan.sizes), steps=list(plan.steps), figures=found, errors=errors
    )


def make_files(folder: Path, sizes: ModelSizes) -> None:
    """Save the model, export it, and have the builder build it.

    Raises:
        RuntimeError: One of them failed; carries what it said last.
    """
    saved, shape = folder / "model", asdict(sizes)
    install_peers()
    job("model", folder=str(saved), sizes=shape)
    job(
        "artifact",
        model=str(saved),
        path=str(folder / OURS),
        max_seq_len=sizes.max_seq_len,
        precision="fp32",
        target="ort",
    )
    Builder()(saved, (folder / BUILT).parent, "fp32", ())
