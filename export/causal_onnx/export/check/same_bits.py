"""For which calls a row's bits are the same whatever else is computed: looked at, call by call.

Integer sums are exact, sums of floating-point numbers depend on their order, and a kernel may take
another order for another number of rows, positions or threads. What is said of a file here holds
for the calls that were made, with this onnxruntime on this kind of processor.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from causal_onnx.export.check.parity import Session
from causal_onnx.export.outcome import SessionError
from causal_onnx.export.report import BitsCase, BitsReport
from causal_onnx.export.source.arrays import Array, to_numpy
from causal_onnx.export.source.inputs import CallSizes, InputSpec, make_inputs
from causal_onnx.runtime.contract import Contract, TensorSpec
from causal_onnx.runtime.session.ort import import_onnxruntime

__all__ = ["compare_bits"]

ROWS, LENGTH, STEPS = 8, 23, 4
"""Most rows of a call, positions of a row (an odd number: some kernels take rows of a matrix in
pairs), and those of them that are read one by one."""
THREADS = (2, 4)

Chunks = Sequence[Sequence[int]]
"""Of each call, how many new positions of each row it reads."""


def compare_bits(path: Path, specs: Sequence[InputSpec], contract: Contract) -> BitsReport:
    """Run rows alone and beside others, whole and in pieces, and compare every bit.

    Args:
        path: The file.
        specs: Its inputs, without those of the cache.
        contract: Of the file.
    """
    feeder = _Feeder(path, specs, contract)
    return BitsReport(
        cases=tuple(feeder.case(question, pairs) for question, pairs in _questions(feeder)),
        onnxruntime=str(import_onnxruntime().__version__),
    )


class _Feeder:
    """The file, and rows to feed it with."""

    def __init__(self, path: Path, specs: Sequence[InputSpec], contract: Contract) -> None:
        self._path, self._specs, self._contract = path, specs, contract
        self.has_batch = any("batch" in spec.axes.values() for spec in specs)
        self.has_cache, self.has_mask = bool(contract.cache), contract.mask is not None
        self.length = max(contract.min_seq_len, min(LENGTH, contract.max_seq_len or LENGTH))
        self._sessions: dict[int, Session] = {}
        self._found: dict[tuple[object, ...], list[list[bytes]]] = {}
        sizes = CallSizes(batch=1, seq=self.length)
        self._rows = [
            [to_numpy(x) for x in make_inputs(specs, sizes, seed=31 + row)] for row in range(ROWS)
        ]
        self._outputs = [s for s in contract.outputs if s.name not in contract.present_names]

    def case(self, question: str, pairs: Iterator[tuple[str, _Call, _Call]]) -> BitsCase:
        """Make the calls of a question, each two that should give the same, and compare."""
        count, differing = 0, []
        for name, one, other in pairs:
            count += 1
            try:
                is_same = self._bits(one) == self._bits(other)
            except SessionError as error:
                differing.append(f"{name} ({' '.join(str(error).split())[:80]})")
                continue
            if not is_same:
                differing.append(name)
        return BitsCase(question=question, compared=count, differing=tuple(differing))

    def _bits(self, call: _Call) -> list[bytes]:
        """The outputs of one row of a call, position by position."""
        threads, row, chunks, rows = call
        key = threads, tuple(map(tuple, chunks)), tuple(rows)
        if key not in self._found:
            self._found[key] = self._fed(self._session(threads), rows, chunks)
        return self._found[key][row]

    def _session(self, threads: int) -> Session:
        if threads not in self._sessions:
            self._sessions[threads] = Session(self._path, self._contract, threads=threads)
        return self._sessions[threads]

    def _fed(self, session: Session, rows: Sequence[int], chunks: Chunks) -> list[list[bytes]]:
        pieces: list[list[list[Array]]] = [[[] for _ in self._outputs] for _ in rows]
        done = [0] * len(rows)
        past: list[Array] | None = None
        mask = np.zeros((len(rows), 0), np.int64)
        for counts in chunks:
            width = max(counts)
            feed = [self._joined(index, rows, done, width) for index in range(len(self._specs))]
            new = (np.arange(width)[None] < np.array(counts)[:, None]).astype(np.int64)
            mask = np.concatenate([mask, new], axis=1)
            outputs, past = session.step(feed, past or session.empty_past(feed), mask)
            for place, count in enumerate(counts):
                done[place] += count
                for spec, output, kept in zip(self._outputs, outputs, pieces[place], strict=True):
                    batch, seq = spec.axis_of("batch"), spec.axis_of("seq")
                    part = output if batch is None else output.take([place], batch)
                    kept.append(part if seq is None else part.take(range(count), seq))
        specs = self._outputs
        return [
            [_bytes(parts, spec) for spec, parts in zip(specs, row, strict=True)] for row in pieces
        ]

    def _joined(self, index: int, rows: Sequence[int], done: Sequence[int], width: int) -> Array:
        """The next `width` positions of each row; behind a row's end, positions of its start."""
        axes = {label: axis for axis, label in self._specs[index].axes.items()}
        parts = []
        for row, start in zip(rows, done, strict=True):
            part = self._rows[row][index]
            if "seq" in axes:
                places = np.arange(start, start + width) % self.length
                part = part.take(places, axes["seq"])
            parts.append(part)
        return np.concatenate(parts, axes["batch"]) if "batch" in axes else parts[0]


