"""docs/gate.md: each row of its table of findings is what attest finds in those files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from causal_onnx.cli.main import main
from causal_onnx.export.attestation import attest
from tests.runtime.foreign.files import ALL, unpack
from tests.test_readme import blocks_of

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
FIXTURES = Path(__file__).parent / "analysis" / "fixtures"
OWN = "baby105"


def rows() -> list[tuple[str, str, str, str]]:
    """File, what was done to it, verdict and node of each file in the table."""
    table = PAGE.partition("| file |")[2].partition("\n\n")[0].splitlines()[2:]
    found = []
    for line in table:
        files, made_by, verdict, node, _ = (cell.strip() for cell in line[1:-1].split("|"))
        found += [(name, made_by, verdict, node) for name in re.findall(r"`([^`]+)`", files)]
    return found


def quantised(path: Path, *, in_branches: bool) -> Path:
    quantization = pytest.importorskip("onnxruntime.quantization")
    target = path.with_name("quantised.onnx")
    extra = {"EnableSubgraph": True} if in_branches else {}
    signed = quantization.QuantType.QInt8
    quantization.quantize_dynamic(path, target, weight_type=signed, extra_options=extra)
    return target


def optimised(path: Path) -> Path:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(path.with_name("optimised.onnx"))
    options.log_severity_level = 3  # it warns that the file fits this machine only
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return path.with_name("optimised.onnx")


def made(name: str, made_by: str, folder: Path) -> Path:
    """The file of a row."""
    if name == OWN:
        pytest.importorskip("transformers")
        path = folder / "own.onnx"
        checkpoint = str(ROOT / "tests/data/real" / OWN)
        assert main(["export", checkpoint, "-o", str(path), "--cache"]) == 0
    else:
        fixture = FIXTURES / f"{name}.onnx"
        path = fixture if fixture.is_file() else unpack(name, folder)
    if "optimiser" in made_by:
        path = optimised(path)
    if "quantize_dynamic" in made_by:
        path = quantised(path, in_branches="EnableSubgraph" in made_by)
    return path


PARAMETERS = [
    pytest.param(*row, id=f"{row[0]}-{number}", marks=[pytest.mark.slow] if row[0] == OWN else [])
    for number, row in enumerate(rows())
]


@pytest.mark.parametrize(("name", "made_by", "verdict", "node"), PARAMETERS)
def test_a_row_is_what_attest_finds(
    name: str, made_by: str, verdict: str, node: str, tmp_path: Path
) -> None:
    found = attest(made(name, made_by, tmp_path))
    assert found.verdict.replace("_", " ") == verdict, str(found)
    at = found.offence
    place = "" if at is None else f"`{at.op_type}`" + (f" in `{at.module}`" if at.module else "")
    assert place == node
    assert found.every_length == (verdict == "causal")


def test_the_report_on_the_page_is_what_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = quantised(unpack("optimum-llama", tmp_path), in_branches=False)
    assert main(["attest", str(path)]) == 1
    (shown,) = blocks_of(PAGE, "text")
    assert capsys.readouterr().out.startswith(shown)


def test_every_packed_file_is_in_the_table() -> None:
    plain = {name for name, made_by, _, _ in rows() if "then" not in made_by}
    assert plain == {*ALL, *(path.stem for path in FIXTURES.glob("*.onnx"))}
