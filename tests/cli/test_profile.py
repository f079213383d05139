from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from causal_onnx.cli.main import main
from tests.cli.onnx_file import make_cached_contract, write_model
from tests.runtime.artifacts import fixture
from tests.test_readme import blocks_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "profile.md"

Captured = pytest.CaptureFixture[str]


def profile_of(path: Path, *arguments: str, capsys: Captured) -> dict[str, object]:
    assert main(["profile", str(path), "--json", *arguments]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_operators_and_submodules_are_named(tmp_path: Path, capsys: Captured) -> None:
    assert main(["profile", str(write_model(tmp_path / "m.onnx")), "--seq", "5"]) == 0
    out = capsys.readouterr().out
    assert ": 5 positions on cpu" in out
    for text in (
        "by operator",
        "by submodule",
        "CumSum",
        "100.0%",
        "float(1, 5, 3)",
        "onnxruntime",
    ):
        assert text in out


def test_json_holds_every_node_and_sums(capsys: Captured) -> None:
    said = profile_of(
        fixture("language"), "--seq", "1", "--past", "7", "--batch", "2", capsys=capsys
    )
    assert (said["batch"], said["seq"], said["past"]) == (2, 1, 7)
    assert said["flops"] == 2 * 2 * 6 * 280
    assert said["cache_bytes"] == 2 * 7 * 6 * 4
    assert set(said["machine"]) == {"processor", "system", "load_before", "when"}
    for key in ("nodes", "operators", "modules"):
        assert sum(entry["share"] for entry in said[key]) == pytest.approx(1)
    assert {"Gather", "MatMul", "CumSum"} <= {entry["name"] for entry in said["operators"]}


def test_without_sizes_the_call_is_one_that_the_contract_allows(
    tmp_path: Path, capsys: Captured
) -> None:
    plain = write_model(tmp_path / "plain.onnx")
    cached = write_model(tmp_path / "cached.onnx", contract=make_cached_contract())
    sizes = []
    for path, *arguments in ((plain,), (cached,), (cached, "--past", "3"), (cached, "--seq", "4")):
        said = profile_of(path, *arguments, capsys=capsys)
        sizes.append((said["seq"], said["past"]))
    assert sizes == [(16, 0), (1, 15), (1, 3), (4, 0)]  # 16 is the limit


def test_top_says_how_many_rows_there_are(capsys: Captured) -> None:
    assert main(["profile", str(fixture("language")), "--past", "3", "--top", "2"]) == 0
    out = capsys.readouterr().out
    table = out.partition("by operator\n")[2].partition("\n\n")[0].splitlines()
    assert len(table) == 1 + 2 + 1  # headers, two, and the others
    assert " others " in table[-1]


def test_a_single_row_that_is_left_out_is_in_the_singular(capsys: Captured) -> None:
    path = fixture("language")
    operators = profile_of(path, "--past", "3", capsys=capsys)["operators"]
    assert isinstance(operators, list)
    assert main(["profile", str(path), "--past", "3", "--top", str(len(operators) - 1)]) == 0
    assert "  1 other  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--seq", "17"], 1, "takes from 1 to 16 positions, got 17"),
        (["--seq", "0"], 1, "seq must be an integer of at least 1, got 0"),
        (["--past", "3"], 1, "this model has no KV cache"),
        (["--batch", "0"], 1, "batch must be an integer of at least 1, got 0"),
        (["--top", "0"], 2, "--top takes a positive number, got 0"),
        (["--seq", "a"], 2, "invalid int value: 'a'"),
        (["--device", "tpu"], 1, "device must be"),
        (["--threads", "0"], 1, "threads must be a positive integer"),
    ],
)
def test_wrong_requests_are_named(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: Captured
) -> None:
    assert main(["profile", str(write_model(tmp_path / "m.onnx")), *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_a_foreign_file_is_not_profiled(tmp_path: Path, capsys: Captured) -> None:
    assert main(["profile", str(write_model(tmp_path / "m.onnx", foreign=True))]) == 1
    assert "carries no contract" in capsys.readouterr().err


def test_the_python_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    shutil.copy(fixture("language"), tmp_path / "decoder.onnx")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks_of(PAGE.read_text(encoding="utf-8"), "python")
    exec(block, {})
    *groups, sums = capsys.readouterr().out.splitlines()
    assert len(groups) == 5
    assert all(int(number) > 0 for number in sums.split())
