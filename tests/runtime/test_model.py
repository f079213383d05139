from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import ArtifactError, Contract, Model, RunError, TensorSpec, load
from causal_onnx.runtime.artifact.golden import GoldenCase, GoldenSet
from causal_onnx.runtime.contract import GOLDEN_KEY, CachePair
from tests.runtime.artifacts import fixture, metadata


@pytest.fixture(scope="module")
def one_head() -> Model:
    return load(fixture("one_head"))


def random_input(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("seq", [1, 2, 3, 13, 16])
def test_changing_the_future_leaves_the_past_bit_identical(
    one_head: Model, batch: int, seq: int
) -> None:
    x = random_input(batch, seq, 8)
    y = one_head(x)
    x[:, seq // 2 :] += 1
    assert y.shape == (batch, seq, 8)
    assert one_head(x)[:, : seq // 2].tobytes() == y[:, : seq // 2].tobytes()
    assert not np.array_equal(one_head(x), y)


def test_without_a_batch_axis_the_output_has_none(one_head: Model) -> None:
    x = random_input(5, 8)
    assert one_head(x).tobytes() == one_head(x[None])[0].tobytes()
    assert one_head(x).shape == (5, 8)


def test_the_batch_axis_is_taken_from_where_it_is() -> None:
    model = load(fixture("seq_first"))
    x = random_input(5, 4)
    np.testing.assert_allclose(model(x), np.cumsum(x, axis=0), rtol=1e-6)
    assert model(x).shape == (5, 4)
    assert model(random_input(5, 1, 4)).shape == (5, 1, 4)


def test_inputs_are_not_changed_and_outputs_are_new(one_head: Model) -> None:
    x = random_input(2, 3, 8)
    before = x.copy()
    first = one_head(x)
    kept = first.copy()
    one_head(random_input(2, 3, 8, seed=1))
    np.testing.assert_array_equal(x, before)
    np.testing.assert_array_equal(first, kept)


def test_read_only_and_strided_inputs_give_the_same_bits(one_head: Model) -> None:
    x = random_input(2, 6, 8)
    frozen = x.copy()
    frozen.flags.writeable = False
    expected = one_head(x).tobytes()
    for same in (frozen, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x.astype(">f4")):
        assert one_head(same).tobytes() == expected


def test_a_request_that_breaks_the_contract_is_refused(one_head: Model) -> None:
    with pytest.raises(ValueError, match="this model accepts at most 16"):
        one_head(random_input(1, 17, 8))
    with pytest.raises(ValueError, match="has dtype float64, expected float32"):
        one_head(np.zeros((1, 3, 8)))


def test_casting_and_the_check_for_finite_values_are_options_of_load() -> None:
    model = load(fixture("one_head"), cast=True, check_finite=True)
    x = random_input(1, 3, 8)
    assert model(x.astype(np.float64)).tobytes() == model(x).tobytes()
    x[0, 1, 2] = np.nan
    with pytest.raises(ValueError, match=r"holds nan at \[0, 1, 2\]"):
        model(x)


def test_token_ids_outside_the_vocabulary_do_not_reach_the_session() -> None:
    model = load(fixture("decoder"))
    assert model([3, 1, 4]).shape == (3, 8)
    with pytest.raises(ValueError, match=r"the id 11 at \[2\], expected ids in \[0, 11\)"):
        model([3, 1, 11])


class TestSeveralOutputs:
    def test_run_gives_all_by_name(self) -> None:
        model = load(fixture("cached"))
        x, past = random_input(2, 3, 4), random_input(2, 2, 4, seed=1)
        mask = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
        got = model.run(x, attention_mask=mask, past=past)
        assert list(got) == ["y", "present"]
        np.testing.assert_array_equal(got["present"], np.concatenate([past, x], axis=1))
        np.testing.assert_allclose(got["y"], x + np.array([5, 3])[:, None, None], rtol=1e-6)

    def test_an_empty_past_is_a_request_like_any_other(self) -> None:
        got = load(fixture("cached")).run(
            random_input(1, 1, 4), random_input(1, 0, 4), np.ones((1, 1), np.int64)
        )
        assert got["present"].shape == (1, 1, 4)

    def test_calling_is_refused_and_points_to_run(self) -> None:
        model = load(fixture("cached"))
        with pytest.raises(ValueError, match=r"2 outputs .*\(y, present\); call model\.run"):
            model(random_input(1, 1, 4), random_input(1, 0, 4), np.ones((1, 1), np.int64))


class Recording:
    """A session that writes down which outputs it was asked for."""

    def __init__(self, session: Any, asked: list[list[str]]) -> None:
        self._session, self._asked = session, asked

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> Any:
        self._asked.append(names)
        return self._session.run(names, feeds)


def test_the_cache_is_no_output_of_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(fixture("cached")).contract
    cache = (CachePair(past="past", present="present"),)
    model = load(fixture("cached"), contract=replace(whole, cache=cache))
    x, mask = random_input(1, 3, 4), np.ones((1, 3), np.int64)
    np.testing.assert_allclose(model(x, mask), x + 3, rtol=1e-6)
    asked = []
    monkeypatch.setattr(model.runner, "session", Recording(model.runner.session, asked))
    model(x, mask)
    assert asked == [["y"]]
    step = model.run(x, mask)
    more = model.run(x, np.ones((1, 6), np.int64), past=step["present"])
    assert more["present"].shape == (1, 6, 4)


def test_run_and_call_agree_on_one_output(one_head: Model) -> None:
    x = random_input(1, 3, 8)
    assert one_head.run(x=x)["y"].tobytes() == one_head(x=x).tobytes()


def test_half_precision_and_bool_pass_through() -> None:
    x = np.array([[1, 2, 3]], np.float16)
    got = load(fixture("half"))(x, np.array([[True, False, True]]))
    assert got.dtype == np.float16
    assert got.tolist() == [[1, 0, 3]]


class TestBfloat16:
    def test_it_is_taken_as_float32_if_asked_and_given_as_float32(self) -> None:
        model = load(fixture("bfloat16"), cast=True)
        got = model.run(np.array([[1.5, 1 + 2**-9]], np.float32), [[0, 1]])
        assert {name: value.dtype.name for name, value in got.items()} == {
            "y": "float32",
            "wide": "float32",
        }
        # 1 + 2^-9 rounds to 1 on the way in.
        assert got["wide"].tolist() == got["y"].tolist() == [[2.25, 2]]

    def test_it_is_refused_otherwise(self) -> None:
        with pytest.raises(ValueError, match="has dtype float32, expected bfloat16; load the"):
            load(fixture("bfloat16")).run(np.ones((1, 1), np.float32), [[0]])


class TestSelfTest:
    def test_a_sound_file_passes(self, one_head: Model) -> None:
        report = one_head.selftest()
        assert report.passed
        assert len(report.cases) == 3
        assert 0 < report.max_error < report.tolerance == 1e-5
        assert report.to_dict()["passed"]
        assert report.device == "cpu"

    def test_a_changed_weight_is_found(self) -> None:
        content = fixture("one_head").read_bytes()
        weight = np.random.default_rng(2).standard_normal((8, 8)) / np.sqrt(8)
        weight = weight.astype(np.float32)
        assert content.count(weight.tobytes()) == 1
        report = load(content.replace(weight.tobytes(), (weight * 1.001).tobytes())).selftest()
        assert not report.passed
        assert 1e-4 < report.max_error < 1e-2

    def test_an_output_of_another_shape_is_found(self) -> None:
        x = random_input(1, 3, 8)
        golden = GoldenSet(
            cases=[GoldenCase.record({"x": x}, {"y": random_input(1, 2, 8)})], tolerance=1e-5
        )
        foreign = fixture("foreign").read_bytes() + metadata(GOLDEN_KEY, golden.to_json())
        report = load(foreign, contract=load(fixture("one_head")).contract).selftest()
        assert not report.passed
        assert report.max_error == np.inf
        document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert document["max_error"] is document["cases"][0]["error"] is None

    def test_golden_vectors_of_another_model_are_refused(self) -> None:
        case = GoldenCase.record({"z": np.zeros(1, np.float32)}, {"y": np.zeros(1, np.float32)})
        golden = GoldenSet(cases=[case], tolerance=1e-5)
        content = fixture("decoder").read_bytes() + metadata(GOLDEN_KEY, golden.to_json())
        message = "golden vectors in .* do not fit its contract: unknown input 'z'"
        with pytest.raises(ArtifactError, match=message):
            load(content).selftest()

    def test_a_file_without_golden_vectors_cannot_be_tested(self) -> None:
        with pytest.raises(ArtifactError, match="carries no golden vectors to replay"):
            load(fixture("decoder")).selftest()


def test_what_the_file_says_is_given(one_head: Model) -> None:
    assert one_head.source["class"] == "OneHead"
    assert one_head.certificate == {"verdict": "causal"}
    assert one_head.contract.unbatched
    assert one_head.device == "cpu"
    assert "one_head.onnx on cpu: x: float32 (batch, seq, 8) -> y" in repr(one_head)


def test_a_failure_inside_onnxruntime_is_one_error_with_the_shapes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    promised = load(fixture("decoder")).contract
    ids = TensorSpec(name="input_ids", dtype="int64", axes=("batch", "seq"))  # no vocabulary
    model = load(fixture("decoder"), contract=Contract(inputs=(ids,), outputs=promised.outputs))
    with pytest.raises(RunError, match=r"failed on .*decoder\.onnx with input_ids \(1, 2\): .*12"):
        model(np.array([[1, 12]]))
    assert capfd.readouterr() == ("", "")
    assert model(np.array([[1, 10]])).shape == (1, 2, 8)


def test_many_threads_get_the_bits_that_one_thread_gets() -> None:
    model = load(fixture("one_head"), threads=2)
    inputs = [random_input(1 + i % 5, 1 + i % 16, 8, seed=i) for i in range(160)]
    expected = [model(x).tobytes() for x in inputs]
    with ThreadPoolExecutor(16) as pool:
        assert [y.tobytes() for y in pool.map(model, inputs)] == expected


class TestPickle:
    def test_the_path_and_the_options_are_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(fixture("one_head").parent)
        stored = pickle.dumps(load("one_head.onnx", cast=True))
        monkeypatch.chdir(tmp_path)
        model = pickle.loads(stored)
        assert model(np.zeros((3, 8))).shape == (3, 8)
        assert len(stored) < 1000

    def test_bytes_and_a_contract_are_kept(self) -> None:
        promised = load(fixture("one_head")).contract
        model = load(fixture("foreign").read_bytes(), contract=promised)
        again = pickle.loads(pickle.dumps(model))
        assert again.contract == promised
        x = random_input(2, 3, 8)
        assert again(x).tobytes() == model(x).tobytes()


FORKING = """
import os, sys
import numpy as np
from causal_onnx.runtime import RunError, load

model = load(sys.argv[1])
x = np.ones((1, 3, 8), np.float32)
model(x)
if os.fork() == 0:
    try:
        model(x)
    except RunError as error:
        print(error, flush=True)
        again = load(sys.argv[1])
        print(again(x).shape, flush=True)
    os._exit(0)
os.wait()
model(x)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_to_load_the_model_itself() -> None:
    done: Any = subprocess.run(
        [sys.executable, "-c", FORKING, str(fixture("one_head"))],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "was loaded before os.fork(), which does not copy" in done.stdout
    assert done.stdout.endswith("(1, 3, 8)\n")
