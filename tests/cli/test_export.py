from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="export needs PyTorch")

from causal_onnx.cli.main import main  # noqa: E402 - after the check for PyTorch

STORIES = Path(__file__).parent.parent / "data" / "real" / "baby105"

SOURCE = '''
import torch
from torch import nn

from causal_onnx.models import CausalMechanismV1

WIDTH = 6


def attention(context_length=8, *, bias=False):
    torch.manual_seed(0)
    return CausalMechanismV1(WIDTH, 4, context_length, qkv_bias=bias)


class RunningMean(nn.Module):
    """Says nothing of what it takes."""

    def forward(self, x, scale):
        counts = torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]
        return x.cumsum(1) / counts * scale


class Timed(nn.Module):
    """Adds a time to each position."""

    def forward(self, x, times):
        return x.cumsum(1) + times[..., None]


class Pairs(nn.Module):
    """The mean of two positions, for both."""

    def forward(self, x):
        place = torch.arange(x.shape[1])
        same = (place // 2 == place[:, None] // 2).to(x.dtype)
        return same / same.sum(1, keepdim=True) @ x


class Mean(nn.Module):
    """Not causal."""

    def forward(self, x):
        return x - x.mean(1, keepdim=True)


def failing():
    raise RuntimeError("no weights")


def number():
    return 3


ready = attention()


def wide():
    torch.manual_seed(0)
    return CausalMechanismV1(32, 32, 8)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of modules, made the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo_of_the_cli_tests.py").write_text(SOURCE)
    for name in ("zoo_of_the_cli_tests", "exported_json"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


TARGET = "zoo_of_the_cli_tests"


def test_exports_what_a_factory_gives(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path_before = list(sys.path)
    arguments = ["--arg", "context_length=12", "--arg", "bias=true"]
    assert main(["export", f"{TARGET}:attention", "-o", "m.onnx", *arguments]) == 0
    out = capsys.readouterr().out
    assert "max_seq_len 12" in out
    assert "causal: " in out
    assert "batch 1" in out
    assert sys.path == path_before

    x = np.random.default_rng(0).standard_normal((2, 5, 6), dtype=np.float32)
    np.save("x.npy", x)
    assert main(["run", "m.onnx", "x.npy", "-o", "y.npy"]) == 0
    module = sys.modules[TARGET].attention(12, bias=True).eval()
    expected = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(np.load("y.npy"), expected, rtol=0, atol=1e-5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_exports_a_module_from_a_file_and_reports_json(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A name that the standard library has too.
    (folder / f"{TARGET}.py").rename(folder / "json.py")
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, terminal)
    code = main(["export", "./json.py:ready", "-o", "m.onnx", "--json", "--max-seq-len", "5"])
    shown = terminal.getvalue()
    assert code == 0
    assert "\u2501" in shown  # the bar; which steps it showed depends on how long they took
    # The progress bar is gone before the result is printed.
    said = json.loads(shown.rpartition("\x1b[2K")[2])
    assert said["path"] == "m.onnx"
    assert said["contract"]["max_seq_len"] == 5
    assert said["causality"]["is_causal"] is True
    assert sys.modules["json"] is json


def test_inputs_are_described_by_shape_file_and_axes(folder: Path) -> None:
    np.save("scale.npy", np.array([0.5], dtype=np.float32))
    arguments = ["--example", "x=2,4,3", "--example", "scale=scale.npy"]
    arguments += ["--axes", "0=batch,1=seq", "--axes", "fixed", "--opset", "20"]
    assert main(["export", f"{TARGET}:RunningMean", "-o", "m.onnx", *arguments]) == 0
    np.savez("in.npz", x=np.ones((1, 7, 3), np.float32), scale=np.array([2.0], np.float32))
    assert main(["run", "m.onnx", "in.npz", "-o", "y.npy"]) == 0
    np.testing.assert_allclose(np.load("y.npy"), np.full((1, 7, 3), 2.0), rtol=1e-6)


def test_what_an_input_stands_for_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--example", "2,4,3", "--example", "2,4:int64", "--input", "times=values:-5:1000"]
    assert main(["export", f"{TARGET}:Timed", "-o", "m.onnx", *arguments]) == 0
    assert "times: int64 (batch, seq), values in [-5, 1000)" in capsys.readouterr().out


def test_blocks_that_are_causal_are_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", f"{TARGET}:Pairs", "-o", "m.onnx", "--example", "2,4,3"]
    assert main(arguments) == 1
    capsys.readouterr()
    assert main([*arguments, "--causal", "blocks of 2", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["contract"]["causal_block"] == 2


def test_a_module_that_is_not_causal_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", f"{TARGET}:Mean", "-o", "m.onnx", "--example", "2,4,3", "--json"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert said["failed"] == "CausalityError"
    assert said["report"]["is_causal"] is False
    *steps, last = captured.err.splitlines()
    assert last.startswith("error: Mean is NOT causal")
    assert [line.split(" s  ")[1] for line in steps] == ["import", "probe", "capture"]
    assert not (folder / "m.onnx").exists()


@pytest.mark.parametrize("as_json", [True, False])
def test_timings_say_what_each_step_took(
    folder: Path, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    arguments = ["export", f"{TARGET}:attention", "-o", "m.onnx", "--timings"]
    assert main([*arguments, *(["--json"] if as_json else [])]) == 0
    out = capsys.readouterr().out
    expected = ["import", "probe", "capture", "compare", "causality", "proof", "write"]
    if as_json:
        steps = json.loads(out)["timings"]
        assert [step["step"] for step in steps] == expected
        assert sum(step["processor_s"] for step in steps) > 0.1
    else:
        rows = [line.split() for line in out.partition("processor, s")[2].splitlines()[1:]]
        assert [row[0] for row in rows] == [*expected, "all"]


def test_less_effort_reads_fewer_texts_and_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", f"{TARGET}:wide", "-o", "m.onnx", "--precision", "int4"]
    assert main([*arguments, "--effort", "quick", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["effort"] == "quick"
    assert report["skipped"] == [f"drift: {text}" for text in report["drift"]["skipped"]]
    assert main(["report", "m.onnx"]) == 0
    assert f"not run: {report['skipped'][0]}" in capsys.readouterr().out


def test_weights_of_few_bits_by_choice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["export", f"{TARGET}:wide", "-o", "m.onnx", "--precision", "int4"]
    options = ["--block-size", "64", "--rounding", "gptq", "--keep", "q_proj*=int8"]
    assert main([*arguments, *options]) == 0
    said = capsys.readouterr().out
    assert "2 weights in 4 bits, 1 in 8, in blocks of 64, rounded by gptq" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["q_proj"], "--keep takes PATTERN=PRECISION, such as 'lm_head*=int8', got 'q_proj'"),
        (["q*=int8", "--keep", "q*=fp32"], "--keep names 'q*' twice"),
    ],
)
def test_what_is_kept_needs_a_precision(
    options: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", f"{TARGET}:wide", "-o", "m.onnx", "--precision", "int4"]
    assert main([*arguments, "--keep", *options]) == 2
    assert message in capsys.readouterr().err


def test_more_drift_than_allowed_is_a_finding(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", f"{TARGET}:wide", "-o", "m.onnx", "--precision", "int4"]
    assert main([*arguments, "--max-drift", "0.001", "--json"]) == 1
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert said["failed"] == "DriftError"
    assert said["drift"]["passed"] is False
    assert captured.err.splitlines()[-1].startswith(
        "error: CausalMechanismV1 in int4: drift from fp32"
    )
    assert not (folder / "m.onnx").exists()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("missing.py:x", "there is no file missing.py"),
        ("no_such_module.part:x", "there is no module 'no_such_module'"),
        ("missing.safetensors", "there is no checkpoint missing.safetensors"),
    ],
)
def test_a_missing_source_is_said_before_pytorch_is_imported(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    target: str,
    said: str,
) -> None:
    monkeypatch.setitem(sys.modules, "causal_onnx.export", None)  # importing it fails
    assert main(["export", target, "-o", "m.onnx"]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["attention"], 2, "'attention' does not say what to export; pass the folder or file"),
        (["./checkpoint"], 1, "there is no file or folder ./checkpoint"),
        ([f"{TARGET}:"], 2, "does not say what to export"),
        ([f"{TARGET}:attention", "--arg", "x"], 2, "--arg takes key=value, got 'x'"),
        ([f"{TARGET}:attention", "--arg", "a=1", "--arg", "a=2"], 2, "--arg a was given twice"),
        (
            [f"{TARGET}:nothing"],
            1,
            "has no 'nothing'; it has CausalMechanismV1, Mean, Pairs",
        ),
        ([f"{TARGET}:attentionx"], 1, "has no 'attentionx'; did you mean attention?"),
        ([f"{TARGET}:WIDTH.x"], 1, "has no 'WIDTH.x'"),
        (["no_such_module:x"], 1, "there is no module 'no_such_module'"),
        (["missing.py:x"], 1, "there is no file missing.py"),
        (["broken.py:x"], 1, "importing broken.py failed with SyntaxError"),
        (["lacking.py:x"], 1, "importing lacking.py failed: No module named 'no_such_package'"),
        ([f"{TARGET}:attention", "--arg", "bad=1"], 1, "unexpected keyword argument 'bad'"),
        ([f"{TARGET}:failing"], 1, "failing() raised RuntimeError: no weights"),
        ([f"{TARGET}:number"], 1, "returned an object of type int; expected a torch.nn.Module"),
        ([f"{TARGET}:WIDTH"], 1, "is of type int; expected a torch.nn.Module, or a function"),
        ([f"{TARGET}:ready", "--arg", "a=1"], 1, "is already a module and takes no --arg (a)"),
        ([f"{TARGET}:Mean"], 1, "pass one: --example 2,8,WIDTH"),
        ([f"{TARGET}:Mean", "--example", "2,x"], 2, "--example takes a shape such as 2,16,64"),
        ([f"{TARGET}:Mean", "--example", "2,3:int65"], 2, "there is no dtype 'int65'"),
        ([f"{TARGET}:Mean", "--example", "no.npy"], 1, "there is no file no.npy"),
        (
            [f"{TARGET}:RunningMean", "--example", "x=2,3,4", "--example", "1"],
            2,
            "name every --example or none",
        ),
        (
            [f"{TARGET}:Mean", "--example", "2,3,4", "--axes", "batch"],
            2,
            "--axes takes axis=name pairs such as 0=batch,1=seq, or fixed; got 'batch'",
        ),
        (
            [f"{TARGET}:Mean", "--example", "2,3,4", "--axes", "fixed", "--axes", "fixed"],
            2,
            "2 --axes for 1 --example",
        ),
        ([f"{TARGET}:ready", "--target", "abacus"], 1, "got 'abacus'"),
        ([f"{TARGET}:ready", "--effort", "some"], 1, "effort must be one of quick, normal, full"),
        ([f"{TARGET}:ready", "--input", "x"], 2, "--input takes name=kind or name=kind:low:high"),
        ([f"{TARGET}:ready", "--input", "x=values:1"], 2, "got 'x=values:1'"),
        ([f"{TARGET}:ready", "--input", "x=values:a:b"], 2, "got 'x=values:a:b'"),
        ([f"{TARGET}:ready", "--input", "x=banana"], 2, "--input: kind must be one of features,"),
        (
            [f"{TARGET}:ready", "--input", "x=ids", "--input", "x=ids"],
            2,
            "--input names x twice",
        ),
        (
            [f"{TARGET}:ready", "--causal", "blocks"],
            1,
            "causal must be 'positions', or 'blocks of N'",
        ),
    ],
)
def test_wrong_requests_are_named(
    arguments: list[str],
    code: int,
    message: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "broken.py").write_text("def (")
    (folder / "lacking.py").write_text("import no_such_package")
    assert main(["export", *arguments, "-o", "m.onnx"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == 1
    assert message in captured.err.splitlines()[-1]
    assert not (folder / "m.onnx").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("false", False),
        ("False", False),
        ("None", None),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("(1, 2)", (1, 2)),
        ("1e-3", 1e-3),
        ("gelu", "gelu"),
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_argument_values_are_json_or_python_or_text(text: str, value: object) -> None:
    from causal_onnx.cli.factory import parse_arguments

    assert parse_arguments([f"key={text}"]) == {"key": value}


def test_example_values_fit_what_the_name_says() -> None:
    from causal_onnx.cli.examples import make_example

    class Decoder(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None: ...

    ids, mask = make_example(["2,50:int64", "2,50:bool"], Decoder())
    assert sorted(set(ids.flatten().tolist())) == [0, 1]
    assert mask.all()


@pytest.mark.slow
def test_a_checkpoint_becomes_a_folder_that_every_command_takes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="Hugging Face folders need the extra `hf`")
    pytest.importorskip("tokenizers", reason="text needs the extra `text`")
    model = str(tmp_path / "model")
    assert main(["export", str(STORIES), "-o", model, "--effort", "quick"]) == 0
    assert "max_seq_len 256 (trained on 256)" in capsys.readouterr().out
    for command in ("verify-bundle", "selftest", "inspect", "attest"):
        assert main([command, model]) == 0, capsys.readouterr().err
    capsys.readouterr()
    arguments = ["--prompt", "Once upon a time", "--max-new-tokens", "30"]
    assert main(["generate", model, *arguments]) == 0
    assert "there was" in capsys.readouterr().out
    assert main(["export", str(STORIES), "-o", model]) == 1
    assert "--replace replaces it" in capsys.readouterr().err


def test_the_cache_of_a_checkpoint_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="Hugging Face folders need the extra `hf`")
    arguments = ["-o", str(tmp_path / "model"), "--no-cache", "--json", "--effort", "quick"]
    assert main(["export", str(STORIES.with_name("gpt-nano-sort")), *arguments]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["contract"]["cache"] == []
    assert said["path"] == str(tmp_path / "model" / "model.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(STORIES), "--arg", "a=1"], "--arg is for a module, and .* is a checkpoint"),
        ([str(STORIES), "--example", "2,3"], "--example is for a module"),
        (["ckpt.pt", "--axes", "0=batch"], "--axes is for a module, and ckpt.pt is a checkpoint"),
        (["a.b:c", "--adapter", "x"], "--adapter is for a checkpoint, and a.b:c is none"),
        (["a.b:c", "--trust-remote-code"], "--trust-remote-code is for a checkpoint"),
        (["nowhere"], "pass the folder or file of a checkpoint, or pkg.module:name"),
    ],
)
def test_options_of_the_other_kind_are_wrong_usage(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", *arguments, "-o", "model"]) == 2
    assert re.search(message, capsys.readouterr().err)
