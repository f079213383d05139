"""All sections in one command: one that fails does not stop the others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import whole
from tests.bench.llama import fake_llama


def pretend(monkeypatch: pytest.MonkeyPatch, failing: str = "") -> list[tuple[str, list[str]]]:
    ran: list[tuple[str, list[str]]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        ran.append((command[2], command[3:]))
        return SimpleNamespace(returncode=int(command[2] == failing))

    monkeypatch.setattr(whole.subprocess, "run", run)
    return ran


def test_a_section_that_fails_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = pretend(monkeypatch, failing="bench.cold_start")
    assert whole.main([]) == 1
    assert [name for name, _ in ran] == [command[0] for command in whole.COMMANDS]
    assert "error: failed: bench.cold_start" in capsys.readouterr().err


def test_the_program_that_is_given_is_found_by_every_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = pretend(monkeypatch)
    program = fake_llama(tmp_path)
    given = ["--llama-server", str(program)]
    assert whole.main([*given, "--only", "bench.serving", "bench.targets"]) == 0
    assert ran == [("bench.serving", given), ("bench.targets", [])]