def _bytes(parts: Sequence[Array], spec: TensorSpec) -> bytes:
    seq = spec.axis_of("seq")
    joined = parts[-1] if seq is None else np.concatenate(parts, seq)
    return np.ascontiguousarray(joined).tobytes()


_Call = tuple[int, int, Chunks, Sequence[int]]
"""Threads, the place of the row that is looked at, the chunks, and the rows."""


def _questions(feeder: _Feeder) -> Iterator[tuple[str, Iterator[tuple[str, _Call, _Call]]]]:
    """What is asked of a file, as far as it takes such calls."""
    n = feeder.length
    whole = [(n,)]
    if feeder.has_batch:
        yield "a sequence prefilled beside others of the same length", _beside(whole)
    if feeder.has_cache and n > 2 * STEPS:
        stepped = [(n - STEPS,), *[(1,)] * STEPS]
        yield "a prompt in chunks of 2 or more", _pieces(n)
        if feeder.has_batch:
            yield "a step beside steps of sequences of the same length", _beside(stepped)
        if feeder.has_batch and feeder.has_mask:
            yield "a prompt beside longer ones", _ragged(n, [])
            yield "a step beside steps of longer sequences", _ragged(n - STEPS, [1] * STEPS)
        single = [(1,)] * n
        yield "steps compared with a prompt", iter([("one row", _alone(single), _alone(whole))])
        yield "more threads", _threads(feeder, stepped)
    else:
        yield "more threads", _threads(feeder, whole)


def _alone(chunks: Chunks, row: int = 0, threads: int = 1) -> _Call:
    return threads, 0, chunks, [row]


def _beside(chunks: Chunks) -> Iterator[tuple[str, _Call, _Call]]:
    for rows in range(2, ROWS + 1):
        together = [tuple(count) * rows for count in chunks]
        for row in range(rows):
            yield f"{rows} rows", (1, row, together, range(rows)), _alone(chunks, row)


def _pieces(length: int) -> Iterator[tuple[str, _Call, _Call]]:
    generator = random.Random(3)
    for size in (2, 3, 7, 16, None):
        chunks: list[tuple[int, ...]] = []
        left = length
        while left:
            count = size or generator.randint(2, 9)
            # A last piece of 1 would be a step.
            count = left if left - count < 2 else count
            chunks.append((count,))
            left -= count
        name = "pieces of many sizes" if size is None else f"pieces of {size}"
        yield name, _alone(chunks), _alone([(length,)])


def _ragged(length: int, steps: Sequence[int]) -> Iterator[tuple[str, _Call, _Call]]:
    for rows in (2, 3, 5, 8):
        counts = tuple(max(2, length - 3 * row) for row in range(rows))
        together = [counts, *[(step,) * rows for step in steps]]
        for row in range(rows):
            own = [(counts[row],), *[(step,) for step in steps]]
            yield f"{rows} rows", (1, row, together, range(rows)), _alone(own, row)


def _threads(feeder: _Feeder, chunks: Chunks) -> Iterator[tuple[str, _Call, _Call]]:
    for threads in THREADS:
        yield f"{threads} threads, one row", _alone(chunks, threads=threads), _alone(chunks)
        if feeder.has_batch:
            together = [tuple(count) * ROWS for count in chunks]
            several = threads, 0, together, range(ROWS)
            yield f"{threads} threads, {ROWS} rows", several, (1, 0, together, range(ROWS))
