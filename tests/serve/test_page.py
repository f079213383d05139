"""docs/serving.md and the tutorial: their examples run, and what they name is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from causal_onnx.serve import open_models
from tests.serve.serving import served

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "serving.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_client_of_the_page_streams(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openai", reason="the client that judges the server")
    block = BLOCKS[0].replace("http://127.0.0.1:8000", address).replace('"model"', '"talker"', 1)
    exec(block.replace("stream=True", "stream=True, max_tokens=9"), {})
    assert capsys.readouterr().out


def test_the_engine_of_the_page_writes(
    stories: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(stories, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    exec(BLOCKS[1], {})
    assert "\n" in capsys.readouterr().out


def test_the_metrics_of_the_page_are_there(address: str) -> None:
    section = PAGE.partition("**Metrics**")[2].partition("\n\n")[0]
    names = {name.partition("{")[0] for name in re.findall(r"`([a-z0-9_]+(?:\{.*?\})?)`", section)}
    text = httpx.get(f"{address}/metrics").text
    assert len(names) > 14
    assert [name for name in names if f"# TYPE causal_onnx:{name} " not in text] == []


def test_the_paths_of_the_page_are_there(address: str) -> None:
    table = PAGE.partition("| path | what |")[2].partition("\n\n")[0]
    for method, path in re.findall(r"`(GET|POST) (/[^`]+)`", table):
        found = httpx.request(method, address + path.replace("NAME", "stories"))
        assert found.status_code == (200 if method == "GET" else 400), path


def test_the_request_of_the_tutorial_is_answered(stories: Path, tmp_path: Path) -> None:
    text = (DOCS / "start" / "checkpoint.md").read_text(encoding="utf-8")
    (curl,) = re.findall(r"```sh\n(curl .*?)```", text, re.DOTALL)
    shutil.copytree(stories, tmp_path / "model")
    with served(open_models([str(tmp_path / "model")], threads=1)) as address:
        asked = curl.replace("curl http://127.0.0.1:8000", f"curl -sS {address}")
        done = subprocess.run(["sh", "-c", asked], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["text"].startswith(", there was a little girl")
