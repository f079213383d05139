"""What an export costs: `python -m bench.export`.

Each row is exported in a process of its own, on one thread, with random weights: processor time,
wall time and the most memory of every step. Then how both grow with the number of layers, and how
the proof of a file grows with its nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import resident
from bench.client import ROOT, WorkerError
from bench.command import one_line_errors
from bench.markdown import caution, facts, marked, table
from bench.readme import publish
from bench.results import Section, begin_section
from causal_onnx.cli.timings import StepTimes

__all__ = [
    "ROWS",
    "SMALL",
    "CostSection",
    "ExportRow",
    "ProofRow",
    "Subject",
    "main",
    "measure",
    "to_markdown",
]

PAGE = ROOT / "bench"
WORK = ROOT / "build" / "bench-export"
SECTION = "export"
DISTRIBUTIONS = ("torch", "onnx", "onnxscript", "onnxruntime", "transformers")
MB = 1e6
MAX_DRIFT = 10.0
"""Random weights in 4 bits may drift as far as they like."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A model of random weights, and what is asked of its export."""

    name: str
    config: tuple[str, Mapping[str, Any]]
    """Class of the configuration in transformers, and its arguments."""
    precision: str = "fp32"
    processor_s: float | None = None
    """What must be reached; None: nothing is asked."""
    times_weights: float | None = None
    peak_mb: float | None = None
    is_tiny: bool = False
    """The time counts from the start of the process, since imports are most of it."""


def _llama(layers: int, width: int, **others: Any) -> tuple[str, Mapping[str, Any]]:
    given = {"vocab_size": 128, "intermediate_size": 2 * width, "num_attention_heads": 4}
    given |= {"num_key_value_heads": 2, "max_position_embeddings": 128}
    given |= {"num_hidden_layers": layers, "hidden_size": width, **others}
    return "LlamaConfig", given


