from __future__ import annotations

import json
from pathlib import Path

import pytest

from causal_onnx.cli.main import main
from tests.cli.onnx_file import make_certificate, make_contract, write_model


def test_prints_contract_source_and_certificate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(write_model(tmp_path / "m.onnx"))]) == 0
    out = capsys.readouterr().out
    assert "x: float32 (batch, seq, 3)" in out
    assert "1 to 16" in out
    assert "tests.Cumulative" in out
    assert "the graph is causal for every length; causal: 2 perturbation points" in out
    assert "causal (Attention, 4 heads over 2 of 8) x 2" in out
    assert "cache: 2 ways of feeding equal PyTorch's full pass" in out
    assert "equal to PyTorch at 3 shapes: largest error 3.0e-07" in out


def test_one_head_is_in_the_singular(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    core = {"footprint": "causal", "op_type": "Attention", "num_heads": 1, "num_kv_heads": 1}
    certificate = make_certificate(cores=[{**core, "head_dim": 8}])
    assert main(["inspect", str(write_model(tmp_path / "m.onnx", certificate=certificate))]) == 0
    assert "causal (Attention, one head of 8)" in capsys.readouterr().out


def test_json_holds_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "m.onnx")
    assert main(["inspect", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["size_bytes"] == path.stat().st_size
    assert said["opsets"] == {"ai.onnx": 18}
    assert said["contract"]["max_seq_len"] == 16
    assert said["certificate"]["causality"]["is_causal"] is True
    assert said["golden"] == {"cases": 1, "tolerance": 1e-5}


def test_a_foreign_file_has_no_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(write_model(tmp_path / "m.onnx", foreign=True))]) == 0
    assert "none: causal-onnx did not write this file" in capsys.readouterr().out


def test_parts_of_the_certificate_may_be_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = make_certificate(causality=None, parity=None, cache=None, verdict=None)
    assert main(["inspect", str(write_model(tmp_path / "m.onnx", certificate=certificate))]) == 0
    assert capsys.readouterr().out.count("not stated") == 2


def test_what_a_lower_precision_costs_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate = make_certificate(
        quantisation={"summary": "3 weights in 4 bits"}, drift={"summary": "drift: mean KL 0.01"}
    )
    path = str(write_model(tmp_path / "m.onnx", certificate=certificate))
    for command in ("inspect", "report"):
        assert main([command, path]) == 0
        out = capsys.readouterr().out
        assert "weights    3 weights in 4 bits" in out or "weights  3 weights in 4 bits" in out
        assert "drift: mean KL 0.01" in out


def test_a_damaged_certificate_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "m.onnx", certificate={"causality": {"cases": []}})
    assert main(["inspect", str(path)]) == 1
    assert (
        "the certificate in the file is damaged: KeyError('is_causal')" in capsys.readouterr().err
    )


def test_a_file_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"PK\x03\x04 and more")
    assert main(["inspect", str(path)]) == 1
    assert "a zip file, such as torch.save writes" in capsys.readouterr().err


def test_control_characters_in_a_file_do_not_reach_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "m.onnx", source={"class": "\x1b[2Jgone\x07"})
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "\\x1b[2Jgone\\x07" in out
    assert "\x1b" not in out


def test_tensors_of_a_cache_share_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contract = make_contract(outputs=3)
    assert main(["inspect", str(write_model(tmp_path / "m.onnx", contract=contract))]) == 0
    out = capsys.readouterr().out
    assert "y: float32 (batch, seq, 3)\n" in out
    assert "y_{i}: float32 (batch, seq, 3), 2 of them" in out
