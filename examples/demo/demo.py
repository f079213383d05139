"""The demo from top to bottom: a checkpoint's folder to text, export, train, stream, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from causal_onnx.models import DecoderConfig
from examples.demo.attention import draw_maps
from examples.demo.checkpoint import save_decoder
from examples.demo.choose_threads import choose_threads
from examples.demo.corpus import Corpus, load_corpus
from examples.demo.findings import Findings
from examples.demo.modules import (
    Exported,
    attention_modules,
    export_with_progress,
    proof_line,
    time_exported,
)
from examples.demo.player import Run
from examples.demo.processes import Request, stream_quietly, stream_to_terminal
from examples.demo.report import write_report
from examples.demo.road import CHECKPOINT, ROOT, Road, continue_text, make_folder
from examples.demo.screen import Screen
from examples.demo.train import Training, decoder_config, train

__all__ = ["Settings", "run_demo"]

STORY, STORY_TOKENS = "Once upon a time", 220
"""What the checkpoint of stories continues, and by how many characters."""

PASSAGE_LENGTH = 64
"""Bytes of the passage whose attention maps are drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the demo does, and how much of it."""

    folder: Path
    """Everything is written here."""
    context_length: int = 1024
    """Of the two attention modules."""
    prompt: str = "A function is "
    train_steps: int = 1000
    decoder: DecoderConfig = field(default_factory=decoder_config)
    max_bytes: int = 700
    """Length of the streamed text."""
    temperature: float = 0.5
    seed: int = 0
    lengths: Sequence[int] = (16, 64, 256, 1024)
    """At which the modules are timed, as far as each can."""
    threads: int | None = None
    """Of PyTorch and onnxruntime alike; None: see `choose_threads`. Training takes one."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("prompt must hold at least one character")
        if self.train_steps < 1:
            raise ValueError(f"train_steps must be at least 1, got {self.train_steps}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {self.max_bytes}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")


def run_demo(settings: Settings, screen: Screen) -> Findings:
    """Run all parts, print what they find, and write the report to `settings.folder`."""
    threads = choose_threads() if settings.threads is None else settings.threads
    torch.set_num_threads(threads)
    settings.folder.mkdir(parents=True, exist_ok=True)
    corpus = load_corpus()

    road = _take_road(settings, screen)
    modules = _export_modules(settings, screen, threads)
    training = _train(corpus, settings, screen)
    decoder = _export_decoder(training, settings, screen, threads)
    without_torch, with_torch = _stream(settings, screen, threads)

    screen.section("Report")
    with screen.step("draw attention maps and write the report") as update:
        maps = draw_maps(training.model, corpus.held_out, length=PASSAGE_LENGTH)
        update(0.5, "")
        findings = Findings(
            modules=modules,
            decoder=decoder,
            training=training,
            maps=maps,
            prompt=settings.prompt,
            without_torch=without_torch,
            with_torch=with_torch,
            road=road,
            threads=threads,
        )
        path = write_report(findings, settings.folder / "report.html")
    screen.fact("maps", maps.checks.summary(), passed=maps.checks.passed)
    screen.fact("report", str(path))
    _summarise(findings, screen)
    return findings


def _take_road(settings: Settings, screen: Screen) -> Road:
    screen.section("A trained checkpoint, from its folder to text")
    folder = settings.folder / "stories"
    screen.line(f"  $ causal-onnx export {CHECKPOINT.relative_to(ROOT)} -o {folder}", style="bold")
    with screen.step("export, prove, and write the folder") as update:
        report, verified = make_folder(folder, update)
    contract = report.contract
    screen.fact("folder", f"{folder}  {', '.join(_top_level(verified.files))}")
    screen.fact(
        "context", f"{contract.max_seq_len} positions, of {report.trained_len} it was trained on"
    )
    screen.fact("ends at", f"id {', '.join(map(str, contract.eos_token_ids))}")
    screen.fact("proof", proof_line(report.certificate), passed=report.certificate.is_causal)
    screen.fact("verified", f"{len(verified.files)} files", passed=verified.passed)
    arguments = f'--prompt "{STORY}" --max-new-tokens {STORY_TOKENS}'
    screen.line(f"  $ causal-onnx generate {folder} {arguments}", style="bold")
    with screen.step("generate in a process that cannot import PyTorch"):
        text = continue_text(folder, STORY, count=STORY_TOKENS)
    screen.block(STORY + text, indent=4)
    return Road(report=report, verified=verified, text=text)


def _top_level(files: Sequence[str]) -> list[str]:
    return sorted({name.partition("/")[0] for name in files if not name.startswith("test_data")})


def _export_modules(settings: Settings, screen: Screen, threads: int) -> list[Exported]:
    exported = []
    for name, (module, summary) in attention_modules(
        context_length=settings.context_length
    ).items():
        screen.section(f"{name}: {summary}")
        path = settings.folder / f"{name}.onnx"
        exported.append(
            _export(name, module, summary, path, settings=settings, screen=screen, threads=threads)
        )
    return exported


def _train(corpus: Corpus, settings: Settings, screen: Screen) -> Training:
    screen.section("A byte-level decoder, trained on the text behind Python's help()")
    screen.fact(
        "text",
        f"{len(corpus.train) / 1e3:.0f} kB to learn from, "
        f"{len(corpus.held_out) / 1e3:.0f} kB held out, no paragraph twice",
    )
    with screen.step(f"train for {_steps(settings.train_steps)}") as update:
        training = train(
            corpus,
            settings.decoder,
            steps=settings.train_steps,
            seed=settings.seed,
            update=update,
        )
    screen.fact(
        "model",
        f"{training.parameters / 1e3:.0f} thousand parameters; {_steps(training.steps)}, "
        f"{training.bytes_read / 1e3:.0f} kB read",
    )
    screen.fact("loss", "bits per byte; held out: a sample of the held-out text")
    screen.line("      step    train  held out")
    for point in training.curve:
        screen.line(f"  {point.step:>8}  {point.train:>7.2f}  {point.held_out:>8.2f}")
    screen.fact("held out", f"{training.held_out:.2f} bits per byte over all of it")
    return training


