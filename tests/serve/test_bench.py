"""The benchmark of the server, and the soak, on a model that is small."""

from __future__ import annotations

import itertools
import json
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench import serving_soak
from bench.client import ROOT
from bench.gguf_file import write_gguf
from bench.serving import SECTION, ServingSection, measure, to_markdown
from bench.serving_clients import OnnxGenaiClient, Works
from bench.serving_peers import LlamaServer, OpenVino
from bench.serving_soak import ALLOWED_BYTES, KINDS, Report, soak_server
from tests.bench.servers import http, serving_section
from tests.runtime.artifacts import fixture


def test_every_work_is_measured_and_the_load_changes_nothing(stories: Path) -> None:
    works = Works(tokens=16, prompt=8, long_prompt=130, rounds=1)
    figures = measure(stories, threads=1, works=works)
    assert (figures.replayed, figures.different) == (17, 0)
    ours = figures.ours
    assert min(ours.in_turn_tokens_s, ours.together_tokens_s, ours.gap_alone_ms) > 0
    assert all(text for row in figures.rows() for text in row)


ANOTHER_SERVER = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/completion" and asked["ignore_eos"]
        self.send_response(200); self.end_headers()
        for number in range(asked["n_predict"] + 1):
            event = {{"tokens": [number], "stop": number == asked["n_predict"]}}
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\\n\\n")
    def log_message(self, *_):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def test_another_server_does_the_same_works(stories: Path, tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text(ANOTHER_SERVER.format(python=sys.executable))
    program.chmod(0o755)
    works = Works(tokens=4, prompt=8, long_prompt=20, rounds=1)
    beside = LlamaServer(program=program, gguf=tmp_path / "model.gguf")
    missing = OpenVino(peers=tmp_path, kind="f32")
    figures = measure(stories, threads=1, works=works, beside=[beside, missing])
    assert figures.peers["llama.cpp"].together_tokens_s > 0
    assert figures.peers["llama.cpp"].gap_alone_ms is None  # it sends all tokens at once
    assert {len(row) for row in figures.rows()} == {3}
    assert figures.left_out == {"OpenVINO GenAI": "it reads no GGUF file in float32"}


def test_a_server_that_gives_fewer_tokens_is_left_out_and_ours_is_measured(
    stories: Path, tmp_path: Path
) -> None:
    program = tmp_path / "llama-server"
    fewer = ANOTHER_SERVER.replace('asked["n_predict"] + 1', "3")
    program.write_text(fewer.format(python=sys.executable))
    program.chmod(0o755)
    works = Works(tokens=6, prompt=8, long_prompt=20, rounds=1)
    beside = LlamaServer(program=program, gguf=tmp_path / "model.gguf")
    figures = measure(stories, threads=1, works=works, beside=[beside])
    assert figures.peers == {}
    assert figures.left_out == {"llama.cpp": "it gave 3 tokens where 6 were asked for"}
    assert figures.ours.gain > 0


def test_the_page_marks_what_others_do_better_and_says_what_is_missing() -> None:
    text = to_markdown(serving_section(http(gap_alone_ms=5.0), http(server_cpu_ms=1.0)))
    assert "|  | causal-onnx, w8a8 | llama.cpp, Q8_0 |" in text
    assert "| 2.00 and 8.00 ms, 4.0x | **1.00 and 8.00 ms, 8.0x** |" in text
    assert "| longest gap, alone | 5.0 ms | - |" in text
    assert "| one after another | 100 tokens/s | 100 tokens/s |" in text
    assert "- OpenVINO GenAI: no wheel for this Python" in text


def test_a_section_of_servers_survives_json() -> None:
    made = serving_section(http(), http(chunk_ms=3.0))
    assert ServingSection.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_words_and_ids_are_the_same_for_a_server_that_takes_text() -> None:
    client = OnnxGenaiClient("http://127.0.0.1:1", "m")
    assert client.body([5, 300], 2)["prompt"] == "t5 t300"
    assert client.token({"choices": [{"text": " t7"}]}) == ([7], None)
    for event in ({"choices": [{"text": ""}]}, {"output": "tokens"}):
        assert not client.has_token(event)


def test_the_page_has_a_place_for_servers() -> None:
    page = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
    assert page.count(f"<!-- {SECTION}: begin -->") == 1


def test_a_server_that_does_not_start_is_named(tmp_path: Path) -> None:
    beside = LlamaServer(program=Path("/bin/false"), gguf=tmp_path / "model.gguf")
    with (
        ExitStack() as stack,
        pytest.raises(RuntimeError, match=r"/bin/false ended with code 1 at its start"),
    ):
        beside.start(stack, 1, tmp_path)


def test_only_a_llama_is_written_as_gguf(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="holds a gpt2, expected a llama"):
        write_gguf(tmp_path, tmp_path / "model.gguf", "f32")


def test_a_short_soak_finds_nothing(stories: Path) -> None:
    report = soak_server(stories, seconds=3, clients=24, pause_s=0.2)
    assert report.passed, (report, report.problems)
    assert set(report.done) == set(KINDS)


def test_a_short_soak_of_a_server_that_guesses_finds_nothing() -> None:
    model = fixture("language")
    report = soak_server(model, seconds=2, clients=16, pause_s=0.2, lookup=True)
    assert report.passed, (report, report.problems)
    assert report.done["streamed"] > 0


def test_a_soak_finds_answers_that_change(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = itertools.count()
    monkeypatch.setattr(serving_soak, "_told", lambda kind, answer: next(given))
    report = soak_server(stories, seconds=1, clients=8, pause_s=0.1)
    assert not report.passed
    assert any(problem.startswith("wrong: ") for problem in report.problems)


def test_memory_that_grows_fails_a_soak() -> None:
    assert Report(before_bytes=0, after_bytes=ALLOWED_BYTES).passed
    assert not Report(before_bytes=0, after_bytes=ALLOWED_BYTES + 1).passed
