"""`causal-onnx chat`: lines from a pipe, and a person at a terminal who presses Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from causal_onnx.cli.main import main
from causal_onnx.runtime import Sampling, load
from causal_onnx.runtime.contract import CONTRACT_KEY
from tests.runtime.artifacts import metadata
from tests.runtime.language import language_model, write_tokenizer

pytest.importorskip("tokenizers", reason="text needs the extra `text`")
pytest.importorskip("jinja2", reason="chat templates need the extra `text`")

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
HOT = ["--temperature", "2", "--seed", "1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model")


def write_folder(folder: Path, *, template: str = TEMPLATE, endless: bool = False) -> Path:
    """A model that chats; `endless`: without a longest sequence."""
    folder.mkdir()
    source = language_model()
    content = Path(source.runner.artifact.location).read_bytes()
    if endless:
        contract = replace(source.contract, max_seq_len=None)
        content = without_contract(content) + metadata(CONTRACT_KEY, contract.to_json())
    (folder / "model.onnx").write_bytes(content)
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


def without_contract(content: bytes) -> bytes:
    """The key of its entry renamed, which nobody then reads."""
    assert content.count(CONTRACT_KEY.encode()) == 1
    return content.replace(CONTRACT_KEY.encode(), b"x" * len(CONTRACT_KEY))


def say(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def test_each_line_of_a_pipe_is_a_turn(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = tmp_path / "talk.json"
    say(monkeypatch, "héllo", "", " and? ", f"/save {saved}")
    options = ["--system", "Be brief.", "--max-new-tokens", "9", *HOT]
    assert main(["chat", str(folder), *options]) == 0
    said, model, messages = capsys.readouterr(), load(folder), []
    messages.append({"role": "system", "content": "Be brief."})
    for text in ("héllo", "and?"):
        messages.append({"role": "user", "content": text})
        sampling = Sampling(temperature=2.0)
        found = model.chat(messages, sampling=sampling, seed=1, max_new_tokens=9)
        messages.append({"role": "assistant", "content": found.text})
    replies = [message["content"] for message in messages if message["role"] == "assistant"]
    assert said.out == "".join(f"{reply}\n" for reply in replies)
    assert said.err == "(ended by --max-new-tokens)\n" * 2 + f"(5 messages in {saved})\n"
    assert json.loads(saved.read_text(encoding="utf-8")) == messages


@pytest.mark.slow
def test_reset_forgets_and_quit_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(monkeypatch, "héllo", "/reset", "héllo", "/help", "/quit", "never")
    assert main(["chat", str(folder), "--max-new-tokens", "9", *HOT]) == 0
    said = capsys.readouterr()
    half = len(said.out) // 2
    assert said.out[:half] == said.out[half:]
    assert "(a new conversation)" in said.err
    assert "  /save FILE   write the conversation as JSON\n" in said.err


def test_the_settings_of_the_folder_hold_as_far_as_no_option_says_otherwise(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"do_sample": True, "temperature": 2.0, "top_k": 0, "repetition_penalty": 1.5}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    texts = []
    for options in ([], ["--temperature", "0"], ["--top-k", "1"]):
        say(monkeypatch, "héllo")
        assert main(["chat", str(folder), "--max-new-tokens", "20", "--seed", "1", *options]) == 0
        texts.append(capsys.readouterr().out)
    model, hello = load(folder), [{"role": "user", "content": "héllo"}]
    assert texts[0] == model.chat(hello, max_new_tokens=20, seed=1).text + "\n"
    assert texts[0] != texts[1] == texts[2]


def test_a_full_context_is_said(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(monkeypatch, "x" * 200, "y" * 200)
    assert main(["chat", str(folder), *HOT]) == 1
    said = capsys.readouterr().err
    assert "(the model's context is full; /reset starts a new conversation)\n" in said
    assert "ids, and the model takes 400; without messages[0:2], the oldest, it has " in said
    assert said.endswith("; /reset starts a new conversation\n")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/unknown", "error: there is no command /unknown; /help lists them"),
        ("/save", "error: /save takes the name of a file: /save conversation.json"),
        ("/save missing/folder/x.json", "error: .*missing"),
    ],
)
def test_a_line_that_fails_ends_a_pipe_with_an_error(
    folder: Path,
    line: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    say(monkeypatch, line, "never")
    assert main(["chat", str(folder)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert re.match(message, said.err)


def test_a_model_without_a_template_says_what_to_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "chat_template.jinja").rename(folder / "mine.txt")
    assert main(["chat", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "a chat needs a chat template" in said
    assert "--template chat_template.jinja, or continue texts with causal-onnx" in said
    say(monkeypatch, "héllo")
    options = ["--template", str(folder / "mine.txt"), "--max-new-tokens", "3"]
    assert main(["chat", str(folder), *options]) == 0


# Makes the terminal its own, so that Ctrl-C reaches it, and heeds it: whoever runs the tests in the
# background may have it ignored.
CHILD = """
import fcntl, signal, sys, termios
signal.signal(signal.SIGINT, signal.default_int_handler)
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from causal_onnx.cli.main import main
sys.exit(main(sys.argv[1:]))
"""

CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """A person's view of a command: keys go in, what the screen shows comes out."""

    def __init__(self, *arguments: str) -> None:
        self._screen, other = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD, *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(other)
        self._shown = ""

    def press(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def until(self, text: str, *, least: int = 0, seconds: float = 120) -> str:
        """What is shown up to `text`, which comes after at least `least` characters."""
        end = time.monotonic() + seconds
        while (place := self._shown.find(text, least)) < 0:
            rest = end - time.monotonic()  # over, too, where other things are shown without end
            if rest < 0 or not select.select([self._screen], [], [], rest)[0]:
                raise TimeoutError(self._shown[-2000:])
            try:
                new = os.read(self._screen, 1 << 16)
            except OSError:  # the command has ended
                raise AssertionError(self._shown) from None
            self._shown += new.decode("utf-8", errors="replace")
        shown, self._shown = self._shown[:place], self._shown[place + len(text) :]
        return shown

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C at the prompt until `text` is shown.

        Again where nothing came of it: readline sees no interrupt between its prompt and waiting
        for a key, and takes that one and the next for one.
        """
        for _ in range(30):
            self.press(CTRL_C)
            with contextlib.suppress(TimeoutError):
                self.until(text, seconds=4)
                return
        raise AssertionError(self._shown)

    def ended_by(self, keys: str) -> int:
        """The exit code, once `keys` are pressed; again as for `interrupt_until`."""
        for _ in range(60):
            self.press(keys)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(2)
        raise AssertionError(self._shown)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    """A chat with a model that never ends by itself."""
    if sys.platform == "win32":
        pytest.skip("needs a pseudo-terminal")
    folder = write_folder(tmp_path / "model", endless=True)
    # The scan knows no file with two contracts.
    opened = Terminal("chat", str(folder), "--max-new-tokens", "10000000", "--trusted", *HOT)
    try:
        opened.until("> ")
        yield opened
    finally:
        opened.close()


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(terminal: Terminal, tmp_path: Path) -> None:
    terminal.press("first\n")
    terminal.until("e", least=200)
    terminal.press(CTRL_C)
    terminal.until("(stopped)")
    terminal.until("> ")
    terminal.press(f"/save {tmp_path / 'talk.json'}\n")
    terminal.until("(2 messages in ")
    terminal.until("> ")
    user, reply = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert user == {"role": "user", "content": "first"}
    assert reply["role"] == "assistant"
    assert len(reply["content"]) > 100
    terminal.press("second\n")
    terminal.until("e", least=200)
    terminal.press(CTRL_C)
    terminal.until("(stopped)")
    terminal.until("> ")
    terminal.press("/quit\n")
    assert terminal.process.wait(120) == 0


def test_ctrl_c_twice_in_a_row_ends(terminal: Terminal) -> None:
    terminal.interrupt_until("(Ctrl-C again ends the chat, like /quit)")
    terminal.until("> ")
    terminal.press("/wrong\n")
    terminal.until("error: there is no command /wrong; /help lists them")
    terminal.until("> ")
    terminal.press("first\n")
    terminal.until("e", least=200)
    terminal.press(CTRL_C)
    terminal.until("(stopped)")
    terminal.until("> ")
    assert terminal.ended_by(CTRL_C) == 0


def test_the_end_of_the_input_ends(terminal: Terminal) -> None:
    terminal.press(CTRL_D)
    assert terminal.process.wait(120) == 0
