"""A peer that is a program: it is started, asked, timed by its own clock, and ended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench import program
from bench.program import LLAMA_SERVER, Program, find_program, llama_command
from tests.bench.llama import fake_llama


def test_a_program_is_asked_and_its_own_processor_time_counts(tmp_path: Path) -> None:
    command = llama_command(
        fake_llama(tmp_path), tmp_path / "m.gguf", threads=1, slots=2, positions=8
    )
    with Program(command, log=tmp_path / "log.txt") as server:
        before = server.processor_s()
        assert server.post("/completion", {"prompt": [5], "n_predict": 3})["tokens"] == [5, 5, 5]
        assert 0 < before < server.processor_s() < 60
        pid = server.pid
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; print('no such file'); sys.exit(3)", "code 3 at its start: no such file"),
        ("import time; time.sleep(60)", r"did not answer within 1 s"),
    ],
)
def test_a_program_that_does_not_start_says_what_it_said_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(program, "START_S", 1.0)
    with pytest.raises(RuntimeError, match=message):
        Program([sys.executable, "-c", code], log=tmp_path / "log.txt")


def test_a_program_is_found_on_the_path_or_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program(LLAMA_SERVER) is None
    there = fake_llama(tmp_path)
    assert find_program(LLAMA_SERVER) == there
    assert find_program("another", there) == there
