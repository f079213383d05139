"""Measure time by length, memory, and how far a file is from what the machine can do.

A file with a cache is measured twice: reading a prompt (prefill), and single steps behind a past
(decode). Memory is that of a fresh process for each length. Inputs are made from the contract.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import UsageError
from causal_onnx.cli.options import (
    add_device_arguments,
    add_model_argument,
    add_trusted_argument,
    parse_lengths,
)

if TYPE_CHECKING:
    from causal_onnx.cli.bench.rates import Rates
    from causal_onnx.cli.bench.run import BenchCase, BenchResult

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx bench model.onnx
  causal-onnx bench model.onnx --lengths 1,128,1024 --threads 1 --plot bench.svg
"""

TOP = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_argument(parser)
    parser.add_argument(
        "--lengths",
        metavar="N,N,...",
        help="lengths of a call, or of a prefill and a step's past (default: 1, 4, 16, ...)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences (default: 1)")
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the times into an .svg file"
    )
    add_device_arguments(parser)
    add_trusted_argument(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Measure, draw and print."""
    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    if args.plot is not None and args.plot.suffix != ".svg":
        raise UsageError(f"--plot takes an .svg file, got {str(args.plot)!r}")
    if args.plot is not None and not args.plot.parent.is_dir():
        raise UsageError(f"there is no folder {args.plot.parent} to write {args.plot.name} to")
    from causal_onnx.cli.bench.run import measure

    with console.progress() as tell:
        result = measure(
            args.model,
            device=args.device,
            threads=args.threads,
            trusted=args.trusted,
            batch=args.batch,
            lengths=lengths,
            tell=tell,
        )
    if args.plot is not None:
        from causal_onnx.cli.arrays import replacing
        from causal_onnx.cli.bench.chart import draw

        with replacing(args.plot) as file:
            file.write(draw(result).encode())
    if args.json:
        console.json(result.to_dict())
    else:
        _print(result, console)
        if args.plot is not None:
            console.print(f"\nwrote {args.plot}")
    return 0


def _print(result: BenchResult, console: Console) -> None:
    from causal_onnx.cli.describe import size_text
    from causal_onnx.cli.figures import GROUP_HEADERS, group_rows, sizes_text

    machine = result.machine
    console.print(f"{result.path} on {result.device}")
    load = "unknown" if machine.load_before is None else str(machine.load_before)
    console.pairs(
        [
            ("processor", machine.processor),
            ("machine", machine.system),
            ("load before", load),
            ("when", machine.when),
        ]
    )
    if warning := machine.warning():
        console.print(f"  {warning}")
    console.heading("time and memory, medians")
    console.table(
        ["what", "batch", "seq", "past", "ms", "fastest", "cpu ms", "positions/s", "peak", "calls"],
        [
            [
                case.kind,
                str(case.profile.batch),
                str(case.profile.seq),
                str(case.profile.past),
                f"{case.times.wall_ms:.3f}",
                f"{case.times.fastest_ms:.3f}",
                f"{case.times.cpu_ms:.3f}",
                f"{case.positions_per_s:,.0f}",
                "-" if case.memory is None else size_text(case.memory.peak_bytes),
                str(case.times.calls),
            ]
            for case in result.cases
        ],
        numbers=9,
    )
    loaded = [case.memory.loaded_bytes for case in result.cases if case.memory is not None]
    if loaded:
        console.print(f"  peak memory once it is loaded: {size_text(max(loaded))}")
    for reason in result.left_out:
        console.print(f"  not timed: {reason}")
    if result.rates is None:
        console.heading("the machine's rates are measured on the CPU only")
    else:
        _print_roofline(result, result.rates, console)
    # The longest call, and the step behind the longest past.
    last = {case.kind: case for case in result.cases}
    for case in last.values():
        console.heading(f"operators: {case.kind} of {sizes_text(case.profile)}")
        console.table(
            ["operator", *GROUP_HEADERS], group_rows(case.profile.by_operator(), TOP), numbers=6
        )


def _print_roofline(result: BenchResult, rates: Rates, console: Console) -> None:
    from causal_onnx.cli.bench.rates import CACHE_BYTES
    from causal_onnx.cli.describe import size_text
    from causal_onnx.cli.figures import count_text, part_text

    console.heading("compared with what this machine can do")
    console.pairs(
        [
            ("products", f"{count_text(rates.flops_per_s)}FLOP/s, fp32, 512 x 512"),
            ("memory", f"{size_text(round(rates.bytes_per_s))}/s read"),
            (
                "rates are by",
                "processor time, with one thread"
                if result.cases[0].rate_clock == "cpu"
                else "wall time, with several threads",
            ),
        ]
    )

    def row(case: BenchCase) -> list[str]:
        return [
            case.kind,
            str(case.profile.seq),
            str(case.profile.past),
            count_text(case.profile.flops),
            f"{count_text(case.flops_per_s)}FLOP/s",
            part_text(case.flops_per_s / rates.flops_per_s),
            size_text(case.read_bytes),
            f"{size_text(round(case.bytes_per_s))}/s",
            part_text(case.bytes_per_s / rates.bytes_per_s),
        ]

    headers = ["what", "seq", "past", "operations", "rate", "part", "read", "rate", "part"]
    console.table(headers, [row(case) for case in result.cases], numbers=8)
    if any(case.read_bytes < CACHE_BYTES for case in result.cases):
        console.print(
            f"  data of less than {size_text(CACHE_BYTES)} may stay in the processor's caches, "
            "which are faster than memory"
        )
