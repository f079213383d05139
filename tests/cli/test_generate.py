from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from causal_onnx.cli.main import main
from causal_onnx.runtime import Sampling
from tests.runtime.artifacts import fixture
from tests.runtime.language import language_model, write_tokenizer

MODEL = str(fixture("language"))


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    pytest.importorskip("tokenizers", reason="text needs the extra `text`")
    return str(write_tokenizer(tmp_path))


def test_ids_go_in_and_come_out_without_a_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", MODEL, "--ids", "5,3,8", "--max-new-tokens", "6"]) == 0
    expected = language_model().generate([5, 3, 8], max_new_tokens=6).ids
    assert capsys.readouterr().out == ",".join(str(token) for token in expected) + "\n"


def test_json_has_all_of_the_continuation(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--temperature", "1.5", "--top-k", "50", "--top-p", "0.9", "--min-p", "0.01"]
    arguments += ["--repetition-penalty", "1.2", "--seed", "4", "--max-new-tokens", "9", "--json"]
    assert main(["generate", MODEL, "--ids", "5,3,8", *arguments]) == 0
    sampling = Sampling(temperature=1.5, top_k=50, top_p=0.9, min_p=0.01, repetition_penalty=1.2)
    found = language_model().generate([5, 3, 8], max_new_tokens=9, sampling=sampling, seed=4)
    assert json.loads(capsys.readouterr().out) == {
        "text": None,
        "ids": list(found.ids),
        "logprobs": list(found.logprobs),
        "finish": "length",
        "speculation": None,
        "device": "cpu",
    }


def test_stop_ids_end_it(capsys: pytest.CaptureFixture[str]) -> None:
    ids = language_model().generate([5, 3, 8], max_new_tokens=6).ids
    assert main(["generate", MODEL, "--ids", "5,3,8", "--stop-id", str(ids[2]), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["finish"], said["ids"][-1]) == ("stop", ids[2])


def test_guesses_are_counted_and_change_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    expected = language_model().generate([5, 3, 8], max_new_tokens=40).ids
    for option in (["--lookup"], ["--draft", MODEL]):
        arguments = ["--ids", "5,3,8", "--max-new-tokens", "40", *option]
        assert main(["generate", MODEL, *arguments, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert tuple(said["ids"]) == expected
        assert said["speculation"]["calls_saved"] > 0
        assert main(["generate", MODEL, *arguments]) == 0
        assert capsys.readouterr().out.count(",") == 39


def test_heads_are_asked_of_the_model_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", MODEL, "--ids", "5,3,8", "--heads"]) == 1
    assert "the model has no heads to draft with" in capsys.readouterr().err


def test_text_is_streamed(
    tokenizer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = language_model(tokenizer=tokenizer)
    sampling = Sampling(temperature=2.0)
    expected = model.generate("añb", max_new_tokens=20, sampling=sampling, seed=1).text
    options = ["--tokenizer", tokenizer, "--max-new-tokens", "20", "--temperature", "2"]
    assert main(["generate", MODEL, "--prompt", "añb", *options, "--seed", "1"]) == 0
    assert capsys.readouterr().out == expected + "\n"
    monkeypatch.setattr("sys.stdin", io.StringIO("añb"))
    assert main(["generate", MODEL, "--prompt-file", "-", *options, "--seed", "1"]) == 0
    assert capsys.readouterr().out == expected + "\n"
    stop = expected[4:6]
    assert main(["generate", MODEL, "--prompt", "añb", *options, "--seed=1", f"--stop={stop}"]) == 0
    assert capsys.readouterr().out == expected[: expected.index(stop)] + "\n"


def test_a_terminal_obeys_nothing_that_a_model_writes(
    tokenizer: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llguidance", reason="a constraint needs the extra `text`")
    options = ["--tokenizer", tokenizer, "--regex", r"\x1b\[2J\n\tx"]
    assert main(["generate", MODEL, "--prompt", "a", *options]) == 0
    assert capsys.readouterr().out == "\x1b[2J\n\tx\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["generate", MODEL, "--prompt", "a", *options]) == 0
    assert capsys.readouterr().out == "\\x1b[2J\n\tx\n"


def test_a_schema_and_a_grammar_come_from_files(
    tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llguidance", reason="a constraint needs the extra `text`")
    (tmp_path / "schema.json").write_text('{"enum": ["yes", "no"]}')
    (tmp_path / "grammar.lark").write_text('start: "yes" | "no"')
    options = ["--prompt", "a", "--tokenizer", tokenizer]
    for flag, file, texts in (
        ("--json-schema", "schema.json", ('"yes"', '"no"')),
        ("--lark", "grammar.lark", ("yes", "no")),
    ):
        assert main(["generate", MODEL, *options, flag, str(tmp_path / file)]) == 0
        assert capsys.readouterr().out.strip() in texts


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--ids", "5,x"], 2, "--ids takes numbers such as 5,3,8, got '5,x'"),
        ([], 2, "one of --prompt, --prompt-file, --ids and --source is required"),
        (["--ids", "1", "--temperature", "-1"], 1, "temperature must be 0 (greedy) or more"),
        (["--ids", "999"], 1, "999"),
        (["--prompt", "a"], 1, "none is beside the model: --tokenizer tokenizer.json"),
        (["--prompt-file", "missing.txt"], 1, "missing.txt"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", MODEL, *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
