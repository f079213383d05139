from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.cli import main as main_module
from causal_onnx.cli.commands import inspect
from causal_onnx.cli.main import main
from causal_onnx.cli.parser import COMMANDS
from causal_onnx.runtime import __version__
from causal_onnx.runtime.artifact.drafts import draft_folder
from tests.cli.onnx_file import random_input, write_model


def run(*arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "causal_onnx.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **settings)  # type: ignore[call-overload, no-any-return]


def name_of(module: object) -> str:
    return str(module.__name__).rpartition(".")[2].replace("_", "-")  # type: ignore[attr-defined]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for module in COMMANDS:
        assert f"    {name_of(module)} " in out.replace("\n", " ")


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_every_command_has_help_with_an_example(
    module: object, capsys: pytest.CaptureFixture[str]
) -> None:
    name = name_of(module)
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"causal-onnx {name}" in out
    assert "example" in out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["bogus"], "invalid choice: 'bogus' (choose from export, run,"),
        (["exporter", "m.py"], "invalid choice: 'exporter'; did you mean export?"),
        (["inspect"], "the following arguments are required: MODEL"),
        (["inspect", "m.onnx", "--jso"], "--jso; did you mean --json? (see causal-onnx inspect"),
        (["inspect", "m.onnx", "--xyz=1"], "unrecognized arguments: --xyz=1 (see causal-onnx"),
        (["run", "m.onnx"], "the following arguments are required: -o/--output"),
        (["selftest", "m.onnx", "--threads", "two"], "invalid int value: 'two'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_with_json_an_error_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "missing.onnx", "--json"]) == 1
    captured = capsys.readouterr()
    message = "there is no file missing.onnx"
    assert json.loads(captured.out) == {
        "error": {"type": "FileNotFoundError", "message": message},
        "exit_code": 1,
    }
    assert captured.err == f"error: {message}\n"


def test_with_json_wrong_usage_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "--json"]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["error"]["type"] == "UsageError"
    assert "required: MODEL (see causal-onnx inspect --help)" in said["error"]["message"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"causal-onnx {__version__}\n"


@pytest.mark.parametrize("argv", [["--debug", "inspect"], ["inspect", "--debug"]])
def test_debug_shows_the_traceback(argv: list[str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        main([*argv, str(tmp_path / "missing.onnx")])


def test_an_unforeseen_error_is_one_line_with_its_class(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise KeyError("a\nb")

    monkeypatch.setattr(inspect, "run", fail)
    assert main(["inspect", "m.onnx"]) == 1
    assert capsys.readouterr().err == "error: KeyError: 'a\\nb'; --debug shows where\n"


def test_an_interrupt_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect, "run", interrupt)
    assert main(["inspect", "m.onnx"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_the_library_logs_is_shown_as_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warn(*_: object) -> int:
        logging.getLogger("causal_onnx.runtime.session.open").warning("runs on the CPU")
        return 0

    monkeypatch.setattr(inspect, "run", warn)
    assert main(["inspect", "m.onnx"]) == 0
    assert capsys.readouterr().err == "warning: runs on the CPU\n"
    assert logging.getLogger("causal_onnx").handlers == []


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    done = run("inspect", str(write_model(tmp_path / "m.onnx")))
    assert done.returncode == 0
    assert done.stderr == ""
    assert "x: float32 (batch, seq, 3)" in done.stdout
    assert run("inspect", str(tmp_path / "missing.onnx")).returncode == 1


def test_a_reader_that_stops_early_is_no_error_message(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "causal_onnx.cli", "inspect", str(path)]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert done.stderr == ""


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {
            "torch", "onnx", "onnx_ir", "onnxscript", "rich", "tokenizers", "transformers"
        }:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from causal_onnx.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["inspect", "selftest", "report", "profile"])
def test_commands_on_files_need_neither_pytorch_nor_rich(command: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, command, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_every_command_of_the_runtime_needs_numpy_and_onnxruntime_alone(tmp_path: Path) -> None:
    """In the thin environment (`make test-thin`) nothing else is there; elsewhere it is blocked."""
    model, bundle = str(write_model(tmp_path / "m.onnx")), str(tmp_path / "bundle")
    x = tmp_path / "x.npy"
    np.save(x, random_input())
    lines = {
        "run": [model, str(x), "-o", str(tmp_path / "y.npy")],
        "inspect": [model],
        "selftest": [model],
        "report": [model, "-o", str(tmp_path / "report.html")],
        "bundle": [model, "-o", bundle],
        "verify-bundle": [bundle],
        "bench": [model, "--lengths", "1,4"],
        "profile": [model, "--seq", "4"],
        "doctor": [],
        # Its own error: this model has no cache.
        "generate": [model, "--ids", "1,2"],
        "chat": [model],
    }
    needing_more = {"export", "attest", "adopt", "completion", "serve"}
    assert {name_of(module) for module in COMMANDS} == lines.keys() | needing_more
    for name, arguments in lines.items():
        command = [sys.executable, "-c", BLOCKED, name, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if name in ("generate", "chat"):
            assert "needs a language model exported with --cache" in done.stderr
        else:
            assert done.returncode == 0, f"{name}: {done.stderr}"


def test_export_without_pytorch_says_what_to_install(tmp_path: Path) -> None:
    target = tmp_path / "own.py"
    target.write_text("import torch\n")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, "export", f"{target}:make", "-o", str(tmp_path / "m.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'causal-onnx[export]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_imports_no_numpy() -> None:
    code = "import sys; from causal_onnx.cli.main import main; main(['--help']); "
    code += "sys.exit('numpy' in sys.modules)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_main_is_what_the_entry_point_calls() -> None:
    assert main_module.main is main


def test_sigterm_removes_what_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(args: object, console: object) -> int:
        with draft_folder(tmp_path / "m.onnx") as folder:
            (folder / "m.onnx").touch()
            os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("went on")

    monkeypatch.setattr(inspect, "run", half)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit, match="143"):
        main(["inspect", "m.onnx"])
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("python", "spelled"),
    [
        ("trusted=True loads it", "--trusted loads it"),
        ("undecided_ok=True (--undecided-ok) adopts it", "--undecided-ok adopts it"),
        ("load it with device='cuda:1'", "load it with --device cuda:1"),
        ("Use precision='int8' there", "Use --precision int8 there"),
        ("keep some wider with keep=", "keep some wider with --keep PATTERN=PRECISION"),
        (
            "raise the limit: isolated_trial=TrialLimits(wall_s=...)",
            "raise the limit: --wall-s",
        ),
        (
            "pass one: export(module, path, example=torch.randint(50, (2, 8)))",
            "pass one: --example 2,8:int64",
        ),
        ("name it: axes=[{0: 'batch', 1: 'seq'}]", "name it: --axes 0=batch,1=seq"),
        (
            "write_bundle('a.onnx', 'a', device='cuda')",
            "causal-onnx bundle a.onnx -o a --device cuda",
        ),
    ],
)
def test_remedies_are_those_of_the_command_line(
    python: str, spelled: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError(python)

    monkeypatch.setattr("causal_onnx.cli.commands.selftest.run", fail)
    assert main(["selftest", "m.onnx"]) == 1
    assert capsys.readouterr().err == f"error: {spelled}\n"
