from __future__ import annotations

import contextlib
import random
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest

from causal_onnx.runtime import Model, RunError, load
from causal_onnx.runtime.session.denormals import can_flush, run_flushed
from tests.runtime.artifacts import fixture

needs_flushing = pytest.mark.skipif(
    not can_flush(), reason="only Linux on x86-64 can flush denormals on the calling thread"
)

TINY = np.float32(1e-30)  # times the model's 1e-10 is 1e-40, a denormal


def keeps_denormals() -> bool:
    """Whether this thread's own arithmetic keeps denormals, as it does by default."""
    return bool((np.full(8, TINY) * np.float32(1e-10) != 0).all())


@pytest.fixture(scope="module")
def model() -> Model:
    return load(fixture("small"), threads=2)


@needs_flushing
def test_results_and_operands_are_flushed_for_the_call_only() -> None:
    denormals = np.full(8, 1e-40, np.float32)
    flushed = run_flushed(
        lambda: (denormals * np.float32(1e10), np.full(8, TINY) * np.float32(1e-10))
    )
    assert not flushed[0].any()
    assert not flushed[1].any()
    assert keeps_denormals()
    assert (denormals * np.float32(1e10) != 0).all()


@needs_flushing
def test_another_thread_that_runs_meanwhile_is_not_touched() -> None:
    entered, left = threading.Event(), threading.Event()
    seen: list[bool] = []

    def other() -> None:
        entered.wait()
        seen.append(keeps_denormals())
        left.set()

    thread = threading.Thread(target=other)
    thread.start()
    run_flushed(lambda: (entered.set(), left.wait()))
    thread.join()
    assert seen == [True]


@needs_flushing
def test_the_mode_is_put_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError):
        run_flushed(lambda: 1 // 0)
    assert keeps_denormals()


@needs_flushing
def test_calls_may_be_nested() -> None:
    def outer() -> bool:
        run_flushed(lambda: None)
        return keeps_denormals()

    assert not run_flushed(outer)
    assert keeps_denormals()


# What handles a signal runs wherever Python looks for one: behind a call, at a function's start.
@needs_flushing
def test_the_mode_is_put_back_wherever_an_interrupt_comes() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    random_, hits = random.Random(0), 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(2000):
            with contextlib.suppress(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, random_.uniform(1e-6, 1e-4))
                for _ in range(1000):
                    run_flushed(int)
                signal.setitimer(signal.ITIMER_REAL, 0)
                continue
            hits += 1
            assert keeps_denormals()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits > 1000


# A small product is computed on the calling thread; a large one on the threads of the pool too.
@needs_flushing
@pytest.mark.parametrize("size", [4, 1 << 20], ids=["calling thread", "pool"])
def test_a_model_flushes_denormals(model: Model, size: int) -> None:
    assert not model(np.full((1, size), TINY)).any()


@pytest.mark.parametrize("size", [4, 1 << 20], ids=["calling thread", "pool"])
def test_a_model_keeps_them_if_asked(size: int) -> None:
    kept = load(fixture("small"), threads=2, flush_denormals=False)(np.full((1, size), TINY))
    assert (kept != 0).all()


def test_normal_numbers_are_the_same_either_way(model: Model) -> None:
    x = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    assert model(x).tobytes() == load(fixture("small"), flush_denormals=False)(x).tobytes()


@pytest.mark.parametrize(
    "do",
    [
        lambda: load(fixture("small")),
        lambda: load(fixture("small"))(np.full((1, 4), TINY)),
        lambda: load(fixture("small"), flush_denormals=False)(np.full((1, 4), TINY)),
        lambda: load(fixture("one_head")).selftest(),
    ],
    ids=["load", "call", "call without flushing", "selftest"],
)
def test_the_callers_own_arithmetic_is_untouched(do: Callable[[], object]) -> None:
    do()
    assert keeps_denormals()


def test_the_callers_own_arithmetic_is_untouched_by_a_failed_call() -> None:
    runner = load(fixture("small")).runner
    with pytest.raises(RunError, match="nothing"):
        runner.run(runner.checker, (np.full((1, 4), TINY),), {}, ["nothing"])
    assert keeps_denormals()


FIRST_SESSION = """
import sys
import numpy as np
if sys.argv[2] == "host first":
    import onnxruntime
    onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
from causal_onnx.runtime import load
x = np.full((1, 4), 1e-30, np.float32)
model = load(sys.argv[1], threads=1)
results = model(x), x * np.float32(1e-10)
print([bool(values.any()) for values in results])
"""


# onnxruntime sets a thread's mode with the first session of a process, and never again: what comes
# out must not depend on who made that.
@needs_flushing
@pytest.mark.parametrize("order", ["host first", "this package first"])
def test_it_does_not_matter_who_made_the_first_session(
    order: str, run_python: Callable[..., str]
) -> None:
    assert run_python(FIRST_SESSION, str(fixture("small")), order) == "[False, True]\n"
