from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import ArtifactError, Contract, TensorSpec, load
from causal_onnx.runtime.contract import CONTRACT_KEY, CachePair
from causal_onnx.runtime.session.ort import import_onnxruntime
from tests.runtime.artifacts import field, fixture, metadata
from tests.runtime.onnx_bytes import model

X = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)


def contract(
    *,
    name: str = "x",
    dtype: str = "float32",
    axes: tuple[str | int, ...] = ("batch", "seq", 8),
    output: str = "y",
) -> Contract:
    return Contract(
        inputs=(TensorSpec(name=name, dtype=dtype, axes=axes),),
        outputs=(TensorSpec(name=output, dtype="float32", axes=("batch", "seq", 8)),),
    )


def test_a_path_a_text_and_bytes_give_the_same_model() -> None:
    path = fixture("one_head")
    results = [load(source)(X) for source in (path, str(path), path.read_bytes())]
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()


def test_the_ending_of_the_name_does_not_choose_the_format(tmp_path: Path) -> None:
    path = shutil.copy(fixture("one_head"), tmp_path / "model.ort")
    assert load(path).selftest().passed


def test_a_file_of_another_exporter_needs_a_contract() -> None:
    with pytest.raises(ArtifactError, match=r"carries no contract: .*load\(path, contract="):
        load(fixture("foreign"))
    assert load(fixture("foreign"), contract=contract())(X).shape == X.shape


def test_a_contract_that_is_given_replaces_the_one_in_the_file() -> None:
    model = load(fixture("one_head"), contract=contract())
    assert model.contract.max_seq_len is None
    assert model(np.zeros((1, 50, 8), np.float32)).shape == (1, 50, 8)


@pytest.mark.parametrize(
    ("promised", "message"),
    [
        (contract(name="z"), "its inputs are z, those of the graph are x"),
        (contract(output="z"), "its outputs are z, those of the graph are y"),
        (contract(dtype="float64"), r"float64 .*the graph has float32 .*: dtype differs"),
        (contract(axes=("seq", 8)), r"graph has float32 \(batch_size, .*: rank differs"),
        (contract(axes=("batch", "seq", 9)), "axis 2 differs"),
        (contract(axes=("batch", "seq", "past_seq")), "axis 2 differs"),
    ],
)
def test_a_contract_that_does_not_fit_the_graph_is_refused(
    promised: Contract, message: str
) -> None:
    with pytest.raises(ArtifactError, match=f"the contract does not fit .*foreign.*{message}"):
        load(fixture("foreign"), contract=promised)


def test_a_contract_must_name_every_input_but_not_every_output() -> None:
    whole = load(fixture("cached")).contract
    fewer = Contract(inputs=whole.inputs, outputs=whole.outputs[:1])
    assert load(fixture("cached"), contract=fewer).contract == fewer
    with pytest.raises(ArtifactError, match="those of the graph are x, past, attention_mask"):
        load(fixture("cached"), contract=Contract(inputs=whole.inputs[:1], outputs=whole.outputs))


def test_a_contract_of_shortened_outputs_needs_the_input_that_asks_for_them() -> None:
    whole = load(fixture("cached")).contract
    cache = (CachePair(past="past", present="present"),)
    promised = replace(whole, cache=cache, mask="attention_mask", last_only="y")
    with pytest.raises(ArtifactError, match=r"input 'last_only', bool, .* of the graph are none"):
        load(fixture("cached"), contract=promised)


def test_an_axis_may_be_narrower_in_the_contract_than_in_the_graph() -> None:
    model = load(fixture("foreign"), contract=contract(axes=("batch", 5, 8)))
    assert model(X).shape == X.shape
    with pytest.raises(ValueError, match="axis 1 must be 5, got 4"):
        model(X[:, :4])


def test_a_source_of_one_length_has_it_fixed_in_the_graph() -> None:
    model = load(fixture("fixed_length"))
    assert model(np.ones((2, 3), np.float32)).shape == (2, 3)
    with pytest.raises(ValueError, match="no fewer than 3"):
        model(np.ones((2, 2), np.float32))


def test_the_contract_must_be_a_contract() -> None:
    with pytest.raises(TypeError, match="contract must be a Contract, got dict"):
        load(fixture("foreign"), contract={})  # type: ignore[arg-type]


def test_a_contract_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    newer = metadata(CONTRACT_KEY, '{"format": 2, "tensors": []}')
    path.write_bytes(fixture("foreign").read_bytes() + newer)
    with pytest.raises(ArtifactError, match=r"of format 2, .* reads up to 1\. Update it"):
        load(path)


