"""Whatever ends a call of a stream, and wherever: afterwards the stream is right, or refuses."""

from __future__ import annotations

import itertools
import linecache
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch

import causal_onnx.runtime
from causal_onnx.models import AttentionConfig, DecoderConfig, DecoderLM
from causal_onnx.runtime import PrefixCache, load
from causal_onnx.runtime.session.device import Device
from causal_onnx.runtime.session.runner import Runner
from causal_onnx.runtime.stream.stream import Stream
from tests.export.quick import quick_export

RUNTIME = str(Path(causal_onnx.runtime.__file__).parent)
LONGEST, VOCAB = 80, 31
WINDOWS = {"full": None, "window": 4}


PREFIX_CACHE = ("generation/prefix_cache.py", "stream/cache_blocks.py")


class OnDevice(Runner):
    """Keeps caches as on a GPU, in `OrtValue`s that numpy does not see; they lie in host memory."""

    cache_device = property(lambda self: Device("cpu"))


class Subject:
    def __init__(self, path: Path, logits: np.ndarray, ids: np.ndarray) -> None:
        self.model, self.logits, self.ids = load(path, threads=1), logits, ids

    def step(self, stream: Stream, count: int = 1, **options: Any) -> np.ndarray:
        """Read the next positions of each row."""
        chunk = [row[n : n + count] for row, n in zip(self.ids, stream.lengths, strict=False)]
        return stream(np.stack(chunk), **options)

    def started(self, *counts: int, batch: int = 1, **options: Any) -> Stream:
        """A stream that has read so many positions, call by call."""
        stream = self.model.stream(batch=batch, **options)
        for count in counts:
            self.step(stream, count)
        return stream

    def is_right(self, stream: Stream) -> bool:
        """Whether it goes on as its lengths say, for a call of three positions and two of one."""
        for count in (3, 1, 1):
            before = stream.lengths
            for row, got in enumerate(self.step(stream, count)):
                expected = self.logits[row, before[row] : before[row] + count]
                if not np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max():
                    return False
        return True


@pytest.fixture(scope="module", params=list(WINDOWS))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return make_subject(tmp_path_factory.mktemp("interrupts") / "m.onnx", WINDOWS[request.param])


def make_subject(path: Path, window: int | None) -> Subject:
    attention = AttentionConfig(
        embed_dim=16, num_heads=2, max_seq_len=LONGEST, rotary="half", window=window
    )
    config = DecoderConfig(vocab_size=VOCAB, num_layers=2, attention=attention, mlp_dim=24)
    decoder = DecoderLM(config, seed=0).eval()
    if not path.exists():
        quick_export(decoder, path, cache=True)
    ids = np.random.default_rng(0).integers(0, VOCAB, (3, LONGEST))
    with torch.no_grad():
        return Subject(path, decoder(torch.from_numpy(ids)).numpy(), ids)


class Interrupt:
    """Raises at the n-th line, or bytecode, that the runtime runs inside; `hit`: there was one."""

    def __init__(
        self,
        at: int,
        error: type[BaseException],
        *,
        opcodes: bool = False,
        within: tuple[str, ...] = ("",),
    ) -> None:
        """`within`: how the names of files inside the runtime begin."""
        self._left, self._error, self._opcodes, self.hit = at, error, opcodes, False
        self._within = tuple(f"{RUNTIME}/{name}" for name in within)

    def __enter__(self) -> Interrupt:
        sys.settrace(self._trace)
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        sys.settrace(None)
        return self.hit and isinstance(error, self._error)

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(self._within):
            return None
        frame.f_trace_opcodes = self._opcodes
        if event == ("opcode" if self._opcodes else "line") and not _is_in_c(frame):
            self._left -= 1
            if not self._left:
                self.hit = True
                raise self._error("injected")
        return self._trace


# What a call of C does, where only tracing could come between the line's start and the call.
IN_C = (("prefix_cache", "with self._lock"), ("denormals", "set_(as_before)"))


