"""What a step costs by its position, in time and in state: `python -m bench.positions`.

Models of transformers with random weights, one for each kind of state, are exported with
`cache=True`. A stream of each reads tokens up to a position; steps of one token are timed there, in
turns with the other positions, and its state is what `Stream.save` writes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from bench.client import ROOT
from bench.command import one_line_errors
from bench.markdown import caution, facts, marked, table
from bench.readme import publish
from bench.results import Section, begin_section
from bench.rounds import rotated
from causal_onnx.export import export
from causal_onnx.runtime import load

__all__ = ["MODELS", "PositionRow", "PositionSection", "main", "measure", "to_markdown"]

PAGE = ROOT / "bench"
WORK = ROOT / "build" / "bench-positions"
SECTION = "positions"
DISTRIBUTIONS = ("onnxruntime", "numpy", "transformers")
POSITIONS = (20, 200, 2000)
CHUNK = 100
STEPS = 20
"""Timed at a position, one after another."""
NOISE = 1.25
"""Of a step at the first position, what one at the last may take without being called dearer."""

WIDTH, LAYERS, HEADS, VOCAB, LONGEST = 256, 4, 4, 512, 4096
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": LONGEST,
}
_HEADS = {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": WIDTH // HEADS}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama: keys and values": ("llama", {**_COMMON, **_HEADS, "intermediate_size": 3 * WIDTH}),
    "Mistral: a window of 64": (
        "mistral",
        {**_COMMON, **_HEADS, "intermediate_size": 3 * WIDTH, "sliding_window": 64},
    ),
    "LFM2: three convolutions, one attention": (
        "lfm2",
        {
            **_COMMON,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "intermediate_size": 3 * WIDTH,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
        },
    ),
    "Mamba: convolutions and recurrences": (
        "mamba",
        {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 8},
    ),
    "RWKV: recurrences": (
        "rwkv",
        {
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "context_length": LONGEST,
        },
    ),
}
"""What is told -> the model type of transformers and its configuration."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionRow:
    """One model."""

    model: str
    is_fixed: bool
    """Whether no part of its state grows with the position."""
    step_ms: Mapping[str, float]
    """Position -> processor time of a step there."""
    state_bytes: Mapping[str, int]
    """Position -> its state there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionSection(Section):
    """All that a run found."""

    rows: Sequence[PositionRow]
    rounds: int


def measure(
    name: str, path: Path, *, positions: Sequence[int] = POSITIONS, rounds: int
) -> PositionRow:
    """Read up to each position, and time steps there.

    Args:
        name: Of the model.
        path: Its file: a language model with a cache.
        positions: In rising order.
        rounds: How often each position has its turn.
    """
    model = load(path, threads=1, trusted=True)
    (ids,) = (spec for spec in model.contract.inputs if spec.vocab_size is not None)
    assert ids.vocab_size is not None
    text = np.random.default_rng(0).integers(0, ids.vocab_size, (1, positions[-1] + STEPS + 1))
    stream = model.stream(capacity=text.shape[1])
    held = {}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for position in positions:
            while stream.lengths[0] < position:
                begin = stream.lengths[0]
                stream(text[:, begin : min(begin + CHUNK, position)])
            file = Path(folder) / f"{position}.npz"
            stream.save(file)
            sizes[str(position)] = file.stat().st_size
            held[str(position)] = stream.fork()
    times: dict[str, list[float]] = {position: [] for position in held}
    for number in range(rounds + 1):
        for place in rotated(list(held), number):
            twin = held[place].fork()
            twin(text[:, :1])
            begun = time.process_time()
            for _ in range(STEPS):
                twin(text[:, :1])
            if number:  # the first round warms up
                times[place].append((time.process_time() - begun) / STEPS * 1000)
    return PositionRow(
        model=name,
        is_fixed=all(pair.bounded for pair in model.contract.cache),
        step_ms={place: median(found) for place, found in times.items()},
        state_bytes=sizes,
    )


def to_markdown(section: PositionSection) -> str:
    """The table."""
    first, *_, last = section.rows[0].step_ms
    heads = [f"step at {position}, ms" for position in section.rows[0].step_ms]
    heads += [f"state at {position}, kB" for position in (first, last)]
    cells = [
        [
            row.model,
            "fixed" if row.is_fixed else "grows",
            *(
                marked(f"{ms:.2f}", row.is_fixed and ms > NOISE * row.step_ms[first])
                for ms in row.step_ms.values()
            ),
            f"{row.state_bytes[first] / 1000:.0f}",
            f"{row.state_bytes[last] / 1000:.0f}",
        ]
        for row in section.rows
    ]
    lines = [
        f"One sequence, one thread, processor time, medians of {section.rounds} turns of {STEPS}",
        "steps; models of 2 to 4 layers and width 256 with random weights. The state is as",
        "`Stream.save` writes it. In bold: a step of fixed state that takes more than",
        f"{NOISE} times as long as at position {first}.",
        "",
        *table(("model", "state", *heads), cells, left=2),
        "",
        facts(section),
    ]
    busy = caution(section.machine)
    return "\n".join([*lines, *(["", busy] if busy else [])])


def build(model_type: str, options: Mapping[str, Any]) -> nn.Module:
    """A decoder of transformers with random weights, the same ones each time."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **options)
    module: nn.Module = AutoModelForCausalLM.from_config(config).eval()  # type: ignore[no-untyped-call]
    return module


def make(name: str) -> Path:
    """The exported file of a model."""
    model_type, options = MODELS[name]
    path = WORK / f"{model_type}.onnx"
    WORK.mkdir(parents=True, exist_ok=True)
    export(build(model_type, options), path, cache=True, max_seq_len=LONGEST)
    return path


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run and write; 0 done, 1 an export failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.positions", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--only", nargs="+", choices=list(MODELS), help="these models")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (default: 9)")
    arguments = parser.parse_args(argv)
    finish = begin_section(DISTRIBUTIONS)
    rows = []
    for name in arguments.only or MODELS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows.append(measure(name, make(name), rounds=arguments.rounds))
    section = PositionSection(rows=rows, rounds=arguments.rounds, **finish())
    page = None if arguments.only else PAGE
    publish(SECTION, section, to_markdown(section), WORK, page=page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
