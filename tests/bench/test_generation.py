"""The language model in whole runtimes: figures, tables, agreement, files; workers are made up."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from bench.agreement import DisagreementError, check_tokens
from bench.client import ROOT, WorkerError
from bench.figures import Figure, figures
from bench.generation import __main__ as command
from bench.generation import files, ours
from bench.generation import llama as llama_peer
from bench.generation.cases import LONG, TINY, Batch, Work, as_small_as
from bench.generation.files import Files, source_digest
from bench.generation.graphs import describe_graph
from bench.generation.run import Plan, Runner
from bench.generation.section import Section
from bench.generation.subjects import (
    Subject,
    agreeing,
    batch_subjects,
    llama,
    openvino,
    subjects_for,
)
from bench.generation.table import to_markdown
from bench.progress import Progress
from bench.rounds import RoundPolicy
from bench.sizes import SMALL
from tests.bench.generation import overhead, section, work
from tests.bench.llama import VOCAB as VOCAB_OF_LLAMA
from tests.bench.llama import fake_llama
from tests.runtime.artifacts import fixture
from tests.runtime.language import CONTEXT, VOCAB, language_model

POLICY = RoundPolicy(at_least=2, at_most=2, at_least_slow=2)
DECODE = Work(kind="decode", prompt=16, new=128)
PREFILL = Work(kind="prefill", prompt=8)


def test_work_counts_what_was_read_or_chosen() -> None:
    assert (PREFILL.tokens, DECODE.tokens) == (8, 128)
    assert (str(PREFILL), str(DECODE)) == ("prefill 8", "decode 128 after 16")
    for kind, new in (("prefill", 3), ("decode", 0)):
        with pytest.raises(ValueError, match=f"got prompt 4 and new {new} for '{kind}'"):
            Work(kind=kind, prompt=4, new=new)
    assert as_small_as(TINY, SMALL).num_layers == SMALL.num_layers


def test_figures_are_medians_over_sets_and_ratios_are_paired() -> None:
    sets = [{"a": [1.0, 1.0, 3.0], "b": [2.0, 4.0, 6.0]}, {"a": [2.0] * 3, "b": [2.0] * 3}]
    a, b = figures("row", sets, threads=2, clock="wall", amount=10)
    assert a.value == (5.0, 7.5, 10.0)
    assert a.better == {"b": (1.0, 1.5, 2.0)}
    assert b.better == {"a": (0.5, 0.75, 1.0)}
    assert (a.sets, a.rounds) == (2, 6)
    bytes_ = figures("row", [{"a": [2e6]}], threads=1, clock="cpu", amount=1e-6, unit="MB")
    assert bytes_[0].value == (2.0, 2.0, 2.0)


def test_a_section_survives_json_and_unknown_fields_are_refused() -> None:
    made = section([*work("prefill 512", {"ours-fp32": 1.0, "tuned-fp32": 2.0}), *overhead(80)])
    data = json.loads(json.dumps(made.to_dict()))
    assert Section.from_dict(data) == made
    with pytest.raises(ValueError, match=r"Section has the fields .* unknown: more"):
        Section.from_dict({**data, "more": 1})


def test_the_table_marks_losses_and_sets_int4_beside_pytorch() -> None:
    seconds = {"ours-fp32": 1.0, "ours-int4": 0.25, "tuned-fp32": 0.5, "eager-fp32": 2.0}
    text = to_markdown(section([*work("prefill 512", seconds), *overhead(80)]))
    assert "| onnxruntime-genai fp32, tuned | 200 | **0.50** (0.50-0.50) |  |" in text
    assert "| PyTorch + transformers fp32 | 50 | 2.00 (2.00-2.00) | 8.00 (8.00-8.00) |" in text
    assert "busy" not in text
    assert "**The machine was busy" in to_markdown(section([], load=1.0))


def test_every_precision_has_a_reference() -> None:
    peers = (*llama(("q4_0",), Path("llama-server")), *openvino(("q4_0",)))
    assert agreeing((*subjects_for(("fp32", "int4", "w8a8")), *peers)) == {
        "eager-fp32": ("ours-fp32", "tuned-fp32", "ours-w8a8", "llama-q4_0", "openvino-q4_0"),
        "tuned-int4": ("ours-int4",),
    }


def test_peers_that_continue_several_sequences_do_so_beside_ours() -> None:
    found = batch_subjects((*subjects_for(("fp32",)), *llama(("f32",), Path("llama-server"))))
    assert [one.name for one in found] == ["ours-fp32", "apart-fp32", "llama-f32"]
    assert [one.options["together"] for one in found] == [True, False, True]


def test_one_other_token_is_found() -> None:
    tokens = np.arange(6)
    check_tokens("ours", tokens, tokens.copy(), where="here")
    other = tokens.copy()
    other[4] = 9
    with pytest.raises(DisagreementError, match=r"ours at here chose other tokens .* 1 of 6, .*4"):
        check_tokens("ours", other, tokens, where="here")
    with pytest.raises(DisagreementError, match=r"chose \(5,\) tokens, the reference \(6,\)"):
        check_tokens("ours", tokens[:5], tokens, where="here")


class MadeUpWorker:
    """Answers like a worker: so many seconds a call, and this output."""

    seconds: ClassVar[dict[str, float]] = {}
    outputs: ClassVar[dict[str, list[Any]]] = {}
    lives: ClassVar[dict[str, int]] = {}
    """Requests that a subject answers before it dies."""

    def __init__(self, factory: str, *, name: str, **_: Any) -> None:
        self.name = name

    def close(self) -> None:
        pass

    def ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        if self.name in self.lives:
            self.lives[self.name] -= 1
            if self.lives[self.name] < 0:
                raise WorkerError(f"{self.name}: it died")
        if operation == "save":
            np.save(arguments["path"], np.array(self.outputs.get(self.name, [[2.0, 1.0]])))
            return {}
        seconds = [self.seconds.get(self.name, 1.0)] * 3
        return {"seconds": seconds[0], "wall_s": seconds, "cpu_s": seconds}


def runner(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *works: Work,
    subjects: Sequence[Subject] = subjects_for(("fp32", "int4")),
) -> Runner:
    monkeypatch.setattr("bench.subject.Worker", MadeUpWorker)
    plan = Plan(sizes=TINY, folder=folder, works=works, sets=2, policy=POLICY, subjects=subjects)
    made = Files(peers=folder, ours=folder, tiny=folder, module=folder)
    return Runner(plan, made, Progress(1.0, 1))


def test_ratios_say_how_many_times_faster_ours_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MadeUpWorker, "seconds", {"ours-fp32": 0.5})
    made = runner(tmp_path, monkeypatch, PREFILL)
    mine = next(one for one in made.works(1) if one.subject == "ours-fp32")
    assert (mine.value[1], mine.better["tuned-fp32"][1]) == (16.0, 2.0)
    together = made.batches(2)[0]
    assert (together.row, together.subject) == ("batch", "ours-fp32")
    assert together.better["apart-fp32"][1] == together.better["ours-int4"][1] == 2.0


@pytest.mark.parametrize(
    ("subject", "doing", "output", "message"),
    [
        ("ours-fp32", PREFILL, [[2.002, 1.0]], "ours-fp32 at prefill 8 differs .* by 1.0e-03"),
        ("ours-int4", PREFILL, [[3.0, 1.0]], "ours-int4 at prefill 8 differs .* by 5.0e-01"),
        ("ours-fp32", DECODE, [[3.0, 1.0]], "ours-fp32 at decode 128 after 16 chose other tokens"),
    ],
)
def test_ours_is_not_timed_where_it_disagrees(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    subject: str,
    doing: Work,
    output: list[float],
    message: str,
) -> None:
    monkeypatch.setattr(MadeUpWorker, "outputs", {subject: output})
    with pytest.raises(DisagreementError, match=message):
        runner(tmp_path, monkeypatch, doing).works(1)


@pytest.mark.parametrize(
    ("subject", "doing", "output", "message"),
    [
        ("tuned-fp32", PREFILL, [[3.0, 1.0]], "differs from the reference by 5.0e-01"),
        ("tuned-fp32", DECODE, [[3.0, 1.0]], "chose other tokens"),
        ("llama-q4_0", PREFILL, [1], "chose token 1, which falls short .* by 5.0e-01"),
    ],
)
def test_a_peer_that_disagrees_is_left_out_with_the_reason_and_the_rest_is_timed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    subject: str,
    doing: Work,
    output: list[Any],
    message: str,
) -> None:
    monkeypatch.setattr(MadeUpWorker, "outputs", {subject: output})
    peers = llama(("q4_0",), Path("llama-server")) if subject.startswith("llama") else ()
    made = runner(tmp_path, monkeypatch, doing, subjects=(*subjects_for(("fp32",)), *peers))
    found = made.works(1)
    assert {one.subject for one in found} == {"ours-fp32", "tuned-fp32", "eager-fp32"} - {subject}
    assert re.search(message, made.left_out[subject])
    assert all(subject not in one.better for one in found)


def test_a_peer_that_dies_in_a_later_set_has_no_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MadeUpWorker, "lives", {"tuned-fp32": 5})
    made = runner(tmp_path, monkeypatch, PREFILL, subjects=subjects_for(("fp32",)))
    assert {one.subject for one in made.works(1)} == {"ours-fp32", "eager-fp32"}
    assert made.left_out == {"tuned-fp32": "tuned-fp32: it died"}


def test_a_part_that_fails_leaves_its_reason_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runner(tmp_path, monkeypatch, PREFILL)

    def fail() -> list[Figure]:
        raise RuntimeError("no PyTorch here")

    assert made.part("starts", fail) == []
    assert made.left_out == {"starts": "no PyTorch here"}
    assert made.part("works", lambda: made.works(1))


def test_a_file_that_cannot_be_made_leaves_its_peers_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(peers: Path, kind: str, note: object) -> None:
        if kind == "q4_0":
            raise RuntimeError("no gguf package")

    monkeypatch.setattr("bench.generation.run.make_gguf", fail)
    subjects = (*subjects_for(("fp32",)), *llama(("q4_0", "q8_0"), Path("llama-server")))
    made = runner(tmp_path, monkeypatch, PREFILL, subjects=subjects)
    made.find_peers()
    assert made.left_out == {"llama-q4_0": "no gguf package"}
    assert "llama-q8_0" in [one.name for one in made.subjects]


def test_long_prompts_are_read_once_and_not_by_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects = (*subjects_for(("fp32",)), *llama(("f32",), Path("llama-server")))
    works = (PREFILL, Work(kind="prefill", prompt=LONG + 1))
    found = runner(tmp_path, monkeypatch, *works, subjects=subjects).works(1)
    sets = {(one.row, one.subject): one.sets for one in found}
    assert sets["prefill 8", "llama-f32"] == 2
    assert sets["prefill 1025", "ours-fp32"] == 1
    assert ("prefill 1025", "llama-f32") not in sets


def test_a_batch_that_chooses_other_tokens_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MadeUpWorker, "outputs", {"ours-fp32": [[7.0, 1.0]]})
    with pytest.raises(DisagreementError, match="ours-fp32 at the batch chose other tokens"):
        runner(tmp_path, monkeypatch, PREFILL).batches(1)


def test_llama_is_asked_for_the_same_work(tmp_path: Path) -> None:
    given = {"threads": 1, "folder": str(tmp_path), "ours": ""}
    given |= {"sizes": {"vocab_size": VOCAB_OF_LLAMA, "max_seq_len": 64}}
    given |= {"kind": "q8_0", "program": str(fake_llama(tmp_path))}
    (tmp_path / "gguf-q8_0").mkdir()
    ids = ours.token_ids(9, VOCAB_OF_LLAMA)[0]
    prepare = llama_peer.generation(**given)
    prefill = prepare({"kind": "prefill", "prompt": 9, "new": 0})
    assert prefill().shape == (1, VOCAB_OF_LLAMA)
    assert prefill().argmax() == ids[-1]
    decode = prepare({"kind": "decode", "prompt": 9, "new": 12})
    assert decode().tolist() == [ids[-1]] * 12
    together = llama_peer.generation(**given, together=True)
    assert together({"rows": 3, "prompt": 3, "new": 5})().tolist() == [[x] * 5 for x in ids[2::3]]


def options(folder: Path) -> dict[str, Any]:
    shutil.copy(fixture("language"), folder / "fp32.onnx")
    sizes = {"vocab_size": VOCAB, "max_seq_len": CONTEXT}
    return {
        "threads": 1,
        "folder": "",
        "ours": str(folder),
        "sizes": sizes,
        "precision": "fp32",
    }


def test_our_subject_reads_and_chooses_what_the_model_does(tmp_path: Path) -> None:
    prepare = ours.generation(**options(tmp_path))
    model = language_model()
    ids = ours.token_ids(9, VOCAB)
    prefill = prepare({"kind": "prefill", "prompt": 9, "new": 0})
    decode = prepare({"kind": "decode", "prompt": 9, "new": 12})
    for _ in range(2):  # a call leaves nothing behind that the next one would see
        np.testing.assert_allclose(prefill(), model(ids)[:, -1], atol=1e-5)
        found = model.generate(ids[0].tolist(), max_new_tokens=12)
        assert decode().tolist() == list(found.ids)


def test_our_batch_is_the_same_together_and_apart(tmp_path: Path) -> None:
    batch = {"rows": 3, "prompt": 4, "new": 6}
    together, apart = (
        ours.batch(**options(tmp_path), together=value)(batch)() for value in (True, False)
    )
    assert together.shape == (3, 6)
    assert (together == apart).all()


def test_files_are_kept_until_the_sources_change(tmp_path: Path) -> None:
    for part in files.SOURCES:
        (tmp_path / part).mkdir()
        (tmp_path / part / "a.py").write_text("x = 1\n")
    before = source_digest(tmp_path)
    (tmp_path / "bench.py").write_text("y = 1\n")
    assert source_digest(tmp_path) == before
    (tmp_path / "export" / "a.py").write_text("x = 2\n")
    assert source_digest(tmp_path) != before


def test_a_folder_is_filled_once_and_again_after_an_interruption(tmp_path: Path) -> None:
    made: list[str] = []

    def fail() -> None:
        (tmp_path / "model" / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files._once(tmp_path / "model", made.append, fail)
    for _ in range(2):
        files._once(tmp_path / "model", made.append, lambda: made.append("filled"))
    assert made.count("filled") == 1
    assert not (tmp_path / "model" / "half").exists()


def test_files_of_older_sources_go_and_the_peers_stay(tmp_path: Path) -> None:
    for name in ("ours-old", "ours-new", "32M-cpu-abc"):
        (tmp_path / name).mkdir()
    (tmp_path / "ours-fp32.log").touch()
    files._forget_older(tmp_path, tmp_path / "ours-new")
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["32M-cpu-abc", "ours-fp32.log", "ours-new"]


@pytest.mark.parametrize(
    ("table", "said"),
    [("s", "the embedding too, one copy with the head"), ("t", "the embedding too, a copy")],
)
def test_what_a_file_holds_in_few_bits_is_read_from_it(
    tmp_path: Path, table: str, said: str
) -> None:
    import onnx
    from onnx import TensorProto, helper

    scales = [
        helper.make_tensor(name, TensorProto.FLOAT, [4, 1], [1.0] * 4) for name in ("s", "t", "w")
    ]
    products = {"K": 32, "N": 4, "bits": 4, "block_size": 32, "accuracy_level": 4}
    nodes = [
        helper.make_node("GatherBlockQuantized", ["q", "ids", table], ["x"], domain="m"),
        helper.make_node("MatMulNBits", ["x", "q", "s"], ["y"], domain="m", **products),
        helper.make_node("MatMul", ["y", "w"], ["z"]),
    ]
    graph = helper.make_graph(nodes, "g", [], [], scales)
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    found = describe_graph(tmp_path / "model.onnx")
    assert "1 products of 4 bits in blocks of 32, accuracy_level 4" in found
    assert said in found
    assert "1 products in floats; 0.0 MB" in found


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bench's page, which a whole run rewrites."""
    shutil.copy(ROOT / "bench" / "README.md", tmp_path / "README.md")
    monkeypatch.setattr(command, "PAGE", tmp_path)
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    monkeypatch.setattr(command, "install_peers", lambda *_: None)
    return tmp_path / "README.md"


