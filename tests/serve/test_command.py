"""`causal-onnx serve` as a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.runtime.artifacts import fixture

START = "from causal_onnx.cli.main import main; import sys; sys.exit(main())"


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", START, "serve", *arguments, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines_until_curl(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    found = []
    while not found or not found[-1].startswith("try: "):
        found.append(process.stdout.readline())
        assert found[-1], process.communicate()[1]
    return found


def test_it_says_what_it_serves_and_the_curl_line_works(stories: Path) -> None:
    places = [f"tales={stories}", str(fixture("language")), str(fixture("small"))]
    with command(*places, "--threads", "1") as process:
        *models, listening, curl = lines_until_curl(process)
        done = subprocess.run(
            ["sh", "-c", curl.removeprefix("try: ")], capture_output=True, text=True, check=True
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert models == [
        "tales: text, 256 positions, on cpu, 1 thread, up to 8 together\n",
        "language: token ids, 400 positions, on cpu, 1 thread, one after the other\n",
        "small: tensors, on cpu, 1 thread\n",
    ]
    assert re.fullmatch(r"listening on http://127\.0\.0\.1:\d+\n", listening)
    assert json.loads(done.stdout)["choices"][0]["text"] == ", there was a little girl named "


def test_it_says_of_each_model_whether_it_guesses_ahead(stories: Path) -> None:
    places = [f"tales={stories}", str(fixture("language")), str(fixture("small"))]
    with command(*places, "--threads", "1", "--lookup") as process:
        tales, language, small, *_ = lines_until_curl(process)
    assert tales.endswith(", up to 8 together, guesses ahead\n") or tales.endswith(
        ", guesses nothing ahead: a call over several positions gives other bits than "
        "single steps\n"
    )
    assert language.endswith(", one after the other, guesses ahead\n")
    assert small == "small: tensors, on cpu, 1 thread\n"


def test_a_smaller_model_guesses_ahead_for_another() -> None:
    model = str(fixture("language"))
    with command(model, "--threads", "1", "--draft", model) as process:
        described, *_, curl = lines_until_curl(process)
        done = subprocess.run(
            ["sh", "-c", curl.removeprefix("try: ")], capture_output=True, text=True, check=True
        )
    assert described.endswith(", one after the other, guesses ahead\n")
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 32


def test_the_curl_line_has_room_for_a_key(tmp_path: Path) -> None:
    from causal_onnx.serve.keys import new_key

    key, digest = new_key()
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [{"name": "alice", "sha256": digest}]}))
    with command(str(fixture("small")), "--keys", str(keys), "--threads", "1") as process:
        curl = lines_until_curl(process)[-1].removeprefix("try: ").replace("KEY", key)
        done = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["data"][0]["id"] == "small"


def test_it_serves_over_grpc_beside_http() -> None:
    client_of = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")
    with command(str(fixture("small")), "--grpc-port", "0", "--threads", "1") as process:
        lines_until_curl(process)
        found = re.fullmatch(r"gRPC on (127\.0\.0\.1:\d+)\n", process.stdout.readline())
        with client_of.InferenceServerClient(found[1]) as client:
            assert client.is_model_ready("small")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_a_running_stream_ends_in_order_after_sigterm(stories: Path) -> None:
    import httpx

    asked = {"model": "stories", "prompt": "Once", "max_tokens": 200, "stream": True}
    with command(str(stories), "--threads", "1") as process:
        *_, listening, _ = lines_until_curl(process)
        address = listening.split()[-1]
        with httpx.stream("POST", f"{address}/v1/completions", json=asked, timeout=60) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [first, *lines]
        assert process.wait(timeout=60) == 0
    *events, done = [line.removeprefix("data: ") for line in rest if line]
    choices = [json.loads(event)["choices"][0] for event in events]
    assert done == "[DONE]"
    assert choices[-1]["finish_reason"] == "length"
    assert sum(len(choice["text"]) for choice in choices) > 150


def test_a_bundle_that_was_changed_is_not_served(stories: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stories"
    shutil.copytree(stories, folder)
    (folder / "README.md").write_text("changed")
    with command(str(folder)) as process:
        said = process.communicate()[1]
        assert process.returncode == 1
    assert "is not served: it does not match its contract.json (README.md was changed" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{small}", "{small}"], "two models are called 'small'; give one another name"),
        (["missing.onnx"], "there is no file missing.onnx"),
        (["{small}", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1:0"),
        (["{small}", "--keys", "missing.json"], "missing.json: No such file or directory"),
        (["{small}", "--tls-key", "key.pem"], "--tls-key needs --tls-certificate"),
        (["{small}", "--sequences", "0"], "--sequences must be an integer of at least 1, got 0"),
        (["{small}", "--drain", "-1"], "--drain must be"),
        (["{small}", "--draft", "{small}"], "generating needs a language model exported with"),
        (["{small}", "--port", "99999"], "from 0 to 65535, got '99999'"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(arguments, message: str) -> None:
    filled = [item.format(small=fixture("small")) for item in arguments]
    with command(*filled) as process:
        said = process.communicate()[1]
    assert process.returncode == (2 if {"--tls-key", "--port"} & set(arguments) else 1)
    assert said.startswith("error: ")
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="sessions are kept on Linux alone")
def test_what_was_prepared_is_kept_for_the_next_server(tmp_path: Path) -> None:
    for _ in range(2):
        with command(str(fixture("small")), "--prepared", str(tmp_path / "kept")) as process:
            assert lines_until_curl(process)[0].startswith("small: ")
    assert len(list((tmp_path / "kept").iterdir())) == 1
