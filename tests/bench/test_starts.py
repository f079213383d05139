"""Fresh processes, and what Python adds to a step; processes and workers are made up."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from bench import peers
from bench.agreement import DisagreementError
from bench.generation import ours, overhead, starts
from bench.generation.cases import TINY
from bench.rounds import RoundPolicy
from tests.runtime.artifacts import fixture

POLICY = RoundPolicy(at_least=2, at_most=2, at_least_slow=2)


def pretend(monkeypatch: pytest.MonkeyPatch, *, torch_output: float = 1.0) -> list[str]:
    """Every start of ours takes 1 s and 50 MB, every one of PyTorch's 4 s and 200 MB."""
    started: list[str] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        name, _, _, output = command[-4:]
        started.append(name)
        scale = 1.0 if name == starts.OURS else 4.0
        if started.count(name) == 1:
            scale *= 100  # reads the libraries from the disk
        np.save(output, np.array([1.0 if name == starts.OURS else torch_output]))
        said = {"wall_s": scale, "cpu_s": 2 * scale, "peak_bytes": 50e6 * scale}
        return SimpleNamespace(returncode=0, stdout=f"noise\n{json.dumps(said)}\n", stderr="")

    monkeypatch.setattr(peers.subprocess, "run", run)
    return started


def test_starts_take_turns_and_the_first_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = pretend(monkeypatch)
    found = starts.measure_starts(tmp_path, tmp_path, tmp_path, threads=2, rounds=3)
    assert started == ["ours", "torch", "torch", "ours", "ours", "torch", "torch", "ours"]
    values = {(one.subject, one.unit): (one.value[1], one.better) for one in found}
    assert values["ours", "s"] == (1.0, {"torch": (4.0, 4.0, 4.0)})
    assert values["ours", "MB"] == (50.0, {"torch": (4.0, 4.0, 4.0)})
    assert values["torch", "MB"][0] == 200.0


def test_starts_that_give_other_outputs_are_no_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, torch_output=1.1)
    with pytest.raises(DisagreementError, match="ours at the start differs"):
        starts.measure_starts(tmp_path, tmp_path, tmp_path, threads=1, rounds=1)


def test_a_start_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no torch\n")
    monkeypatch.setattr(peers.subprocess, "run", lambda *_, **__: failed)
    said = r"-m bench.generation.start ours failed with code 1:\nTraceback\nImportError: no torch"
    with pytest.raises(RuntimeError, match=said):
        starts.measure_starts(tmp_path, tmp_path, tmp_path, threads=1, rounds=1)


def test_python_adds_what_a_step_takes_more_than_the_bare_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class MadeUpWorker:
        def __init__(self, factory: str, **_: Any) -> None:
            self.seconds = 0.0

        def __enter__(self) -> MadeUpWorker:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
            if operation == "prepare":
                self.seconds = ours.STEPS * (50e-6 if arguments["case"]["bare"] else 130e-6)
            return {"seconds": self.seconds, "wall_s": [9.0], "cpu_s": [self.seconds]}

    monkeypatch.setattr(overhead, "Worker", MadeUpWorker)
    found = overhead.measure_overhead(tmp_path, TINY, tmp_path, rounds=4, policy=POLICY)
    assert {one.subject: one.value[1] for one in found} == pytest.approx(
        {overhead.STREAM: 130.0, overhead.BARE: 50.0, overhead.OVERHEAD: 80.0}
    )


def test_a_call_of_steps_reads_them_one_by_one(tmp_path: Path) -> None:
    from causal_onnx.runtime import load

    shutil.copy(fixture("language"), tmp_path / "model.onnx")
    model = load(tmp_path / "model.onnx", threads=1)
    vocab = model.contract.inputs[0].vocab_size
    sizes = {name: getattr(TINY, name) for name in TINY.__dataclass_fields__}
    prepare = ours.step(
        threads=1, path=str(tmp_path / "model.onnx"), sizes={**sizes, "vocab_size": vocab}
    )
    streamed = prepare({"bare": False})
    ids = ours.token_ids(ours.FIRST + ours.STEPS, vocab)
    for _ in range(2):
        np.testing.assert_allclose(streamed()[:, -1], model(ids)[:, -1], atol=1e-5)
