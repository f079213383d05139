"""`make serve-demo`, with folders that other tests have exported."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the demo exports a checkpoint")
pytest.importorskip("openai", reason="the client that the demo uses")

from examples.demo.demo import STORY, STORY_TOKENS
from examples.serving.__main__ import main
from examples.serving.demo import served

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def test_the_demo_serves_and_a_real_client_uses_it(
    stories: Path, maps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(stories, tmp_path / "stories")
    shutil.copytree(maps, tmp_path / "maps")
    assert main(["--folder", str(tmp_path), "--port", "0"]) == 0
    said = capsys.readouterr().out
    assert "maps: tensors, on cpu" in said
    assert re.search(rf"{STORY}, there was a little girl", said)
    for claim in ("what Model.generate writes, byte for byte", "each the same as alone"):
        assert f"✓ {claim}" in said
    assert int(re.search(r"(\d+) tokens of a prompt that was seen before", said)[1]) >= 192
    assert len(STORY) + STORY_TOKENS > 192 + 1
    assert "✓ by SIGTERM, in order" in said


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"did not start: .*there is no file"),
        served([tmp_path / "missing"], tmp_path / "log"),
    ):
        pytest.fail("it runs")


def test_make_has_the_target() -> None:
    assert "\nserve-demo: setup" in (ROOT / "Makefile").read_text()