def _is_in_c(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    line = linecache.getline(name, frame.f_lineno or 0)
    return any(file in name and text in line for file, text in IN_C)


def keeps_denormals() -> bool:
    return bool(np.full(1, 1e-30, np.float32) * np.float32(1e-10) != 0)


def interrupted(
    make: Callable[[], Stream], call: Callable[[Stream], object], **how: Any
) -> Iterator[tuple[tuple[int, ...], Stream]]:
    """The lengths before a call, and the stream after it was interrupted, at each place in turn."""
    for at in itertools.count(1):
        stream = make()
        before = stream.lengths
        error = KeyboardInterrupt if at % 2 else MemoryError
        with Interrupt(at, error, **how) as interrupt:
            call(stream)
        assert keeps_denormals()
        if not interrupt.hit:
            return
        yield before, stream


def refuses(stream: Stream) -> bool:
    """Whether all that uses the stream says by name that it was interrupted."""
    uses = (
        lambda: stream([[1]]),
        lambda: stream.rewind(0),
        stream.fork,
        lambda: stream.select([0]),
    )
    for use in uses:
        try:
            use()
        except RuntimeError as error:
            if "a call of it was interrupted" not in str(error):
                raise
        else:
            return False
    return True


def sound(
    subject: Subject, before: tuple[int, ...], after: Stream, *counts: int
) -> tuple[bool, bool]:
    """Whether an interrupted stream is right, or refuses; and whether it is the latter."""
    if after._is_in_use:
        return refuses(after), True
    moved = tuple(n + count for n, count in zip(before, counts, strict=False))
    return after.lengths in (before, moved) and subject.is_right(after), False


CALLS: dict[str, tuple[dict[str, Any], tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "prompt": ({}, (), {"count": 5}, (5,)),
    "first step": ({}, (5,), {}, (1,)),
    "repeated step, over the room": ({}, (62, 1, 1), {}, (1,)),
    "chunk": ({}, (5, 1, 1), {"count": 3}, (3,)),
    "rows": ({"batch": 2}, (4,), {"count": 3, "lengths": [3, 1]}, (3, 1)),
    "last": ({}, (3,), {"count": 4, "last_only": True}, (4,)),
}
"""Options of a stream, what it reads before, the call, and positions that this adds to each row."""


@pytest.mark.parametrize("case", list(CALLS))
def test_at_every_line_of_a_call(subject: Subject, case: str) -> None:
    options, counts, call, adds = CALLS[case]

    def make() -> Stream:
        return subject.started(*counts, **options)

    found = [
        sound(subject, before, after, *adds)
        for before, after in interrupted(make, lambda stream: subject.step(stream, **call))
    ]
    assert len(found) > 100
    assert all(is_sound for is_sound, _ in found)
    assert sum(refused for _, refused in found) <= 3


@pytest.mark.parametrize("case", ["first step", "rows"])
def test_at_every_line_where_the_cache_lies_on_a_device(subject: Subject, case: str) -> None:
    subject.model.runner.__class__ = OnDevice
    try:
        test_at_every_line_of_a_call(subject, case)
    finally:
        subject.model.runner.__class__ = Runner


@pytest.mark.parametrize("rows", [(5,), (5, 3)])
def test_at_every_bytecode_of_a_repeated_step(subject: Subject, rows: tuple[int, ...]) -> None:
    def make() -> Stream:
        stream = subject.started(batch=len(rows))
        subject.step(stream, 5, lengths=None if len(rows) == 1 else rows)
        for _ in range(3):
            subject.step(stream)
        return stream

    calls = interrupted(make, subject.step, opcodes=True)
    found = [sound(subject, *states, *[1] * len(rows)) for states in calls]
    assert len(found) > 250
    assert all(is_sound for is_sound, _ in found)


@pytest.mark.parametrize("name", ["rewind", "fork", "select", "save"])
def test_at_every_line_of_what_else_a_stream_does(
    subject: Subject, name: str, tmp_path: Path
) -> None:
    uses: dict[str, Callable[[Stream], object]] = {
        "rewind": lambda stream: stream.rewind(1),
        "fork": Stream.fork,
        "select": lambda stream: stream.select([0, 0]),
        "save": lambda stream: stream.save(tmp_path / "state"),
    }
    calls = interrupted(lambda: subject.started(2, 1), uses[name])
    found = [sound(subject, *states, -2) for states in calls]
    assert len(found) > 15
    assert all(is_sound for is_sound, _ in found)
    if name == "save":
        assert subject.is_right(subject.model.restore(tmp_path / "state"))
        assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_at_every_line_of_a_prefix_cache(subject: Subject) -> None:
    prompts = [subject.ids[0, :19].tolist(), subject.ids[0, :10].tolist()]
    for at in itertools.count(1):
        cache = PrefixCache(subject.model, capacity_positions=16, block=4)
        cache.read(prompts[:1])
        with Interrupt(at, KeyboardInterrupt, within=PREFIX_CACHE) as interrupt:
            cache.read([subject.ids[1, :18].tolist()])
        if not interrupt.hit:
            break
        for prompt in (*prompts, subject.ids[1, :18].tolist()):
            logits = cache.read([prompt])[1]
            row = int(prompt[0] == subject.ids[1, 0])
            expected = subject.logits[row, len(prompt) - 1]
            assert np.abs(logits[0] - expected).max() <= 1e-5 * np.abs(expected).max()
        assert cache.stats.positions_held <= 16
    assert at > 100


def test_real_interrupts_at_random_moments(subject: Subject) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    random_, hits = random.Random(0), 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(300):
            stream = subject.started(3)
            try:
                signal.setitimer(signal.ITIMER_REAL, random_.uniform(1e-5, 3e-3))
                while stream.lengths[0] < LONGEST - 5:
                    subject.step(stream)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                hits += 1
                assert keeps_denormals()
            if stream.lengths[0] <= LONGEST - 5:
                assert sound(subject, stream.lengths, stream)[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits


def test_where_two_threads_use_a_stream_one_of_them_is_refused(subject: Subject) -> None:
    stream = subject.started(3)
    inside, done = threading.Event(), threading.Event()

    class Slow:
        def __array__(self, *_: object, **__: object) -> np.ndarray:
            inside.set()
            assert done.wait(10)
            return subject.ids[:1, 3:4]

    thread = threading.Thread(target=lambda: stream(Slow()))
    thread.start()
    assert inside.wait(10)
    assert refuses(stream)
    done.set()
    thread.join()
    assert subject.is_right(stream)


def test_threads_that_hammer_at_a_stream_leave_it_right(subject: Subject) -> None:
    stream, refused = subject.started(2), []

    def use() -> None:
        for _ in range(20):
            try:
                subject.step(stream)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=use) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.lengths[0] == 2 + 60 - len(refused)


def test_an_idle_stream_may_be_forked_by_several_threads(subject: Subject) -> None:
    stream, forks = subject.started(4, 1), []
    threads = [
        threading.Thread(target=lambda: forks.extend(stream.fork() for _ in range(20)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(forks) == 60
    assert all(subject.is_right(fork) for fork in forks)


def test_a_stream_that_changes_while_it_is_copied_gives_no_copy(subject: Subject) -> None:
    stream = subject.started(2)
    with pytest.raises(RuntimeError, match="in use by another thread"), stream.reading():
        stream.rewind(1)
