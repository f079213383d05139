from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.cli.main import main
from tests.cli.onnx_file import make_cached_contract, make_contract, random_input, write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.onnx")


def save(path: Path, array: np.ndarray) -> str:
    np.save(path, array)
    return str(path)


def test_writes_what_the_model_computes(model: Path, tmp_path: Path) -> None:
    x = random_input()
    code = main(["run", str(model), save(tmp_path / "x.npy", x), "-o", str(tmp_path / "y.npy")])
    assert code == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), np.cumsum(x, axis=1), rtol=1e-6)


def test_takes_inputs_by_name_from_npz_and_from_options(model: Path, tmp_path: Path) -> None:
    x = random_input()
    np.savez(tmp_path / "in.npz", x=x)
    named = f"x={save(tmp_path / 'x.npy', x)}"
    assert main(["run", str(model), str(tmp_path / "in.npz"), "-o", str(tmp_path / "a.npy")]) == 0
    assert main(["run", str(model), "--input", named, "-o", str(tmp_path / "b.npz")]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npz")["y"])


def test_several_outputs_go_into_one_npz(tmp_path: Path) -> None:
    model = write_model(tmp_path / "two.onnx", contract=make_contract(outputs=2), outputs=2)
    x = save(tmp_path / "x.npy", random_input())
    assert main(["run", str(model), x, "-o", str(tmp_path / "y.npz")]) == 0
    with np.load(tmp_path / "y.npz") as written:
        assert sorted(written.files) == ["y", "y_1"]


def test_several_outputs_do_not_fit_a_npy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "two.onnx", contract=make_contract(outputs=2), outputs=2)
    x = save(tmp_path / "x.npy", random_input())
    assert main(["run", str(model), x, "-o", str(tmp_path / "y.npy")]) == 1
    assert "has 2 outputs (y, y_1), an .npy file holds one" in capsys.readouterr().err
    assert not (tmp_path / "y.npy").exists()


def test_a_cache_is_kept_in_npz_and_left_out_of_npy(tmp_path: Path) -> None:
    model = write_model(tmp_path / "m.onnx", contract=make_cached_contract())
    x = save(tmp_path / "x.npy", random_input())
    assert main(["run", str(model), x, "-o", str(tmp_path / "y.npy")]) == 0
    assert np.load(tmp_path / "y.npy").shape == (2, 5, 3)
    assert main(["run", str(model), x, "-o", str(tmp_path / "y.npz")]) == 0
    with np.load(tmp_path / "y.npz") as written:
        assert sorted(written.files) == ["present", "y"]


def test_json_says_what_was_written(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = save(tmp_path / "x.npy", random_input(batch=2, seq=4))
    assert main(["run", str(model), x, "-o", str(tmp_path / "y.npy"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["outputs"] == {"y": {"dtype": "float32", "shape": [2, 4, 3]}}
    assert said["device"] == "cpu"


def test_float64_is_cast_only_when_asked(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(model), save(tmp_path / "x.npy", random_input().astype(np.float64))]
    arguments += ["-o", str(tmp_path / "y.npy")]
    assert main(arguments) == 1
    assert "pass x.astype('float32'), or convert it with --cast" in capsys.readouterr().err
    assert main([*arguments, "--cast"]) == 0


def test_pickles_are_never_loaded(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "exploded",))

    (tmp_path / "x.npy").write_bytes(pickle.dumps(Bomb()))
    np.save(tmp_path / "o.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    for name in ("x.npy", "o.npy"):
        assert main(["run", str(model), str(tmp_path / name), "-o", str(tmp_path / "y.npy")]) == 1
    said = capsys.readouterr().err
    assert "it does not begin like a numpy file" in said
    assert "it holds Python objects, which could run code" in said
    assert not (tmp_path / "exploded").exists()


def test_a_failed_run_leaves_the_old_output_and_nothing_else(model: Path, tmp_path: Path) -> None:
    x = save(tmp_path / "x.npy", random_input(seq=17))  # longer than the limit
    before = sorted(item.name for item in tmp_path.iterdir())
    output = tmp_path / "y.npy"
    output.write_bytes(b"old")
    assert main(["run", str(model), x, "-o", str(output)]) == 1
    assert output.read_bytes() == b"old"
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted([*before, "y.npy"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["x.npy", "-o", "y.txt"], 2, "-o takes an .npy or .npz file, got 'y.txt'"),
        (["x.npy", "-o", "x.npy"], 2, "would overwrite what is read from it"),
        (["x.npy", "-o", "model.onnx"], 2, "-o takes an .npy or .npz file"),
        (["missing.npy", "-o", "y.npy"], 1, "there is no file missing.npy"),
        (["x.npy", "-o", "nowhere/y.npy"], 1, "there is no folder nowhere"),
        (["other.npz", "-o", "y.npy"], 1, "there is no input z; the inputs are x: float32"),
        (["--input", "x.npy", "-o", "y.npy"], 2, "--input takes name=file.npy"),
        (["--input", "x=x.npy", "--input", "x=x.npy", "-o", "y.npy"], 2, "given twice"),
        (["-o", "y.npy"], 1, "got 0 of 1 inputs; missing: x"),
        (["x.npy", "x.npy", "-o", "y.npy"], 1, "got 2 positional inputs, expected at most 1"),
        (["x.npy", "-o", "y.npy", "--device", "tpu"], 1, "device must be"),
        (["x.npy", "-o", "y.npy", "--threads", "0"], 1, "threads must be a positive integer"),
        (["long.npy", "-o", "y.npy"], 1, "17"),
    ],
)
def test_wrong_requests_are_named(
    arguments: list[str],
    code: int,
    message: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", random_input())
    np.save("long.npy", random_input(seq=17))
    np.savez("other.npz", z=random_input())
    assert main(["run", model.name, *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert message in captured.err
