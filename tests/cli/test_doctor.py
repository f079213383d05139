from __future__ import annotations

import importlib
import json
from typing import Any

import pytest

from causal_onnx.cli.main import main
from causal_onnx.runtime.doctor import DeviceFinding, Diagnosis, ExtraFinding, Problem

doctor = importlib.import_module("causal_onnx.runtime.doctor")


def make_diagnosis(**changes: Any) -> Diagnosis:
    findings: dict[str, Any] = {
        "platform": "Linux-test",
        "versions": {"python": "3.11.7", "onnxruntime": "1.32.0"},
        "extras": (ExtraFinding(name="export", installed=False, missing=("torch>=2.9",)),),
        "providers": ("CPUExecutionProvider",),
        "devices": (DeviceFinding(name="cpu", works=True, detail="x86_64"),),
        "processors": 4,
        "usable_cores": 2,
        "cpu_quota": 1.5,
        "flushes_denormals": True,
        "telemetry": "off",
        "problems": (),
    }
    return Diagnosis(**(findings | changes))


def test_this_machine_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "onnxruntime" in out
    assert "cpu   works" in out or "cpu  works" in out


def test_json_lists_the_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["devices"][0]["name"] == "cpu"
    assert said["devices"][0]["works"] is True
    assert "numpy" in said["versions"]


def test_problems_come_with_their_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Problem(what="a driver, but no CUDA", remedy="pip install 'causal-onnx[gpu]'")
    monkeypatch.setattr(doctor, "diagnose", lambda: make_diagnosis(problems=(problem,)))
    assert main(["doctor"]) == 0  # the CPU works all the same
    out = capsys.readouterr().out
    assert "a driver, but no CUDA\n    to do: pip install 'causal-onnx[gpu]'" in out
    assert "no, missing torch>=2.9" in out
    assert "1.5" in out


def test_without_a_working_cpu_it_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Problem(what="onnxruntime is not installed", remedy="pip install onnxruntime")
    broken = make_diagnosis(devices=(), problems=(problem,))
    monkeypatch.setattr(doctor, "diagnose", lambda: broken)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == (
        "error: models cannot be run here: onnxruntime is not installed. "
        "To do: pip install onnxruntime\n"
    )