def _export_decoder(
    training: Training, settings: Settings, screen: Screen, threads: int
) -> Exported:
    screen.section("The trained decoder, exported")
    save_decoder(training.model, settings.folder / "decoder.pt")
    config = training.model.config
    summary = (
        f"{config.num_layers} layers of {config.attention.num_heads} heads, "
        f"{config.embed_dim} features, up to {config.max_seq_len} positions"
    )
    path = settings.folder / "decoder.onnx"
    return _export(
        "DecoderLM",
        training.model,
        summary,
        path,
        settings=settings,
        screen=screen,
        threads=threads,
    )


def _export(
    name: str,
    module: torch.nn.Module,
    summary: str,
    path: Path,
    *,
    settings: Settings,
    screen: Screen,
    threads: int,
) -> Exported:
    with screen.step("export and prove") as update:
        report = export_with_progress(module, path, update)
    limit = report.contract.max_seq_len
    lengths = [n for n in settings.lengths if limit is None or n <= limit]
    with screen.step("time beside PyTorch") as update:
        timings = time_exported(module, path, lengths=lengths, threads=threads, update=update)
    screen.fact("file", f"{path}  {report.size_bytes / 1e6:.2f} MB, {report.nodes} nodes")
    certificate = report.certificate
    screen.fact("proof", proof_line(certificate), passed=certificate.is_causal)
    for text, count in certificate.core_lines():
        screen.fact("attention", f"{text} x {count}" if count > 1 else text)
    screen.fact("tried", report.causality.summary(), passed=report.causality.is_causal)
    screen.fact(
        "parity",
        f"largest error {report.parity.max_error:.1e} of the output's scale, allowed "
        f"{report.parity.tolerance:.0e}",
        passed=report.parity.passed,
    )
    screen.block(report.parity.to_table(), indent=4)
    screen.fact("speed", f"median of one call, {_threads(threads)} each")
    screen.line("       seq          file       PyTorch   file / PyTorch")
    for timing in timings:
        screen.line(
            f"    {timing.seq:>6}  {timing.onnx_ms:>9.3f} ms  {timing.torch_ms:>9.3f} ms"
            f"   {timing.ratio:>14.2f}"
        )
    return Exported(name=name, summary=summary, report=report, timings=timings, threads=threads)


def _stream(settings: Settings, screen: Screen, threads: int) -> tuple[Run, Run]:
    screen.section("The decoder, streaming from a process that cannot import PyTorch")
    request = Request(
        prompt=settings.prompt,
        max_bytes=settings.max_bytes,
        temperature=settings.temperature,
        seed=settings.seed,
        threads=threads,
    )
    screen.write(settings.prompt, style="bold")
    without = stream_to_terminal(settings.folder / "decoder.onnx", request)
    screen.line()
    screen.line()
    screen.fact("imported", ", ".join(without.packages))
    for package, error in without.refused.items():
        screen.fact("refused", f"import {package}: {error}")
    with screen.step("the same in a process with PyTorch") as update:
        beside = stream_quietly(settings.folder / "decoder.pt", request, progress=update)
    screen.line("                     without PyTorch   with PyTorch")
    rows = (
        ("tokens/s", f"{without.tokens_per_s:.0f}", f"{beside.tokens_per_s:.0f}"),
        ("first token after", f"{without.startup_s:.2f} s", f"{beside.startup_s:.2f} s"),
        ("peak memory", _megabytes(without), _megabytes(beside)),
    )
    for label, ours, theirs in rows:
        screen.line(f"  {label:<17}  {ours:>15}  {theirs:>13}")
    same = without.text == beside.text
    screen.fact(
        "texts",
        f"{'the same, byte for byte' if same else 'DIFFERENT'} "
        f"({without.tokens} and {beside.tokens} bytes)",
        passed=same,
    )
    return without, beside


def _summarise(findings: Findings, screen: Screen) -> None:
    """Print five lines that hold what matters."""
    screen.section("Summary")
    exported = [*findings.modules, findings.decoder]
    worst = max(item.report.parity.max_error for item in exported)
    shapes = sum(len(item.report.parity.cases) for item in exported)
    causal = sum(item.is_causal for item in exported)
    ours, theirs = findings.without_torch, findings.with_torch
    difference = findings.first_difference()
    agreement = (
        "the same text" if difference is None else f"texts that differ from character {difference}"
    )
    lines = {
        "exported": f"{causal} of {len(exported)} modules proved causal; largest error {worst:.1e} "
        f"over {shapes} shapes",
        "trained": f"{findings.training.held_out:.2f} bits per byte on held-out text after "
        f"{_steps(findings.training.steps)}",
        "start-up": f"{ours.startup_s:.2f} s to the first token; PyTorch {theirs.startup_s:.2f} s, "
        f"{theirs.startup_s / ours.startup_s:.1f} times as long",
        "memory": f"{_megabytes(ours)} at most; PyTorch {_megabytes(theirs)}, "
        f"{theirs.peak_memory_bytes / ours.peak_memory_bytes:.1f} times as much",
        "speed": f"{ours.tokens_per_s:.0f} tokens/s; PyTorch {theirs.tokens_per_s:.0f}; "
        f"{agreement}",
    }
    for label, text in lines.items():
        screen.fact(label, text)


def _megabytes(run: Run) -> str:
    return f"{run.peak_memory_bytes / 1e6:.0f} MB"


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
