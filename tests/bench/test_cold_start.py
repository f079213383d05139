"""From the start of a process to the first token: what is measured, and what is bold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench import cold_start, resident
from bench.client import WorkerError
from bench.cold_start import OURS, StartRow, StartSection, main, measure, to_markdown
from tests.bench.llama import fake_llama
from tests.bench.sections import MACHINE
from tests.runtime.artifacts import fixture


def row(kind: str, **others: Any) -> StartRow:
    given = {
        "processor_s": 1.0,
        "wall_s": 1.5,
        "peak_bytes": 3 * 10**8,
        "together_bytes": 2 * 10**8,
    }
    return StartRow(file="a", kind=kind, **(given | others))


def section(*rows: StartRow) -> StartSection:
    return StartSection(
        date="2026-11-29T17:00+00:00",
        seconds=60.0,
        machine=MACHINE,
        rows=list(rows),
        sizes={"a": 10**8},
        rounds=5,
        together=10,
    )


def test_what_is_more_than_onnxruntime_alone_is_bold() -> None:
    text = to_markdown(section(row("bare"), row("load", processor_s=1.2), row("prepared")))
    assert "| a, 100 MB | causal-onnx, `load(path)` | **1.20** | 1.50 | 300 | 200 |" in text
    assert "`load(path, prepared=...)` | 1.00 | 1.50 | 300 | 200 |" in text


def test_a_section_survives_json() -> None:
    made = section(row("bare"), row("genai", together_bytes=1))
    assert StartSection.from_dict(made.to_dict()) == made


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cold_start, "WORK", tmp_path)
    return tmp_path


needs_linux = pytest.mark.skipif(
    not resident.is_supported(), reason="memory is read on Linux alone"
)


@needs_linux
def test_a_start_that_fails_is_named(work: Path) -> None:
    with pytest.raises(WorkerError, match=r"onnxruntime alone did not start with .*none.onnx: "):
        measure("a", {"bare": work / "none.onnx"}, rounds=1, together=1)


def test_files_that_do_not_exist_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--files", "a=none.onnx"])
    assert "--files takes name=model.onnx pairs, got 'a=none.onnx'" in capsys.readouterr().err


@needs_linux
def test_all_ways_of_ours_are_measured(work: Path) -> None:
    path = fixture("language")
    rows = measure("a", dict.fromkeys(OURS, path), rounds=1, together=2)
    assert [one.kind for one in rows] == ["load", "beside", "prepared"]
    assert all(one.processor_s > 0 and one.together_bytes > 1e6 for one in rows)
    assert all(one.wall_s > 0 and one.peak_bytes >= one.together_bytes for one in rows)


@needs_linux
def test_a_program_starts_beside_ours(work: Path) -> None:
    kinds = {"load": fixture("language"), "llama": work / "model.gguf"}
    program = fake_llama(work)
    rows = measure("a", kinds, rounds=1, together=2, program=program)
    assert [one.kind for one in rows] == ["load", "llama"]
    assert all(one.processor_s > 0 and one.alone_bytes > 1e6 for one in rows)


@needs_linux
def test_a_peer_that_does_not_start_is_left_out_with_the_reason(work: Path) -> None:
    left_out: dict[str, str] = {}
    kinds = {"load": fixture("language"), "genai": work, "llama": work}
    rows = measure("a", kinds, rounds=1, together=1, program=Path("/bin/false"), left_out=left_out)
    assert [one.kind for one in rows] == ["load"]
    assert "onnxruntime-genai, tuned did not start" in left_out["a, onnxruntime-genai, tuned"]
    assert "ended with code 1" in left_out["a, llama.cpp, `llama-server`"]