@pytest.mark.parametrize("version", ["1.29.1", "1.28.0", "1.3", "0.31"])
def test_a_file_that_needs_a_newer_onnxruntime_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    path, needs = tmp_path / "m.onnx", replace(contract(), min_onnxruntime="1.30")
    path.write_bytes(fixture("foreign").read_bytes() + metadata(CONTRACT_KEY, needs.to_json()))
    monkeypatch.setattr(import_onnxruntime(), "__version__", version)
    message = (
        rf"m\.onnx needs onnxruntime 1\.30 or newer, and this is {re.escape(version)}: .*"
        r"pip install -U 'onnxruntime>=1\.30'; or export with target='portable'"
    )
    with pytest.raises(ArtifactError, match=message):
        load(path)


def changed(name: str, old: bytes, new: bytes) -> bytes:
    content = fixture(name).read_bytes()
    assert content.count(old) == 1
    return content.replace(old, new)


OPSET_20 = field(8, field(1, "") + field(2, 20))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            field(1, 99) + fixture("one_head").read_bytes()[2:],
            r"IR version: 99, max supported IR version: \d+ \(update onnxruntime",
            id="IR version",
        ),
        pytest.param(
            changed("one_head", OPSET_20, field(8, field(1, "") + field(2, 99))),
            "or export with a lower opset",
            id="opset",
        ),
        pytest.param(
            changed("one_head", b"Softmax", b"Hardmox"),
            "No Op registered for Hardmox",
            id="operator",
        ),
        pytest.param(
            changed("grouped_query", b"GroupQueryAttention", b"GroupQueryBttention"),
            "GroupQueryBttention.* is not a registered .*does not have",
            id="contrib operator",
        ),
        pytest.param(
            field(1, 10)
            + OPSET_20
            + field(7, b"\x0a\x7f")
            + metadata(CONTRACT_KEY, contract().to_json()),
            "the file is damaged; export or download it again",
            id="graph",
        ),
    ],
)
def test_a_model_that_onnxruntime_refuses_is_refused_with_the_remedy(
    content: bytes, message: str
) -> None:
    with pytest.raises(ArtifactError, match=message) as caught:
        load(content, trusted=True)  # else most are refused before
    assert "does not load the model given as bytes: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "::" not in str(caught.value)  # no C++ names


class TestExternalData:
    def test_weights_beside_the_file_are_found(self) -> None:
        x = np.arange(8, dtype=np.float32).reshape(2, 4)
        np.testing.assert_array_equal(load(fixture("external"))(x), x)

    def test_missing_weights_are_named(self, tmp_path: Path) -> None:
        path = shutil.copy(fixture("external"), tmp_path)
        with pytest.raises(ArtifactError, match="its weights lie in a file beside it"):
            load(path)

    def test_bytes_read_nothing_from_the_current_folder(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(fixture("external").parent)
        with pytest.raises(ArtifactError, match="a file beside it, which must be there; bytes"):
            load(fixture("external").read_bytes())


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_a_number_of_threads_that_makes_no_sense_is_refused(threads: object) -> None:
    with pytest.raises(ValueError, match="threads must be a positive integer or None, got"):
        load(fixture("one_head"), threads=threads)  # type: ignore[arg-type]


def test_an_error_that_quotes_damaged_bytes_is_clear_too() -> None:
    damaged = fixture("one_head").read_bytes().replace(b"MatMul", b"MatMu\xff")
    with pytest.raises(ArtifactError, match=r"onnxruntime .* does not load the model given as"):
        load(damaged, trusted=True)
    with pytest.raises(ArtifactError, match="'op_type' of a node is not UTF-8"):
        load(damaged)


def test_an_axis_whose_name_is_no_text_is_refused_where_the_scan_is_left_out() -> None:
    content = model()
    damaged = content.replace(field(2, "batch"), field(2, b"b\xfftch"), 1)
    assert damaged != content
    with pytest.raises(ArtifactError, match="a name of an input, an output or an axis that is no"):
        load(damaged, trusted=True)


@pytest.mark.parametrize("option", ["spinning", "flush_denormals", "huge_pages"])
def test_a_switch_must_be_a_bool(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} must be True or False, got 'yes'"):
        load(fixture("one_head"), **{option: "yes"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spinning", "allowed", "limited"), [(None, "1", True), (True, "1", False), (False, "0", False)]
)
def test_settings_reach_the_session(spinning: bool | None, allowed: str, limited: bool) -> None:
    model = load(fixture("one_head"), threads=3, spinning=spinning)
    options = model.runner.session.get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == allowed
    assert options.get_session_config_entry("session.set_denormal_as_zero") == "1"
    if limited:
        assert options.get_session_config_entry("session.intra_op.spin_duration_us") == "100"
    else:
        with pytest.raises(RuntimeError, match="spin_duration_us"):
            options.get_session_config_entry("session.intra_op.spin_duration_us")
