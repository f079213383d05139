"""attest and its certificate: inputs, verdicts, text, JSON, and what it does without PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from causal_onnx.export.attestation import attest
from causal_onnx.export.proof.certificate import Certificate
from causal_onnx.runtime.errors import ArtifactError
from tests.export.analysis.graphs import build
from tests.export.analysis.rule_cases import CASES, attend
from tests.runtime.foreign.files import unpack

CAUSAL = attend("c = LessOrEqual(j, i) m = Where(c, s, lowest)")
OPEN = attend("m = Identity(s)")


def test_a_file_a_proto_and_a_model_in_memory_give_one_verdict(tmp_path: Path) -> None:
    model = build(CAUSAL)
    onnx.save(model, tmp_path / "m.onnx")
    for source in (tmp_path / "m.onnx", str(tmp_path / "m.onnx"), model, ir.from_proto(model)):
        found = attest(source)
        assert found.is_causal
        assert found.every_length
        assert found.scope == "every length"
        assert found.dynamic.cases


def test_the_text_says_what_was_shown() -> None:
    text = str(attest(build(CAUSAL)))
    assert text.startswith("causal: every output at position t depends on inputs up to t")
    for part in ("every length", "x (batch, seq, 4), tokens", "causal (Softmax, one head of 4)"):
        assert part in text
    assert "the past stayed bit-identical" in text


MEMORY = "(float[a, b, 4] x, float[c, d, 4] memory) => (float[a, b, 4] y)"
POOLED = "one = Constant<value_ints = [1]>() m = ReduceMean(memory, one) y = Add(x, m)"


def test_an_axis_with_a_name_of_the_callers_own_is_free() -> None:
    axes = {"x": {0: "batch", 1: "seq"}, "memory": {0: "batch", 1: "memory"}}
    found = attest(build(POOLED, MEMORY), axes=axes)
    assert found.is_causal
    assert found.every_length
    assert found.reason.endswith("depends on inputs up to t, whatever stands in memory")


def test_positions_are_not_free_where_the_caller_names_them() -> None:
    axes = {"x": {0: "batch", 1: "frames"}, "memory": {0: "batch", 1: "seq"}}
    assert not attest(build(POOLED, MEMORY), axes=axes).is_causal


def test_a_rejection_names_node_operator_and_witness() -> None:
    found = attest(build(OPEN))
    assert found.verdict == "not_causal"
    assert found.offence is not None
    assert found.offence.op_type == "Softmax"
    assert "depends on position" in found.offence.witness
    assert "LEAK" in str(found)
    assert not found.every_length


@pytest.mark.parametrize("body", [CAUSAL, OPEN], ids=["causal", "open"])
def test_a_certificate_survives_json(body: str) -> None:
    found = attest(build(body))
    assert Certificate.from_json(found.to_json()) == found
    assert Certificate.from_dict(json.loads(found.to_json())) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("{}", "no format number"),
        ('{"format": 999}', "of format 999"),
        ('{"format": 1}', "damaged"),
    ],
)
def test_damaged_certificates_are_refused(text: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Certificate.from_json(text)


def test_a_verdict_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="verdict must be one of"):
        Certificate(verdict="maybe", scope="", reason="")


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no such file"):
        attest(tmp_path / "absent.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="holds no ONNX model"):
        attest(tmp_path / "noise.onnx")


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[str, int, int]] = []
    attest(build(CAUSAL), progress=lambda *step: seen.append(step))
    stages = list(dict.fromkeys(stage for stage, _, _ in seen))
    assert stages == ["read", "static", "attention", "dynamic"]
    assert all(done <= total for _, done, total in seen)
    assert max(done for stage, done, _ in seen if stage == "static") == next(
        total for stage, _, total in seen if stage == "static"
    )


def test_local_functions_are_looked_into() -> None:
    text = """
        <ir_version: 10, opset_import: ["": 18, "own": 1]>
        main (float[batch, seq, 4] x) => (float[batch, seq, 4] y) { y = own.mix(x) }
        <domain: "own", opset_import: ["": 18]>
        mix (a) => (b) { i = Constant <value_ints = [1]> () m = ReduceMean(a, i) b = Sub(a, m) }
    """
    found = attest(onnx.parser.parse_model(text))
    assert found.verdict == "not_causal"
    assert found.offence is not None
    assert found.offence.op_type == "ReduceMean"


BRANCH = """
    yes = Constant <value = bool {1}> ()
    y = If (yes) <then_branch = a () => (p) { p = Identity(h) },
                  else_branch = b () => (q) { q = Neg(h) }>
    h = HIDDEN
