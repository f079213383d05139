"""The process that loads mutated files; it may crash or hang without harm to the rest.

`python -m tools.fuzz.worker CORPUS SCRATCH [trusted]`. Requests are lines with a seed; answers are
lines of JSON. What a seed makes is the same everywhere.
"""

from __future__ import annotations

import faulthandler
import json
import os
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from tools.fuzz.attempt import attempt_model, attempt_stream
from tools.fuzz.layout import Layout, length_delimited
from tools.fuzz.mutate import Base, mutate_model
from tools.fuzz.streams import change_stream
from tools.fuzz.watch import Watch

from causal_onnx.runtime import Model, load

__all__ = ["CPU_SECONDS", "MEMORY_BYTES", "Fuzzer", "main", "own_stdout"]

MEMORY_BYTES = 2 << 30
"""What the worker may allocate."""

CPU_SECONDS = 20
"""Of one file; then the kernel ends the process, which is a hang."""

STREAMS = 0.1
"""The share of saved streams among the mutated files."""


class Fuzzer:
    """Makes the file of a seed, loads it, and says what came of it."""

    def __init__(self, corpus: Path, scratch: Path, *, trusted: bool = False) -> None:
        """Read the corpus and set the traps; `trusted` leaves out the scan."""
        self._trusted = trusted
        self._bases = [_base(path) for path in sorted(corpus.glob("*.onnx"))]
        self._streams = sorted(corpus.glob("*.stream"))
        self._models: dict[str, Model] = {}
        self._corpus = corpus
        self.folder = scratch / "model"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.secret = scratch / "secret.data"
        np.full(4096, 1234567, np.float32).tofile(self.secret)
        self.restore_folder()
        self.watch = Watch(self.secret)

    def restore_folder(self) -> None:
        """What lies beside the mutated model: its data files, and traps."""
        for path in self.folder.iterdir():
            path.unlink()
        for path in self._corpus.glob("*.data"):
            (self.folder / path.name).write_bytes(path.read_bytes())
        (self.folder / "link.data").symlink_to("../secret.data")
        os.link(self.secret, self.folder / "hard.data")
        os.mkfifo(self.folder / "pipe")

    def make(self, seed: int) -> tuple[str, bytes, str, str]:
        """(name of the base, content, changes, "model" or "stream") of a seed."""
        rng = random.Random(seed)
        if rng.random() < STREAMS and self._streams:
            path = rng.choice(self._streams)
            return (path.stem, *change_stream(path.read_bytes(), rng), "stream")
        base = rng.choice(self._bases)
        content, changes = mutate_model(base, self._bases, rng)
        return base.name, content, changes, "model"

    def attempt(self, seed: int) -> dict[str, Any]:
        """Make, load and use the file of a seed."""
        name, content, changes, kind = self.make(seed)
        path = self.folder / ("m.onnx" if kind == "model" else "saved.stream")
        path.write_bytes(content)
        if kind == "model":
            outcome, said = attempt_model(path, trusted=self._trusted)
        else:
            if name not in self._models:
                self._models[name] = load(self._corpus / f"{name}.onnx", threads=1)
            outcome, said = attempt_stream(self._models[name], path)
        return {
            "seed": seed,
            "base": name,
            "changes": changes,
            "outcome": outcome,
            "said": said,
            "read_outside": self.watch.taken(),
        }

    def read_the_secret(self) -> int:
        """How often the secret is opened by a trusted load of a model that names its hard link."""
        base = next(base for base in self._bases if base.name == "external")
        (place,) = [
            place
            for place in base.layout.places["location", "value"]
            if base.content[place.payload : place.end] == b"external.data"
        ]
        path = self.folder / "m.onnx"
        new = length_delimited(place.number, b"hard.data")
        path.write_bytes(base.layout.replace(base.content, place, new))
        self.watch.taken()
        load(path, threads=1, trusted=True)
        return self.watch.taken()


def _base(path: Path) -> Base:
    content = path.read_bytes()
    return Base(path.stem, content, Layout.of(content))


def main(corpus: str, scratch: str, *options: str) -> None:
    """Answer requests until the driver closes the pipe."""
    replies = own_stdout()
    faulthandler.enable()  # a crash leaves its Python stack in the log
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fuzzer = Fuzzer(Path(corpus), Path(scratch), trusted="trusted" in options)
    resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY_BYTES, 2 * MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        used = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(used) + CPU_SECONDS, resource.RLIM_INFINITY))
        answer = fuzzer.attempt(int(line))
        answer["cpu"] = round(time.process_time() - used, 3)
        print(json.dumps(answer), file=replies, flush=True)


def own_stdout() -> TextIO:
    """Keep the pipe for answers; what libraries print goes to stderr."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "w")


if __name__ == "__main__":
    main(*sys.argv[1:])