@pytest.mark.parametrize(
    ("arguments", "is_whole"),
    [(["--full"], True), ([], False), (["--full", "--quick"], False), (["--threads", "1"], False)],
)
def test_only_a_whole_run_rewrites_the_page(
    page: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], is_whole: bool
) -> None:
    plans: list[Plan] = []
    made = section(work("prefill 512", {"ours-fp32": 1.0, "tuned-fp32": 2.0}))
    monkeypatch.setattr(command, "run", lambda plan: plans.append(plan) or made)
    before = page.read_bytes()
    assert command.main(arguments) == 0
    assert (page.read_bytes() != before) == is_whole
    assert (page.parent / "results.json").exists() == is_whole
    assert (page.parent / "work" / "results.json").exists()
    assert plans[0].sizes.name == ("135M" if "--full" in arguments else "32M")


def test_a_part_that_failed_is_told_and_the_code_is_1(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = work("prefill 512", {"ours-fp32": 1.0, "tuned-fp32": 2.0})
    left_out = {"starts, 1": "no PyTorch here", "tuned-int4": "it died"}
    made = replace(section(found), left_out=left_out)
    monkeypatch.setattr(command, "run", lambda plan: made)
    assert command.main(["--quick"]) == 1
    assert capsys.readouterr().err == "error: starts, 1: no PyTorch here\n"


def test_a_failure_is_one_line_and_writes_nothing(
    page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Plan) -> Section:
        raise RuntimeError("the builder failed")

    monkeypatch.setattr(command, "run", fail)
    before = page.read_bytes()
    assert command.main(["--full"]) == 1
    assert capsys.readouterr().err == "error: the builder failed\n"
    assert page.read_bytes() == before


def test_batches_count_the_tokens_of_all_rows() -> None:
    assert Batch(rows=8, prompt=16, new=64).tokens == 512
