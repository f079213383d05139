"""Kill processes that write, at random moments, and look at what they leave.

    python -m tools.fuzz.kills --count 300

A process writes over and over, in turn, two exports with their weights inside, two with weights
beside them, two bundles and two saved streams, and is killed (SIGKILL). Afterwards the place must
hold all of the one or all of the other; and when somebody else has written there once, nothing but
what that one wrote. `--whole` kills whole exports instead, module and all, which takes far longer
and mostly strikes where nothing is written yet. Exit code 0 if all is well.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from causal_onnx.export import export
from causal_onnx.export import write as artifact
from causal_onnx.models import CausalMechanismV1
from causal_onnx.runtime import Model, load
from causal_onnx.runtime.bundle import verify_bundle, write_bundle

KINDS = ("weights inside", "weights beside", "bundle", "saved stream")
OUTCOMES = {
    "whole": "the old or the new, as it was written",
    "mixed": "loads, and computes neither: a defect",
    "lost": "is gone or does not load: a defect",
    "left behind": "of these, after the next write there was something else: a defect",
}
X = np.random.default_rng(0).standard_normal((1, 6, 32)).astype(np.float32)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kills that the arguments name, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300, help="how many kills (default: 300)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--whole", action="store_true", help="kill whole exports")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="causal-onnx-kills-") as folder:
        found = run(Place(Path(folder)), count=args.count, seed=args.seed, whole=args.whole)
    print(table(found))
    return 1 if any(found[kind, bad] for kind in KINDS for bad in list(OUTCOMES)[1:]) else 0


def run(
    place: Place, *, count: int, seed: int, whole: bool = False
) -> collections.Counter[tuple[str, str]]:
    """How often (kind, outcome) came."""
    kinds = KINDS[:2] if whole else KINDS
    random_ = random.Random(seed)
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for kind in kinds:
        write = place.exporter(kind) if whole else place.writer(kind)
        write(0)
        started = time.monotonic()
        write(1)
        longest = 1.2 * (time.monotonic() - started)
        for _ in range(count // len(kinds)):
            _kill(write, random_.uniform(0, longest))
            found[kind, place.outcome(kind)] += 1
            write(0)
            found[kind, "left behind"] += not place.is_clean(kind)
    return found


class Place:
    """Two of everything, and where they are written."""

    def __init__(self, folder: Path) -> None:
        self._target = folder / "target"
        self._target.mkdir()
        self._sources = [folder / f"{seed}.onnx" for seed in range(2)]
        for seed, path in enumerate(self._sources):
            export(_module(seed), path, cache=True)
        self._model = load(self._sources[0], threads=1)
        self._streams = [self._model.stream() for _ in range(2)]
        for index, stream in enumerate(self._streams):
            stream(X[:, : 2 + index])
        self._outputs = [load(path, threads=1)(X) for path in self._sources]

    def path(self, kind: str) -> Path:
        """What is written, in a folder of its own."""
        folder = self._target / kind
        folder.mkdir(exist_ok=True)
        return folder / {"bundle": "bundle", "saved stream": "state"}.get(kind, "m.onnx")

    def writer(self, kind: str) -> Callable[[int], None]:
        """What writes the one or the other."""
        path = self.path(kind)

        def write(index: int) -> None:
            if kind == "bundle":
                write_bundle(self._sources[index], path, replace=True)
            elif kind == "saved stream":
                self._streams[index].save(path)
            else:
                _split(kind)
                model = ir.load(self._sources[index])
                with artifact.staged(path) as draft:
                    artifact.write_model(model, draft, dict(model.metadata_props))

        return write

    def exporter(self, kind: str) -> Callable[[int], None]:
        """What exports the one or the other."""
        path = self.path(kind)

        def write(index: int) -> None:
            _split(kind)
            export(_module(index), path, cache=True)

        return write

    def outcome(self, kind: str) -> str:
        """What a reader finds."""
        path = self.path(kind)
        try:
            if kind == "saved stream":
                stream = self._model.restore(path)
                (length,) = stream.lengths
                same = self._streams[length - 2].fork()
                is_one = np.array_equal(stream(X[:, 5:]), same(X[:, 5:]))
                return "whole" if is_one else "mixed"
            if kind == "bundle" and not verify_bundle(path).passed:
                return "mixed"
            model = load(path / "model.onnx" if kind == "bundle" else path, threads=1)
        except Exception as error:
            print(f"{kind}: {error!r}", file=sys.stderr)
            return "lost"
        return "whole" if self._is_one(model) else "mixed"

    def is_clean(self, kind: str) -> bool:
        """Whether there is nothing but what was written."""
        path = self.path(kind)
        names = sorted(item.name for item in path.parent.iterdir())
        return len(names) == (2 if kind == "weights beside" else 1) and names[0] == path.name

    def _is_one(self, model: Model) -> bool:
        got = model(X)
        return any(np.array_equal(got, output) for output in self._outputs)


def table(found: collections.Counter[tuple[str, str]]) -> str:
    """The figures."""
    rows = [f"{'':16} {'kills':>6} " + " ".join(f"{name:>12}" for name in OUTCOMES)]
    for kind in KINDS:
        counts = [found[kind, name] for name in OUTCOMES]
        if sum(counts):
            rows.append(
                f"{kind:16} {sum(counts[:3]):6} " + " ".join(f"{count:12}" for count in counts)
            )
    return "\n".join([*rows, *(f"{name}: {what}" for name, what in OUTCOMES.items())])


def _module(seed: int) -> torch.nn.Module:
    return CausalMechanismV1(dim_in=32, dim_out=32, context_length=16, seed=seed).eval()


def _split(kind: str) -> None:
    """Let weights go beside the model from one kB on, as if they were of gigabytes; or never."""
    artifact.EXTERNAL_DATA_FROM_BYTES = 100 if kind == "weights beside" else 1 << 30


def _kill(write: Callable[[int], None], after_s: float) -> None:
    """Let a child write again and again, and kill it."""
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(told, b"x")
            while True:
                write(1)
                write(0)
        finally:
            os._exit(1)  # only an error ends it
    os.read(ready, 1)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(ready)
    os.close(told)
    if os.WIFEXITED(status):
        raise RuntimeError("the writing process failed before it was killed")


if __name__ == "__main__":
    sys.exit(main())
