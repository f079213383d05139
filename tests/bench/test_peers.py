"""Peers are installed once, and again when they change."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import peers


def test_peers_are_installed_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Sequence[str]] = []

    def pretend(command: Sequence[str], _: object) -> None:
        ran.append(command)
        (tmp_path / "there").mkdir(exist_ok=True)

    monkeypatch.setattr(peers, "run_quietly", pretend)
    wanted = tmp_path / "requirements.txt"
    for text, count in (("a==1\n", 1), ("a==1\n", 1), ("a==2\n", 2)):
        wanted.write_text(text)
        peers.install_peers(wanted, tmp_path / "there")
        assert len(ran) == count
    assert "--no-deps" in ran[0]


def test_a_command_that_fails_says_its_last_lines() -> None:
    code = "import sys; sys.stderr.write('first\\nlast\\n'); sys.exit(3)"
    with pytest.raises(RuntimeError, match="failed with code 3:\nfirst\nlast"):
        peers.run_quietly([sys.executable, "-c", code], {})
