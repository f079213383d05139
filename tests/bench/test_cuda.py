"""The bench for a GPU, without one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from bench import cuda
from bench.client import ROOT
from bench.generation.subjects import agreeing


def test_without_cuda_it_refuses_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert cuda.main(["--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: this onnxruntime offers CPUExecutionProvider, expected CUDA")
    assert "causal-onnx[gpu]" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "found"), [("", None), ("NVIDIA H100", "NVIDIA H100")])
def test_pytorch_is_asked_for_the_device(
    monkeypatch: pytest.MonkeyPatch, name: str, found: str | None
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    answer = SimpleNamespace(returncode=0, stdout=f"{name}\n")
    monkeypatch.setattr(cuda.subprocess, "run", lambda *_, **__: answer)
    if found is None:
        with pytest.raises(cuda.NoGpuError, match="PyTorch sees no CUDA device"):
            cuda.find_gpu()
    else:
        assert cuda.find_gpu() == found


def test_every_runtime_runs_at_every_precision_beside_pytorch(tmp_path: Path) -> None:
    plan = cuda.make_plan("NVIDIA H100", full=True, folder=tmp_path)
    names = {subject.name for subject in plan.subjects}
    assert {
        f"{r}-{p}" for r in ("ours", "genai", "tuned", "eager") for p in cuda.PRECISIONS
    } == names
    assert all(reference.startswith("eager-") for reference in agreeing(plan.subjects))
    assert plan.clock_of(1) == "wall"
    options: dict[str, Any] = {one.name: one.options for one in plan.subjects}
    assert options["ours-fp16"]["device"] == options["eager-fp16"]["device"] == "cuda"
    assert options["genai-fp32"]["provider"] == {"cuda": {"use_tf32": "0"}}


def test_the_page_has_a_place_for_it() -> None:
    page = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    assert page.count(f"<!-- {cuda.SECTION}: begin -->") == 1
