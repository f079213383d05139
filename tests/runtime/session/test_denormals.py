from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from causal_onnx.runtime import Model, RunError, load
from causal_onnx.runtime.session.denormals import can_flush, flushing_denormals
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
def test_the_context_flushes_results_and_operands_on_this_thread_only() -> None:
    denormals = np.full(8, 1e-40, np.float32)
    others: list[bool] = []
    with flushing_denormals():
        flushed = denormals * np.float32(1e10), np.full(8, TINY) * np.float32(1e-10)
        thread = threading.Thread(target=lambda: others.append(True))
        thread.start()
        thread.join()
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
    with flushing_denormals():
        entered.set()
        left.wait()
    thread.join()
    assert seen == [True]


@needs_flushing
def test_the_mode_is_put_back_after_an_error() -> None:
    with pytest.raises(KeyError, match="x"), flushing_denormals():
        raise KeyError("x")
    assert keeps_denormals()


@needs_flushing
def test_contexts_may_be_nested() -> None:
    with flushing_denormals():
        with flushing_denormals():
            pass
        assert not keeps_denormals()
    assert keeps_denormals()


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
