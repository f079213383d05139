from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="attest needs onnx")

from causal_onnx.cli.main import main  # noqa: E402 - after the check for packages
from tests.cli.onnx_file import write_model  # noqa: E402


def write_graph(path: Path, operator: str, **attributes: object) -> str:
    """A foreign file of one node from x to y, both (batch, seq, 4)."""
    helper = onnx.helper
    shape = ["batch", "seq", 4]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"], name="only", **attributes)],
        "main",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
    )
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return str(path)


def test_a_causal_file_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attest", str(write_model(tmp_path / "m.onnx"))]) == 0
    assert capsys.readouterr().out.startswith("causal: ")


def test_a_foreign_file_that_is_not_causal_names_the_node(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_graph(tmp_path / "m.onnx", "Softmax", axis=1)
    assert main(["attest", path]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("not causal: ")
    assert 'Softmax "only"' in captured.out
    assert captured.err == ""


def test_json_and_axes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Along axis 1 this softmax mixes; if positions were the batch axis, it would not.
    path = write_graph(tmp_path / "m.onnx", "Softmax", axis=1)
    assert main(["attest", path, "--json", "--static", "--axes", "x:0=seq"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == "causal"
    assert said["dynamic"]["cases"] == []


def write_length_dependent(path: Path) -> str:
    """y = x times the whole length: causal, and never the same once more positions follow."""
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> main (float[batch, seq, 4] x) => '
        "(float[batch, seq, 4] y) { n = Shape <start = 1, end = 2> (x) f = Cast <to = 1> (n) "
        "y = Mul(x, f) }"
    )
    onnx.save(model, path)
    return str(path)


def test_outputs_that_change_with_the_length_fail_only_where_strictness_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_length_dependent(tmp_path / "m.onnx")
    assert main(["attest", path]) == 0
    assert "prefix    not stable: early outputs change" in capsys.readouterr().out
    assert main(["attest", path, "--strict", "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["prefix_stable"] is False
    assert "strict: not prefix-stable: early outputs change" in captured.err


def test_a_full_proof_passes_the_strict_check(tmp_path: Path) -> None:
    path = write_graph(tmp_path / "m.onnx", "Softmax", axis=2)
    assert main(["attest", path, "--strict", "--static"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.onnx"], 3, "there is no file missing.onnx"),
        (["m.onnx", "--axes", "0=batch"], 2, "--axes takes INPUT:0=batch,1=seq here"),
        (["m.onnx", "--axes", "x:a"], 2, "--axes takes axis=name pairs"),
        (["m.onnx", "--axes", "q:0=batch"], 3, "axes names an input 'q'; the graph has x"),
        (["m.onnx", "--lengths", "x"], 2, "--lengths takes positive numbers"),
        (["text.onnx"], 3, "holds no ONNX model"),
        (["pointer.onnx"], 3, "pointer.onnx is a pointer of Git LFS, not the model: git lfs pull"),
        (["m.onnx", "--axes", "x:0=bacth,1=seq"], 0, "bacth is taken for an axis of something"),
        (["m.onnx", "--axes", "x:0=bacth,1=seq"], 0, "did you mean batch?"),
    ],
)
def test_wrong_requests_are_named(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "m.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "pointer.onnx").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert main(["attest", *arguments]) == code
    assert message in capsys.readouterr().err


ROOT = Path(__file__).resolve().parents[2]


def command_without(barred: str, path: str) -> subprocess.CompletedProcess[str]:
    program = (
        f"import sys; sys.modules[{barred!r}] = None\n"
        "from causal_onnx.cli.main import main\n"
        f"code = main(['attest', {path!r}])\n"
        "assert 'torch' not in sys.modules or sys.modules['torch'] is None\n"
        "sys.exit(code)"
    )
    done = [sys.executable, "-c", program]
    return subprocess.run(done, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("axis", "code"), [(2, 0), (1, 1)], ids=["causal", "not_causal"])
def test_it_runs_without_pytorch(axis: int, code: int, tmp_path: Path) -> None:
    done = command_without("torch", write_graph(tmp_path / "m.onnx", "Softmax", axis=axis))
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize("missing", ["onnx", "onnx_ir"])
def test_without_its_packages_it_names_the_extra_that_brings_them(
    missing: str, tmp_path: Path
) -> None:
    done = command_without(missing, write_graph(tmp_path / "m.onnx", "Relu"))
    assert done.returncode == 3
    assert "pip install 'causal-onnx[attest]'" in done.stderr


def test_the_extra_brings_what_it_needs_and_no_pytorch() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    names = {text.split(">")[0] for text in extras["attest"]}
    assert names == {"onnx", "onnx-ir", "onnxruntime"}


def test_an_error_is_no_verdict_also_where_the_traceback_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attest", "--debug", str(tmp_path / "missing.onnx")]) == 3
    assert "Traceback" in capsys.readouterr().err


def three_files(folder: Path) -> list[str]:
    """A causal file, one that is not, and none."""
    (folder / "text.onnx").write_text("no model")
    good = str(write_model(folder / "good.onnx"))
    return [good, write_graph(folder / "bad.onnx", "Softmax", axis=1), str(folder / "text.onnx")]


def test_weights_that_are_not_there_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_graph(tmp_path / "m.onnx", "Relu")
    model = onnx.load(path)
    weight = onnx.numpy_helper.from_array(np.ones(4, np.float32), "w")
    onnx.external_data_helper.set_external_data(weight, "w.data")
    weight.ClearField("raw_data")
    model.graph.initializer.append(weight)
    model.graph.node[0].op_type = "Add"
    model.graph.node[0].input.append("w")
    Path(path).write_bytes(model.SerializeToString())
    assert main(["attest", path]) == 3
    assert f"{path} keeps weights in a file that is not there: " in capsys.readouterr().err


def test_of_several_files_each_is_judged_and_the_worst_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, text = three_files(tmp_path)
    assert main(["attest", good, good, "--static"]) == 0
    assert main(["attest", bad, good]) == 1
    assert main(["attest", text, bad, good]) == 3
    out = capsys.readouterr().out
    assert f"{bad}\nnot causal: " in out
    assert f"{text}\nerror: {text} holds no ONNX model" in out


def test_json_of_several_files_is_an_object_by_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, text = three_files(tmp_path)
    assert main(["attest", good, bad, text, "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert [said[path]["verdict"] for path in (good, bad)] == ["causal", "not_causal"]
    assert "holds no ONNX model" in said[text]["error"]["message"]


def test_a_job_of_github_gets_annotations_and_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    good, bad, text = three_files(tmp_path)
    assert main(["attest", good, bad, text, "--github"]) == 3
    lines = [one for one in capsys.readouterr().out.splitlines() if " file=" in one]
    kinds = ["::notice ", "::error ", "::error "]
    assert [line.startswith(kind) for line, kind in zip(lines, kinds, strict=True)] == [True] * 3
    assert lines[1].count('Softmax "only"') == 1
    summary = (tmp_path / "summary.md").read_text()
    assert f"| {bad} | not causal |" in summary


def test_what_a_file_says_is_no_command_to_github(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_graph(tmp_path / "m.onnx", "Softmax", axis=1)
    model = onnx.load(path)
    model.graph.node[0].name = "x\n::set-output name=a::b|`<b>"
    onnx.save(model, path)
    main(["attest", path, "--github"])
    lines = capsys.readouterr().out.splitlines()
    off, on = [n for n, line in enumerate(lines) if line.startswith("::") and " " not in line]
    assert lines[off] == f"::stop-commands::{lines[on].strip(':')}"
    assert not [line for line in lines[on:] if line.startswith("::set-output")]


def test_json_and_github_are_not_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["attest", "m.onnx", "--json", "--github"]) == 2
    assert "choose one" in capsys.readouterr().err
