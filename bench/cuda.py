"""The same works on a GPU: `python -m bench.cuda`.

causal-onnx, onnxruntime-genai's CUDA build, PyTorch and transformers, in fp32, fp16 and bf16. Needs
an NVIDIA GPU, a PyTorch and an onnxruntime built for CUDA; without them it refuses. Absolute
figures with the GPU's name go into bench/README.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.client import ROOT, worker_environment
from bench.command import one_line_errors
from bench.generation.files import BUILDER
from bench.generation.run import Plan, run
from bench.generation.subjects import subjects_for
from bench.generation.table import to_markdown
from bench.readme import publish
from bench.rounds import RoundPolicy
from bench.sizes import FULL, SMALL

__all__ = ["NoGpuError", "find_gpu", "main", "make_plan"]

PAGE = ROOT / "bench"
WORK = ROOT / "build" / "bench-cuda"
SECTION = "cuda"
REQUIREMENTS = ROOT / "bench" / "requirements-cuda.txt"
PEERS = ROOT / "build" / "peers-cuda"

PRECISIONS = ("fp32", "fp16", "bf16")
POLICY = RoundPolicy(at_least=5, at_most=15, precision=0.01, seconds=20.0)

_ASK_TORCH = (
    "import torch; print(torch.cuda.get_device_name(0) if torch.cuda.is_available() else '')"
)


class NoGpuError(RuntimeError):
    """There is no GPU here, or one of the libraries cannot use it; says which, and the remedy."""


def find_gpu() -> str:
    """The name of the GPU that both libraries can use.

    Raises:
        NoGpuError: One of them cannot.
    """
    import onnxruntime  # noqa: PLC0415 - the command's help works without

    offered = onnxruntime.get_available_providers()
    if "CUDAExecutionProvider" not in offered:
        raise NoGpuError(
            f"this onnxruntime offers {', '.join(offered)}, expected CUDAExecutionProvider; use an "
            "environment of its own with 'causal-onnx[gpu]' instead of onnxruntime"
        )
    # In a process of its own: the driver never holds PyTorch.
    done = subprocess.run(
        [sys.executable, "-c", _ASK_TORCH],
        env=worker_environment(1),
        capture_output=True,
        text=True,
        check=False,
    )
    name = done.stdout.strip()
    if done.returncode or not name:
        raise NoGpuError(
            "PyTorch sees no CUDA device; it needs an NVIDIA GPU with its driver, and a PyTorch "
            "built for CUDA"
        )
    return name


def make_plan(device: str, *, full: bool, folder: Path) -> Plan:
    """What is measured on the GPU of this name."""
    subjects = subjects_for(
        PRECISIONS,
        eager=PRECISIONS,
        device="cuda",
        # TF32 is onnxruntime's default; ours and PyTorch compute fp32 in fp32.
        genai={"provider": {"cuda": {"use_tf32": "0"}}, "peers": str(PEERS)},
        builder=BUILDER,
    )
    return Plan(
        sizes=FULL if full else SMALL,
        folder=folder,
        threads=(1,),
        precisions=PRECISIONS,
        subjects=subjects,
        policy=POLICY,
        device=device,
        provider="cuda",
        requirements=REQUIREMENTS,
        packages=PEERS,
        builder=tuple(BUILDER),
    )


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Run and write; 0 done, 1 no GPU, or the subjects disagree or one failed, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    folder = WORK if arguments.out is None else arguments.out.resolve()
    device = find_gpu()
    folder.mkdir(parents=True, exist_ok=True)
    section = run(make_plan(device, full=arguments.full, folder=folder))
    page = PAGE if arguments.full and arguments.out is None else None
    publish(SECTION, section, to_markdown(section), folder, page=page)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.cuda",
        description="Time a Llama-style model with random weights on a GPU, in whole runtimes.",
    )
    parser.add_argument("--full", action="store_true", help="135M parameters instead of 32M")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where all files go")
    return parser


if __name__ == "__main__":
    sys.exit(main())
