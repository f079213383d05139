"""Name the operators and submodules that cost the most.

Times a call on inputs made from the file's contract, then again under onnxruntime's profiler. With
a cache the call is one step behind a past, unless --seq says otherwise.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from causal_onnx.cli.console import Console
from causal_onnx.cli.errors import UsageError
from causal_onnx.cli.options import add_device_arguments, add_model_argument, add_trusted_argument

if TYPE_CHECKING:
    from causal_onnx.cli.machine import Machine
    from causal_onnx.runtime import Contract
    from causal_onnx.runtime.profile import Profile

__all__ = ["EPILOG", "add_arguments", "run"]

EPILOG = """\
examples:
  causal-onnx profile model.onnx
  causal-onnx profile model.onnx --seq 512
  causal-onnx profile model.onnx --seq 1 --past 2048 --json
"""

USUAL_LENGTH = 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_argument(parser)
    parser.add_argument(
        "--seq",
        type=int,
        metavar="N",
        help=f"positions of the call (default: 1 with a cache, else {USUAL_LENGTH} or the limit)",
    )
    parser.add_argument(
        "--past",
        type=int,
        metavar="N",
        help=f"positions of the past, with a cache (default: {USUAL_LENGTH} or what has room if "
        "--seq is left out, else 0)",
    )
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences (default: 1)")
    parser.add_argument(
        "--top", type=int, default=10, metavar="N", help="rows of each table (default: 10)"
    )
    add_device_arguments(parser)
    add_trusted_argument(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace, console: Console) -> int:
    """Profile and print."""
    if args.top < 1:
        raise UsageError(f"--top takes a positive number, got {args.top}")
    from causal_onnx.cli.machine import this_machine
    from causal_onnx.runtime import load

    machine = this_machine(args.threads)
    with console.progress() as tell:
        tell("load", 0.0)
        model = load(args.model, device=args.device, threads=args.threads, trusted=args.trusted)
        seq, past = _sizes(model.contract, args.seq, args.past)
        tell("profile", 0.5)
        found = model.profile(batch=args.batch, seq=seq, past=past)
    if args.json:
        console.json({"machine": asdict(machine), **found.to_dict()})
    else:
        _print(found, machine, args.top, console)
    return 0


def _sizes(contract: Contract, seq: int | None, past: int | None) -> tuple[int, int]:
    """The sizes asked for, or usual ones that the contract allows."""
    limit = contract.max_seq_len
    if contract.cache and seq is None:
        room = USUAL_LENGTH if limit is None else min(USUAL_LENGTH, limit - 1)
        return 1, room if past is None else past
    usual = max(contract.min_seq_len, min(USUAL_LENGTH, limit or USUAL_LENGTH))
    return usual if seq is None else seq, past or 0


def _print(found: Profile, machine: Machine, top: int, console: Console) -> None:
    from causal_onnx.cli.describe import size_text
    from causal_onnx.cli.figures import (
        GROUP_HEADERS,
        count_text,
        group_rows,
        part_text,
        sizes_text,
    )

    outside = found.profiled_ms - found.kernels_ms
    console.print(f"{found.model}: {sizes_text(found)} on {found.device}")
    console.pairs(
        [
            ("processor", machine.processor),
            ("machine", machine.system),
            ("load before", "unknown" if machine.load_before is None else str(machine.load_before)),
            ("one call", f"{found.wall_ms:.3f} ms, median of {found.calls}"),
            ("processor time", f"{found.cpu_ms:.3f} ms of all threads"),
            ("profiled", f"{found.profiled_ms:.3f} ms, of which {outside:.3f} between nodes"),
            ("products", f"{count_text(found.flops)} operations"),
            ("weights read", size_text(found.weight_bytes)),
            ("cache read", size_text(found.cache_bytes)),
        ]
    )
    if warning := machine.warning():
        console.print(f"  {warning}")
    console.heading("by operator")
    console.table(["operator", *GROUP_HEADERS], group_rows(found.by_operator(), top), numbers=6)
    console.heading("by submodule")
    console.table(["submodule", *GROUP_HEADERS], group_rows(found.by_module(), top), numbers=6)
    console.heading("costliest nodes")
    console.table(
        ["operator", "submodule", "shapes", "calls", "us", "share"],
        [
            [
                node.op_type,
                node.module or "-",
                node.shapes,
                str(node.calls),
                f"{node.time_us:,.0f}",
                part_text(node.share),
            ]
            for node in found.nodes[:top]
        ],
        numbers=3,
    )