def _gpt2(layers: int, width: int, **others: Any) -> tuple[str, Mapping[str, Any]]:
    given = {"n_layer": layers, "n_embd": width, "n_head": width // 16, "vocab_size": 128}
    given |= {"n_positions": 128, "bos_token_id": 0, "eos_token_id": 0, **others}
    return "GPT2Config", given


SMALL = Subject(
    name="Llama-shaped 58M, fp32",
    config=_llama(
        14,
        512,
        vocab_size=16384,
        intermediate_size=1408,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=1024,
    ),
    times_weights=4.0,
)
ROWS = (
    Subject(name="GPT-2, 2 layers", config=_gpt2(2, 64), processor_s=8, is_tiny=True),
    Subject(name="Llama, 2 layers", config=_llama(2, 64), processor_s=8, is_tiny=True),
    Subject(
        name="Qwen3, 2 layers",
        config=("Qwen3Config", _llama(2, 64, head_dim=16)[1]),
        processor_s=8,
        is_tiny=True,
    ),
    SMALL,
    Subject(
        name="GPT-2 124M, fp32",
        config=_gpt2(12, 768, n_head=12, vocab_size=50257, n_positions=1024),
        processor_s=60,
        times_weights=3.0,
    ),
    Subject(
        name="Llama-shaped 361M, int4",
        config=_llama(
            32,
            960,
            vocab_size=49152,
            intermediate_size=2560,
            num_attention_heads=15,
            num_key_value_heads=5,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        ),
        precision="int4",
        processor_s=150,
        times_weights=3.0,
    ),
    Subject(
        name="TinyLlama's shape 1.1B, int4",
        config=_llama(
            22,
            2048,
            vocab_size=32000,
            intermediate_size=5632,
            num_attention_heads=32,
            num_key_value_heads=4,
            max_position_embeddings=2048,
        ),
        precision="int4",
        peak_mb=16_000,
    ),
)
QUICK = (ROWS[1], SMALL)
LAYERS = (8, 16, 32, 64)
PROOF_LAYERS = (30, 60, 120)
QUICK_LAYERS = (2, 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRow:
    """What one export took, all in its own process."""

    name: str
    processor_s: float
    wall_s: float
    weights_bytes: int
    """Of the module, in fp32."""
    peak_bytes: int
    """Above the libraries: the module, and all that the export added."""
    file_bytes: int
    steps: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ProofRow:
    """What `attest` of a file of so many layers took."""

    layers: int
    nodes: int
    processor_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class CostSection(Section):
    """All that a run found."""

    rows: Sequence[ExportRow]
    layers: Mapping[str, ExportRow]
    """By the number of layers, width 64."""
    proofs: Sequence[ProofRow]


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run and write; 0 done, 1 an export failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    if not resident.is_supported():
        raise RuntimeError("the peak of memory can be read on Linux alone: run the bench there")
    if arguments.child is not None:
        print(json.dumps(_in_child(json.loads(arguments.child))))
        return 0
    chosen: tuple[Subject, ...] = QUICK if arguments.quick else ROWS
    if arguments.only:
        chosen = tuple(s for s in ROWS if any(text in s.name for text in arguments.only))
    is_whole = not arguments.quick and not arguments.only
    few = arguments.quick
    finish = begin_section(DISTRIBUTIONS)
    rows = [measure(subject) for subject in chosen]
    layers, proofs = {}, []
    if is_whole or few:
        for count in QUICK_LAYERS if few else LAYERS:
            shape = Subject(name=f"{count} layers", config=_llama(count, 64))
            layers[str(count)] = measure(shape)
        proofs = [_proved(count) for count in (QUICK_LAYERS if few else PROOF_LAYERS)]
    section = CostSection(rows=rows, layers=layers, proofs=proofs, **finish())
    publish(SECTION, section, to_markdown(section), WORK, page=PAGE if is_whole else None)
    return 0


def to_markdown(section: CostSection) -> str:
    """The tables."""
    asked = {subject.name: subject for subject in ROWS}
    lines = [
        "With `cache=True`, one thread, random weights. Memory is that of the process above its",
        "libraries, the module included; in brackets what must be reached.",
        "",
        *table(
            ("model", "processor time, s", "wall, s", "peak memory, MB", "times its weights"),
            (
                _cells(row, asked.get(row.name, Subject(name="", config=("", {}))))
                for row in section.rows
            ),
            left=1,
        ),
        "",
    ]
    for row in section.rows:
        steps = (f"{s['step']} {s['processor_s']:.1f}" for s in row.steps if s["step"] != "done")
        lines.append(f"- {row.name}: {', '.join(steps)}.")
    if section.layers:
        lines += ["", "How it grows with the layers (Llama, width 64):", ""]
        lines += table(
            ("layers", "processor time, s", "a layer, s", "peak memory, MB"),
            (
                (
                    count,
                    f"{row.processor_s:.1f}",
                    f"{row.processor_s / int(count):.2f}",
                    f"{row.peak_bytes / MB:.0f}",
                )
                for count, row in sorted(section.layers.items(), key=lambda item: int(item[0]))
            ),
        )
    if section.proofs:
        lines += ["", "`attest` of the files, without running them:", ""]
        lines += table(
            ("layers", "nodes", "processor time, s", "a thousand nodes, s"),
            (
                (
                    str(row.layers),
                    str(row.nodes),
                    f"{row.processor_s:.1f}",
                    f"{row.processor_s / row.nodes * 1000:.2f}",
                )
                for row in section.proofs
            ),
        )
    lines += ["", facts(section)]
    busy = caution(section.machine)
    return "\n".join([*lines, *(["", busy] if busy else [])])


def _cells(row: ExportRow, asked: Subject) -> list[str]:
    times = row.peak_bytes / row.weights_bytes
    return [
        row.name,
        _against(row.processor_s, asked.processor_s, "{:.1f}"),
        f"{row.wall_s:.0f}",
        _against(row.peak_bytes / MB, asked.peak_mb, "{:.0f}"),
        "-" if asked.is_tiny else _against(times, asked.times_weights, "{:.1f}"),
    ]


def _against(found: float, asked: float | None, form: str) -> str:
    text = form.format(found)
    return text if asked is None else marked(f"{text} ({asked:g})", found > asked)


def measure(subject: Subject) -> ExportRow:
    """Export in a process of its own.

    Raises:
        WorkerError: The export failed.
    """
    print(f"{subject.name} ...", file=sys.stderr, flush=True)
    spec = {"config": subject.config, "precision": subject.precision, "tiny": subject.is_tiny}
    return ExportRow(name=subject.name, **_child(spec))


def _proved(layers: int) -> ProofRow:
    print(f"attest of {layers} layers ...", file=sys.stderr, flush=True)
    return ProofRow(layers=layers, **_child({"config": _llama(layers, 64), "attest": True}))


def _child(spec: Mapping[str, Any]) -> dict[str, Any]:
    WORK.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "bench.export", "--child", json.dumps(spec)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise WorkerError(f"the export of {spec['config']} ended with {done.returncode}: {said}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _in_child(spec: Mapping[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        path = Path(folder) / "model.onnx"
        if spec.get("attest"):
            return _attested(spec, path)
        return _exported(spec, path)


def _exported(spec: Mapping[str, Any], path: Path) -> dict[str, Any]:
    is_tiny = spec["tiny"]
    if not is_tiny:  # the libraries are not to be counted
        _export(_made(_llama(1, 64)), path)
        resident.trim()
    base = resident.current_bytes()
    module = _made(spec["config"])
    weights = sum(value.numel() * 4 for value in module.parameters())
    tell = StepTimes()
    _export(module, path, precision=spec["precision"], progress=tell)
    steps = [step.to_dict() for step in tell.finish()]
    processor = sum(step["processor_s"] for step in steps)
    wall = sum(step["wall_s"] for step in steps)
    return {
        "processor_s": time.process_time() if is_tiny else processor,
        "wall_s": wall,
        "weights_bytes": weights,
        "peak_bytes": max(step["peak_bytes"] for step in steps) - base,
        "file_bytes": path.stat().st_size,
        "steps": steps,
    }


def _attested(spec: Mapping[str, Any], path: Path) -> dict[str, Any]:
    from causal_onnx.export import attest  # noqa: PLC0415 - the parent does not import PyTorch

    _export(_made(spec["config"]), path)
    began = time.process_time()
    found = attest(path, dynamic=False)
    if found.verdict != "causal":
        raise RuntimeError(f"attest said {found.verdict}: {found.reason}")
    return {"nodes": found.nodes, "processor_s": time.process_time() - began}


def _made(config: Sequence[Any]) -> Any:
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    torch.manual_seed(0)
    kind, given = config
    make: Any = transformers.AutoModelForCausalLM.from_config
    return make(getattr(transformers, kind)(**given))


def _export(
    module: Any,
    path: Path,
    *,
    precision: str = "fp32",
    progress: Callable[[str, float], None] | None = None,
) -> None:
    from causal_onnx.export import export  # noqa: PLC0415

    drift = None if precision == "fp32" else MAX_DRIFT
    export(module, path, cache=True, precision=precision, max_drift=drift, progress=progress)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.export",
        description="Measure what exports cost, each in a process of its own. A whole run writes "
        "bench/README.md and bench/results.json; one with options writes to build/bench-export.",
    )
    parser.add_argument("--quick", action="store_true", help="two models, few layers: 3 minutes")
    parser.add_argument("--only", nargs="+", metavar="TEXT", help="rows whose name holds this")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
