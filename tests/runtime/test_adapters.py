"""Adapters read from files, and as the inputs of calls: with numpy alone."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import ArtifactError
from causal_onnx.runtime.artifact.adapter import read_adapter
from causal_onnx.runtime.contract import AdapterPair, Contract, FreeAxis, TensorSpec
from causal_onnx.runtime.request.adapters import RANK_STEP, Adapters
from causal_onnx.runtime.request.request import RequestChecker

X = TensorSpec(name="x", dtype="float32", axes=("batch", "seq", 4))
DOWN = TensorSpec(name="up.lora_down", dtype="float32", axes=("batch", 4, "rank"))
UP = TensorSpec(name="up.lora_up", dtype="float32", axes=("batch", "rank", 6))
Y = TensorSpec(name="y", dtype="float32", axes=("batch", "seq", 6))
PAIR = AdapterPair(module="up", down="up.lora_down", up="up.lora_up")
OPTIONS: dict[str, Any] = {"outputs": (Y,), "free_axes": (FreeAxis(name="rank"),)}
CONTRACT = Contract(inputs=(X, DOWN, UP), adapters=(PAIR,), **OPTIONS)
SETTINGS = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none"}


def matrices(rank: int) -> dict[str, Any]:
    """Each entry tells from which it is: 1, 2, 3, ..."""
    down = np.arange(1, 1 + 4 * rank, dtype=np.float32).reshape(rank, 4)
    return {"up.lora_A": down, "up.lora_B": np.ones((6, rank), np.float32)}


def safetensors(tensors: Mapping[str, Any], **header: Any) -> bytes:
    """The bytes of a file; `header` replaces entries of it."""
    kinds = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int64": "I64"}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, value in tensors.items():
        place = [len(data), len(data) + value.nbytes]
        kind = kinds[value.dtype.name]
        entries[name] = {"dtype": kind, "shape": value.shape, "data_offsets": place}
        data += value.tobytes()
    text = json.dumps({**entries, **header}).encode()
    return struct.pack("<Q", len(text)) + text + data


def write_folder(folder: Path, rank: int = 2, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**SETTINGS, "r": rank, **settings}))
    named = {f"base_model.model.{name}.weight": x for name, x in matrices(rank).items()}
    (folder / "adapter_model.safetensors").write_bytes(safetensors(named))
    return folder


def write_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def loaded(tmp_path: Path, **ranks: int) -> Adapters:
    paths = {
        name: write_npz(tmp_path / f"{name}.npz", **matrices(rank)) for name, rank in ranks.items()
    }
    return Adapters(CONTRACT, paths, name="m.onnx")


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 6 / 2),
        ({"use_rslora": True}, 6 / 2**0.5),
        ({"alpha_pattern": {"up": 5}}, 5 / 2),
        ({"alpha_pattern": {"p": 5}, "init_lora_weights": "gaussian"}, 6 / 2),
        ({"r": 9, "rank_pattern": {"u.": 2}}, 6 / 2),
    ],
)
def test_the_scale_of_an_adapter_is_in_its_second_matrix(
    settings: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    found = read_adapter(write_folder(tmp_path / "lora", **settings))["up"]
    np.testing.assert_array_equal(found.down, matrices(2)["up.lora_A"])
    np.testing.assert_allclose(found.up, scale * matrices(2)["up.lora_B"], rtol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(np.float32, lambda x: x), (np.float16, lambda x: x.astype(np.float16)),
     (np.uint16, lambda x: (x.view(np.uint32) >> 16).astype(np.uint16))],
    ids=["fp32", "fp16", "bf16"],
)  # fmt: skip
def test_files_of_matrices_are_read_in_every_precision(
    dtype: Any, bits: Any, tmp_path: Path
) -> None:
    stored = {name: bits(value) for name, value in matrices(3).items()}
    assert stored["up.lora_A"].dtype == dtype
    (tmp_path / "a.safetensors").write_bytes(safetensors(stored))
    found = read_adapter(tmp_path / "a.safetensors")["up"]
    np.testing.assert_array_equal(found.down, matrices(3)["up.lora_A"])
    np.testing.assert_array_equal(found.up, matrices(3)["up.lora_B"])


BROKEN: dict[str, tuple[bytes, str]] = {
    "short": (b"\x01", "is not a safetensors file"),
    "long header": (struct.pack("<Q", 1 << 40) + b"{}", "its header has 1099511627776 bytes"),
    "no json": (struct.pack("<Q", 2) + b"{]", "is not a safetensors file"),
    "other numbers": (safetensors({"up.lora_A": np.ones((2, 4), np.int64)}), "dtype 'I64'"),
    "beyond": (
        safetensors({}, a={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}),
        "at bytes 0 to 8 of 0",
    ),
    "negative": (
        safetensors({}, a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}),
        r"shape \[-1\]",
    ),
    "size": (
        safetensors(
            {"b": np.ones(4, np.float32)}, a={"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}
        ),
        r"shape \[3\] of F32 in 8 bytes",
    ),
    "alone": (safetensors({"up.lora_A": np.ones((2, 4), np.float32)}), "has no lora_B of up"),
    "other": (safetensors({"up.weight": np.ones((2, 4), np.float32)}), "expected names that end"),
    "empty": (safetensors({}), "holds no matrices"),
    "nan": (
        safetensors({**matrices(1), "up.lora_B": np.full((6, 1), np.nan, np.float32)}),
        "up holds NaN, infinity",
    ),
    "ranks": (
        safetensors({**matrices(2), "up.lora_B": np.ones((6, 3), np.float32)}),
        r"has lora_A \(2, 4\) and lora_B \(6, 3\)",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_damaged_file_is_refused(kind: str, tmp_path: Path) -> None:
    content, complaint = BROKEN[kind]
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=complaint):
        read_adapter(tmp_path / "a.safetensors")


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"PK")
    (tmp_path / "a.txt").touch()
    np.savez(tmp_path / "whole.npz", **{"up.lora_A": np.ones((1, 4), np.int64)})
    for path, complaint in {
        tmp_path: "is not a PEFT adapter: it has no adapter_config.json",
        tmp_path / "a.npz": "is not an .npz file",
        tmp_path / "a.txt": "is no adapter: expected the folder of a PEFT adapter",
        tmp_path / "whole.npz": "up.lora_A is int64, expected floating point",
    }.items():
        with pytest.raises(ArtifactError, match=complaint):
            read_adapter(path)
    for name in ("none", "none.npz", "none.safetensors"):
        with pytest.raises(FileNotFoundError):
            read_adapter(tmp_path / name)


def test_rows_have_matrices_of_one_rank_filled_up_with_zeros(tmp_path: Path) -> None:
    found = loaded(tmp_path, two=2, many=RANK_STEP + 1).inputs(["two", None, "many"])
    down, up = found["up.lora_down"], found["up.lora_up"]
    assert (down.shape, up.shape) == ((3, 4, 2 * RANK_STEP), (3, 2 * RANK_STEP, 6))
    np.testing.assert_array_equal(down[0, :, :2], matrices(2)["up.lora_A"].T)
    assert not down[0, :, 2:].any()
    assert not up[0, 2:].any()
    assert not down[1].any()
    assert down[2, :, RANK_STEP].all()
    assert loaded(tmp_path, two=2).inputs([None, None])["up.lora_down"].shape == (2, 4, 0)


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"other.lora_A": np.ones((1, 4)), "other.lora_B": np.ones((6, 1))}, "changes other, and"),
        ({"up.lora_A": np.ones((1, 5)), "up.lora_B": np.ones((6, 1))}, "has up from 5 to 6 feat"),
        ({"up.lora_A": np.ones((1, 4)), "up.lora_B": np.ones((7, 1))}, "has up from 4 to 7 feat"),
    ],
)
def test_a_matrix_without_its_place_in_the_file_is_refused(
    arrays: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    path = write_npz(tmp_path / "a.npz", **arrays)
    with pytest.raises(ArtifactError, match=complaint):
        Adapters(CONTRACT, {"a": path}, name="m.onnx")


def test_half_precision_holds_no_large_matrices(tmp_path: Path) -> None:
    half = {"dtype": "float16"}
    specs = tuple(TensorSpec(name=s.name, axes=s.axes, **half) for s in CONTRACT.inputs)
    contract = Contract(inputs=specs, adapters=(PAIR,), **OPTIONS)
    large = {**matrices(1), "up.lora_B": np.full((6, 1), 1e5)}
    with pytest.raises(ArtifactError, match="holds values in up that float16 cannot hold"):
        Adapters(contract, {"a": write_npz(tmp_path / "a.npz", **large)}, name="m.onnx")


def test_a_request_may_leave_adapters_out() -> None:
    x = np.zeros((2, 3, 4), np.float32)
    feeds = RequestChecker(CONTRACT).check([x], {}).feeds
    assert (feeds["up.lora_down"].shape, feeds["up.lora_up"].shape) == ((2, 4, 0), (2, 0, 6))
    given = {"up.lora_down": np.ones((2, 4, 5), np.float32)}
    feeds = RequestChecker(CONTRACT).check([x], given).feeds
    assert feeds["up.lora_up"].shape == (2, 5, 6)
    assert not feeds["up.lora_up"].any()
    with pytest.raises(ValueError, match="its axis 'seq' is empty"):
        RequestChecker(CONTRACT).check([x[:, :0]], {})


def test_the_contract_survives_the_round_trip_and_names_the_rank() -> None:
    assert Contract.from_json(CONTRACT.to_json()) == CONTRACT
    assert CONTRACT.rank_axis == "rank"
    assert CONTRACT.optional_names == {"up.lora_down", "up.lora_up"}
    assert "adapters" not in json.loads(Contract(inputs=(X,), outputs=(Y,)).to_json())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"down": "x", "up": "x"}, "names layers and inputs, each once"),
        ({"down": "none"}, "'none' and 'up.lora_up' must be 3-D inputs"),
        ({"down": "up.lora_up", "up": "up.lora_down"}, r"expected \(batch, features, rank\) and"),
        ({"down": "x"}, r"expected \(batch, features, rank\) and"),
    ],
)
def test_a_contract_whose_adapters_do_not_fit_is_refused(
    changes: dict[str, str], complaint: str
) -> None:
    pair = AdapterPair(**{"module": "up", "down": "up.lora_down", "up": "up.lora_up", **changes})
    with pytest.raises(ValueError, match=complaint):
        Contract(inputs=(X, DOWN, UP), adapters=(pair,), **OPTIONS)
