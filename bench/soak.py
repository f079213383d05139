"""Whether memory grows while a model is used for long: `python -m bench.soak`.

Two loads on a small model: decode steps of one token by a stream that is rewound when its cache
is full, and calls of mixed lengths and batches, some by new streams. Memory is looked at after a
warm-up, when every buffer has had its largest size, and again at the end.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import resident
from bench.command import positive
from causal_onnx.runtime import Model, load

__all__ = ["Growth", "main", "mixed_calls", "soak", "steps"]

STEPS, CALLS = 10_000, 1_000
ALLOWED_BYTES = 2 << 20
"""Heaps of mixed sizes fill their gaps ever more slowly: 0.6 MB in 1,000 calls after the first 500
were seen, 0.1 MB in the next 500; a step of one token adds nothing that can be seen."""

CONTEXT = 256
LONGEST = 192
WIDEST = 4
SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """Resident memory of this process, after the warm-up and at the end."""

    what: str
    count: int
    """How often it was done in between."""
    before_bytes: int
    after_bytes: int
    allowed_bytes: int = ALLOWED_BYTES

    @property
    def grown_bytes(self) -> int:
        return self.after_bytes - self.before_bytes

    @property
    def passed(self) -> bool:
        return self.grown_bytes <= self.allowed_bytes

    def __str__(self) -> str:
        return (
            f"{self.count} {self.what}: {self.before_bytes / 1e6:.2f} MB after the warm-up, "
            f"{self.after_bytes / 1e6:.2f} MB at the end, {self.grown_bytes / 1e3:+.0f} kB "
            f"(allowed {self.allowed_bytes / 1e3:.0f}): {'no growth' if self.passed else 'GROWTH'}"
        )


def soak(
    what: str,
    act: Callable[[], object],
    *,
    count: int,
    warm: int,
    allowed_bytes: int = ALLOWED_BYTES,
) -> Growth:
    """Do something `warm` times, look at memory, do it `count` times more, and look again.

    Raises:
        ValueError: One of the numbers is not positive.
    """
    if min(warm, count) < 1:
        raise ValueError(f"warm and count must be positive, got {warm} and {count}")
    for _ in range(warm):
        act()
    before = _settled_bytes()
    for _ in range(count):
        act()
    return Growth(
        what=what,
        count=count,
        before_bytes=before,
        after_bytes=_settled_bytes(),
        allowed_bytes=allowed_bytes,
    )


def steps(model: Model) -> Callable[[], object]:
    """One decode step per call, greedily; rewound to a random length when the cache is full."""
    generator = np.random.default_rng(SEED)
    limit, vocab = _sizes(model)
    stream = model.stream()
    token = np.array([[1]])

    def act() -> object:
        nonlocal token
        if stream.lengths[0] == limit:
            stream.rewind(int(generator.integers(1, limit // 2)))
        token = (stream(token)[:, -1].argmax(-1, keepdims=True) + 1) % vocab
        return token

    return act


def mixed_calls(model: Model) -> Callable[[], object]:
    """One call per call: of any length and batch, by the model and by new streams in turn."""
    generator = np.random.default_rng(SEED)
    limit, vocab = _sizes(model)
    shapes = _shapes(generator, min(LONGEST, limit))
    turns = itertools.cycle((False, True))

    def act() -> object:
        batch, seq = next(shapes)
        ids = generator.integers(0, vocab, (batch, seq))
        if next(turns) or seq < 2:
            return model(ids)
        stream = model.stream(batch=batch)
        cut = int(generator.integers(1, seq))
        stream(ids[:, :cut])
        twin = stream.fork()
        twin(ids[:, cut:], last_only=True)
        return stream(ids[:, cut:])

    return act


def _shapes(generator: np.random.Generator, longest: int) -> Iterator[tuple[int, int]]:
    """The largest first, so that what follows fits into memory that was had already."""
    for _ in range(4):
        yield WIDEST, longest
    while True:
        yield int(generator.integers(1, WIDEST + 1)), int(generator.integers(1, longest + 1))


def _sizes(model: Model) -> tuple[int, int]:
    limit, vocab = model.contract.max_seq_len, model.contract.inputs[0].vocab_size
    if limit is None or vocab is None:
        raise ValueError(f"the soak needs a language model with a limit, got {model!r}")
    return limit, vocab


def _settled_bytes() -> int:
    gc.collect()
    resident.trim()
    return resident.current_bytes()


def main(argv: Sequence[str] | None = None) -> int:
    """Soak and print; 0 no growth, 1 growth, 2 wrong usage."""
    arguments = _parser().parse_args(argv)
    if not resident.is_supported():
        print("error: memory cannot be read here: it needs Linux's /proc/self", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        model = load(arguments.model or _export(Path(folder)), threads=arguments.threads)
        found = [
            soak(
                "decode steps",
                steps(model),
                count=arguments.steps,
                warm=max(1, arguments.steps // 5),
            ),
            soak(
                "calls of mixed lengths",
                mixed_calls(model),
                count=arguments.calls,
                warm=max(1, arguments.calls // 2),
            ),
        ]
    for growth in found:
        print(growth)
    return 0 if all(growth.passed for growth in found) else 1


def _export(folder: Path) -> Path:
    """A small model, exported in a process of its own, which takes PyTorch away with it."""
    from bench.client import worker_environment  # noqa: PLC0415 - not needed with --model
    from bench.peers import run_quietly  # noqa: PLC0415

    path = folder / "small.onnx"
    code = (
        "import sys; from dataclasses import replace; from causal_onnx.export import export; "
        "from causal_onnx.models import DecoderLM, tiny_llama_config; "
        "config = tiny_llama_config(); "
        f"attention = replace(config.attention, max_seq_len={CONTEXT}); "
        "config = replace(config, attention=attention); "
        "export(DecoderLM(config, seed=0), sys.argv[1], cache=True)"
    )
    run_quietly([sys.executable, "-c", code, str(path)], worker_environment(1))
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.soak",
        description="Use a small model for long and tell how much memory that added.",
    )
    parser.add_argument("--steps", type=positive, default=STEPS, metavar="N")
    parser.add_argument("--calls", type=positive, default=CALLS, metavar="N")
    parser.add_argument("--threads", type=positive, default=1, metavar="N")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a cached model with token ids")
    return parser


if __name__ == "__main__":
    sys.exit(main())
