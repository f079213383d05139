from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from causal_onnx.cli import timing
from causal_onnx.cli.bench import rates as rates_module
from causal_onnx.cli.bench import run as run_module
from causal_onnx.cli.bench.memory import Memory, measure_memory
from causal_onnx.cli.bench.rates import Rates, matrix_product, measure_rates
from causal_onnx.cli.errors import CommandError
from causal_onnx.cli.main import main
from causal_onnx.runtime import Contract, TensorSpec, load
from tests.cli.onnx_file import make_cached_contract, make_contract, write_model
from tests.runtime.artifacts import fixture

Captured = pytest.CaptureFixture[str]

RATES = Rates(bytes_per_s=1e9, flops_per_s=1e11)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of known rates, and no processes: both have tests of their own."""
    memory = Memory(loaded_bytes=50, peak_bytes=70)
    monkeypatch.setattr(run_module, "measure_rates", lambda threads: RATES)
    monkeypatch.setattr(run_module, "measure_memory", lambda path, **_: memory)


def bench(path: Path, *arguments: str, capsys: Captured) -> dict[str, Any]:
    assert main(["bench", str(path), "--json", *arguments]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_model_without_a_cache_is_called_at_each_length(tmp_path: Path, capsys: Captured) -> None:
    path = write_model(tmp_path / "m.onnx")
    said = bench(path, "--lengths", "4,1,4", "--batch", "2", "--threads", "1", capsys=capsys)
    assert [(c["kind"], c["batch"], c["seq"], c["past"]) for c in said["cases"]] == [
        ("call", 2, 1, 0),
        ("call", 2, 4, 0),
    ]
    assert (said["threads"], said["device"]) == (1, "cpu")
    assert said["rates"] == {"bytes_per_s": 1e9, "flops_per_s": 1e11}
    assert [entry["name"] for entry in said["cases"][0]["operators"]] == ["CumSum"]


def test_a_model_with_a_cache_is_prefilled_and_stepped(capsys: Captured) -> None:
    said = bench(fixture("language"), "--lengths", "3,400", capsys=capsys)
    cases = [(c["kind"], c["seq"], c["past"]) for c in said["cases"]]
    # A step needs room for one position: 400 is the limit.
    assert cases == [("prefill", 3, 0), ("prefill", 400, 0), ("decode", 1, 3), ("decode", 1, 399)]
    step = said["cases"][3]
    assert step["flops"] == 2 * 6 * 280
    assert step["cache_bytes"] == 399 * 6 * 4
    assert step["memory"] is None
    assert said["cases"][0]["memory"] == {"loaded_bytes": 50, "peak_bytes": 70}


@pytest.mark.parametrize(("threads", "clock"), [("1", "cpu"), ("2", "wall")])
def test_rates_and_parts_follow_from_the_counts(threads: str, clock: str, capsys: Captured) -> None:
    arguments = ["--lengths", "8", "--threads", threads]
    for case in bench(fixture("language"), *arguments, capsys=capsys)["cases"]:
        assert case["rate_clock"] == clock
        seconds = case[f"{clock}_ms"] / 1e3
        read = case["weight_bytes"] + case["cache_bytes"]
        assert case["positions_per_s"] == pytest.approx(case["seq"] / case["wall_ms"] * 1e3)
        assert case["part_of_flops"] == pytest.approx(case["flops"] / seconds / 1e11)
        assert case["part_of_bandwidth"] == pytest.approx(read / seconds / 1e9)


def test_text_has_its_tables_and_units(capsys: Captured) -> None:
    assert main(["bench", str(fixture("language")), "--lengths", "8"]) == 0
    out = capsys.readouterr().out
    for text in (
        "time and memory, medians",
        "positions/s",
        "70 bytes",
        "100 GFLOP/s, fp32",
        "1.00 GB/s read",
        "operators: prefill of 8 positions",
        "operators: decode of 1 position after 8",
        "may stay in the processor's caches",
    ):
        assert text in out


def test_lengths_that_nobody_asked_for_may_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setattr(timing, "MAX_CALL_S", 0.0)
    path = write_model(tmp_path / "m.onnx")
    said = bench(path, capsys=capsys)
    assert [case["seq"] for case in said["cases"]] == [1]
    assert [text.partition(":")[0] for text in said["left_out"]] == ["length 4", "length 16"]
    said = bench(path, "--lengths", "1,16", capsys=capsys)
    assert [case["seq"] for case in said["cases"]] == [1, 16]
    assert said["left_out"] == []


@pytest.mark.parametrize("cached", [False, True])
def test_the_plot_has_a_point_for_each_case_and_nothing_that_runs(
    cached: bool, tmp_path: Path, capsys: Captured
) -> None:
    contract = make_cached_contract() if cached else make_contract()
    path = write_model(tmp_path / "<b>&.onnx", contract=contract)
    plot = tmp_path / "plot.svg"
    assert main(["bench", str(path), "--lengths", "1,4,16", "--plot", str(plot)]) == 0
    assert "wrote" in capsys.readouterr().out
    tags = [item.tag.rpartition("}")[2] for item in ElementTree.parse(plot).iter()]
    assert tags.count("circle") == (6 if cached else 3)
    assert tags.count("svg") == (3 if cached else 2)
    assert set(tags) == {"svg", "style", "rect", "text", "line", "polyline", "circle", "title"}
    assert "&lt;b&gt;&amp;.onnx" in plot.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lengths", "0"], 2, "--lengths takes positive numbers"),
        (["--lengths", "1,17"], 1, "takes from 1 to 16 positions, got 17"),
        (["--batch", "0"], 1, "batch must be an integer of at least 1, got 0"),
        (["--plot", "plot.png"], 2, "--plot takes an .svg file, got 'plot.png'"),
        (["--plot", "nowhere/plot.svg"], 2, "there is no folder nowhere to write plot.svg to"),
        (["--device", "tpu"], 1, "device must be"),
        (["--threads", "0"], 1, "threads must be a positive integer"),
    ],
)
def test_wrong_requests_are_named(
    arguments: list[str], code: int, message: str, tmp_path: Path, capsys: Captured
) -> None:
    assert main(["bench", str(write_model(tmp_path / "m.onnx")), *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err


def test_memory_is_that_of_a_process_that_loads_and_calls(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", contract=make_contract(max_seq_len=None))
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "trusted": False, "batch": 1}
    small = measure_memory(path, seq=1, **options)
    large = measure_memory(path, seq=1 << 20, **options)
    assert small is not None
    assert large is not None
    assert small.loaded_bytes <= small.peak_bytes
    # Input and output are 12 MiB each.
    assert large.peak_bytes - small.peak_bytes > 15 << 20


def test_a_process_that_fails_is_an_error(tmp_path: Path) -> None:
    options: dict[str, Any] = {"device": "cpu", "threads": 1, "trusted": False, "batch": 1}
    with pytest.raises(CommandError, match=r"measures memory failed: .*there is no file"):
        measure_memory(tmp_path / "missing.onnx", seq=1, **options)


def test_the_machine_is_measured_with_a_right_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates_module, "SECONDS", 0.0)
    monkeypatch.setattr(rates_module, "BUFFER_BYTES", 1 << 20)
    monkeypatch.setattr(rates_module, "PART_BYTES", 1 << 18)
    monkeypatch.setattr(rates_module, "SIDE", 130)  # two bytes as a varint
    assert measure_rates(2).flops_per_s > 0
    sides = {"a": ("batch", 130), "b": (130, 130), "y": ("batch", 130)}
    a, b, y = (TensorSpec(name=n, dtype="float32", axes=axes) for n, axes in sides.items())
    model = load(matrix_product(130), contract=Contract(inputs=(a, b), outputs=(y,)))
    left, right = np.random.default_rng(0).standard_normal((2, 130, 130)).astype(np.float32)
    np.testing.assert_allclose(model(left, right), left @ right, rtol=0, atol=1e-4)


def test_the_better_of_two_measurements_is_kept() -> None:
    other = Rates(bytes_per_s=2e9, flops_per_s=1e10)
    assert RATES.best_with(other) == Rates(bytes_per_s=2e9, flops_per_s=1e11)
