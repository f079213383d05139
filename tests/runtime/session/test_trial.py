"""What ends a process while a file is loaded or run ends the one that tries it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import ArtifactError, TrialLimits, UnsafeFileError, load
from causal_onnx.runtime.contract import CONTRACT_KEY
from causal_onnx.runtime.session import trial as trial_module
from tests.runtime.artifact.test_held import INSIDE, OUTSIDE, folder_of, swap_folder
from tests.runtime.artifacts import field, fixture, metadata
from tests.runtime.onnx_bytes import contract, graph, integer, node, subgraph, tensor, value

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a trial needs Linux")

X = np.ones((1, 2, 4), np.float32)
AXES = ("batch", "seq", 4)
TRUE = field(2, 9) + field(8, "true") + field(9, b"\1")


def adds(*nodes: bytes, tensors: Sequence[bytes] = ()) -> bytes:
    """A model that adds what its nodes compute as f."""
    main = graph(
        [*nodes, node("Add", ["x", "f"], ["y"])],
        inputs=[value("x", *AXES)],
        outputs=[value("y", *AXES)],
        tensors=tensors,
    )
    said = metadata(CONTRACT_KEY, contract().to_json())
    return field(1, 8) + field(7, main) + field(8, field(2, 17)) + said


def ends_the_process() -> bytes:
    """While it is loaded, on x86: the least integer is divided by -1."""
    least = tensor("a", -(1 << 63))
    divided, cast = node("Div", ["a", "b"], ["q"]), node("Cast", ["q"], ["f"], integer("to", 1))
    return adds(divided, cast, tensors=[least, tensor("b", -1)])


def runs_on() -> bytes:
    """At a call."""
    body = graph(
        [node("Identity", ["going"], ["on"]), node("Identity", ["state"], ["next"])],
        inputs=[value("step", dtype=7), value("going", dtype=9), value("state")],
        outputs=[value("on", dtype=9), value("next")],
    )
    return adds(node("Loop", ["", "true", "x"], ["f"], subgraph("body", body)), tensors=[TRUE])


def fills_memory() -> bytes:
    """8 GiB of zeros."""
    zeros = node("ConstantOfShape", ["s"], ["z"])
    largest = node("ReduceMax", ["z"], ["f"], integer("keepdims", 0))
    return adds(zeros, largest, tensors=[tensor("s", 1 << 31)])


@pytest.mark.parametrize("how", [{}, {"trusted": True}], ids=["judged", "trusted"])
@pytest.mark.parametrize("name", ["one_head", "external"])
def test_a_model_that_passes_its_trial_is_loaded(name: str, how: dict[str, bool]) -> None:
    tried = load(fixture(name), threads=1, isolated_trial=True, **how)
    x = np.ones([2 if isinstance(axis, str) else axis for axis in tried.contract.inputs[0].axes])
    got, expected = (m(x.astype(np.float32)) for m in (tried, load(fixture(name), threads=1)))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="others do not trap")
def test_a_file_that_ends_the_process_is_refused_by_its_signal() -> None:
    with pytest.raises(UnsafeFileError, match=r"in a separate process it ended with SIGFPE$"):
        load(ends_the_process(), trusted=True, isolated_trial=True, threads=1)


@pytest.mark.parametrize(
    ("content", "limits", "message"),
    [
        (runs_on(), {"wall_s": 3}, r"was not done after 3 s\. If .*TrialLimits\(wall_s="),
        (runs_on(), {"processor_s": 2}, r"used more than 2 s of pro.*Limits\(processor_s="),
        (
            fills_memory(),
            {"memory_bytes": 1 << 30},
            r"needed more than 1073741824 bytes of memory \(.*TrialLimits\(memory_bytes=",
        ),
        (
            adds(node("Relu", ["x"], ["f"])),
            {"memory_bytes": 1 << 25},
            r"than 33554432 .*libraries alone",
        ),
    ],
    ids=["wall", "processor", "memory", "memory of a session"],
)
def test_a_file_that_needs_more_than_the_limit_is_refused_by_its_name(
    content: bytes, limits: dict[str, int], message: str
) -> None:
    with pytest.raises(UnsafeFileError, match=message):
        load(content, trusted=True, isolated_trial=TrialLimits(**limits), threads=1)


def test_a_file_that_onnxruntime_refuses_is_refused_as_without_a_trial() -> None:
    content = adds(node("NoSuchOperator", ["x"], ["f"]))
    with pytest.raises(ArtifactError, match="does not load the model given as bytes"):
        load(content, trusted=True, isolated_trial=True, threads=1)


@pytest.mark.parametrize("trusted", [False, True])
def test_what_was_tried_is_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    inside, outside = folder_of(tmp_path / "a", INSIDE), folder_of(tmp_path / "b", OUTSIDE)
    original = trial_module.try_out

    def then_swap(*args: object, **named: object) -> None:
        original(*args, **named)  # type: ignore[arg-type]
        swap_folder(inside, outside)

    monkeypatch.setattr(trial_module, "try_out", then_swap)
    tried = load(inside / "m.onnx", isolated_trial=True, trusted=trusted, threads=1)
    assert tried(X)[0, 0, 0] == 1 + INSIDE


def test_a_trial_imports_nothing_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    assert load(fixture("one_head"), threads=1, isolated_trial=True).selftest().passed


def test_options_of_a_trial_are_checked() -> None:
    with pytest.raises(ValueError, match="wall_s must be a positive integer, got 0"):
        TrialLimits(wall_s=0)
    with pytest.raises(TypeError, match="isolated_trial must be True, False or a TrialLimits, got"):
        load(fixture("one_head"), isolated_trial=5)  # type: ignore[arg-type]