"""
"""onnxruntime sorts these nodes; what a branch reads is no input of its `If`."""


@pytest.mark.parametrize(
    ("hidden", "verdict"), [("Relu(x)", "causal"), ("Softmax <axis = 1> (x)", "not_causal")]
)
def test_nodes_behind_the_branch_that_reads_them_are_followed(hidden: str, verdict: str) -> None:
    found = attest(build(BRANCH.replace("HIDDEN", hidden)))
    assert found.verdict == verdict, str(found)
    assert found.dynamic.cases


def test_where_no_output_was_followed_no_run_is_said_to_agree(tmp_path: Path) -> None:
    found = attest(unpack("merged-bloom", tmp_path))
    assert (found.verdict, found.outputs) == ("undecided", ())
    assert "before it found the position axes" in found.dynamic.skipped
    assert "stayed bit-identical" not in str(found)


def test_an_output_of_the_last_position_is_causal_and_a_mean_is_not_proved() -> None:
    text = "(float[batch, seq, 4] x) => (float[batch, 4] y)"
    last = "i = Constant <value_int = -1> () y = Gather <axis = 1> (x, i)"
    found = attest(build(last, text))
    assert found.is_causal
    assert found.outputs[0].note == "is of the last position alone"
    mean = "a = Constant <value_ints = [1]> () y = ReduceMean <keepdims = 0> (x, a)"
    assert attest(build(mean, text)).verdict == "undecided"


def test_lengths_beyond_the_limit_are_left_out() -> None:
    table = np.tril(np.ones((40, 40), np.bool_)) | (np.arange(40) >= 20)
    body = attend("c = Slice(table, zeros, nn, both) m = Where(c, s, lowest)")
    arrays = {"table": table, "zeros": np.zeros(2, np.int64), "both": np.arange(2)}
    assert attest(build(body, **arrays)).verdict == "not_causal"
    within = attest(build(body, **arrays), max_seq_len=16)
    assert within.verdict == "causal"
    assert "seq <= 16" in within.scope
    with pytest.raises(ValueError, match="max_seq_len must be positive"):
        attest(build(body, **arrays), max_seq_len=0)


def test_random_graphs_are_not_checked_by_running() -> None:
    found = attest(build("r = RandomNormalLike(x) y = Add(x, r)"))
    assert not found.deterministic
    assert "different outputs" in found.dynamic.skipped


def test_the_place_in_the_source_is_shown() -> None:
    model = build(OPEN)
    node = next(n for n in model.graph.node if n.op_type == "Softmax")
    trace = 'File "/home/me/model.py", line 12, in forward\n    return scores.softmax(-1)'
    for key, value in (
        ("pkg.torch.onnx.name_scopes", "['', 'blocks.0', 'blocks.0.attn', 'softmax']"),
        ("pkg.torch.onnx.stack_trace", trace),
    ):
        node.metadata_props.add(key=key, value=value)
    offence = attest(model, dynamic=False).offence
    assert offence is not None
    assert offence.module == "blocks.0.attn"
    assert offence.line == "model.py:12 in forward: return scores.softmax(-1)"


def test_attest_needs_no_pytorch(tmp_path: Path) -> None:
    onnx.save(build(CAUSAL), tmp_path / "m.onnx")
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from causal_onnx.export import attest\n"
        f"print(attest({str(tmp_path / 'm.onnx')!r}).verdict)\n"
        "assert 'transformers' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "causal", done.stderr


def test_the_static_verdicts_of_all_cases_survive_json() -> None:
    for case in CASES[:10]:
        found = attest(case.model(), dynamic=False)
        assert Certificate.from_json(found.to_json()).verdict == case.verdict


def test_assumptions_have_a_kind_that_stands_in_the_json() -> None:
    case = next(case for case in CASES if case.name == "where_finite")
    found = attest(case.model(), dynamic=False)
    kinds = [item["kind"] for item in json.loads(found.to_json())["assumptions"]]
    assert kinds == ["finite_mask"]
    assert Certificate.from_json(found.to_json()) == found


def test_other_words_change_no_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "causal_onnx.export.analysis.rules.elementwise.ROUNDING_NOTE"
    body = attend(
        "p0 = Softmax <axis = -1> (s) c = LessOrEqual(j, i) f = Cast <to = 1> (c) p1 = Mul(p0, f) "
        "ax = Constant <value_ints = [-1]> () r = ReduceSum(p1, ax) m = Div(p1, r)"
    ).replace("p = Softmax <axis = -1> (m)", "p = Identity(m)")
    before = attest(build(body))
    monkeypatch.setattr(name, "in other words")
    after = attest(build(body))
    assert after.assumptions[0].text == "in other words"
    assert before.verdict == after.verdict == "causal"
    assert before.dynamic.tolerance == after.dynamic.tolerance > 0


def test_a_certificate_from_before_kinds_is_read() -> None:
    case = next(case for case in CASES if case.name == "where_finite")
    data = attest(case.model(), dynamic=False).to_dict()
    data = json.loads(json.dumps(data))
    for item in data["assumptions"]:
        del item["kind"]
    del data["confirmation"]
    found = Certificate.from_dict(data)
    assert [a.kind for a in found.assumptions] == ["other"]
    assert found.confirmation is None


def test_the_former_path_gives_the_same_function_and_hides_none() -> None:
    from causal_onnx import export
    from causal_onnx.export.attest import attest as former

    assert former is attest
    assert export.attest is attest
