"""The same module gives the same bytes, whatever the process that exports it looks like."""

from __future__ import annotations

import gc
import json
import os
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch

from causal_onnx.export import export
from causal_onnx.export.capture.isolation import isolated, settled, with_callers_threads
from causal_onnx.export.report import CausalityCase, CausalityReport, DriftReport, ParityCase
from causal_onnx.models import CausalMechanismV1
from causal_onnx.runtime import read_artifact

SCRIPT = """
import hashlib, json, os, sys
from pathlib import Path
import onnxruntime, torch
from causal_onnx.export import export
from causal_onnx.export.capture.kept import reusing_captures
from causal_onnx.models import CausalMechanismV1, DecoderLM, tiny_llama_config
from causal_onnx.runtime import write_bundle

threads, first, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
torch.set_num_threads(threads)
open_session = onnxruntime.InferenceSession

def session(model, options=None, *others, **named):  # its default is the machine's cores
    if options is not None and not options.intra_op_num_threads:
        options.intra_op_num_threads = threads
    return open_session(model, options, *others, **named)

onnxruntime.InferenceSession = session
FORMS = {
    "plain": {},
    "cached": {"cache": True},
    "portable": {"target": "portable"},
    "int4": {"precision": "int4"},
    # The rest of their checks is that of the others.
    "tiled": {"target": "tiled", "effort": "quick"},
    "int8": {"precision": "int8", "cache": True, "effort": "quick"},
    "gptq": {"precision": "int4", "rounding": "gptq", "block_size": 64, "effort": "quick"},
    "w8a8": {"precision": "w8a8", "cache": True, "effort": "quick"},
    "fp16": {"precision": "fp16", "effort": "quick"},
}
names = list(FORMS)
if first == "warm":
    export(CausalMechanismV1(8, 4, 12, seed=0), folder / "other.onnx", cache=True)
    names.reverse()
module = DecoderLM(tiny_llama_config(), seed=0)
with reusing_captures():
    for name in names:
        export(module, folder / f"{name}.onnx", **FORMS[name])
write_bundle(folder / "cached.onnx", folder / "bundle")
(folder / "other.onnx").unlink(missing_ok=True)
found = sorted(path for path in folder.rglob("*") if path.is_file())
print(json.dumps({str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
                  for p in found}))
"""


def digests(folder: Path, *, threads: int, seed: str, first: str, locale: str) -> dict[str, str]:
    """What a fresh process writes into `folder`, from a current folder of its own."""
    folder.mkdir()
    variables = {"OMP_NUM_THREADS": str(threads), "PYTHONHASHSEED": seed, "LC_ALL": locale}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(threads), first, str(folder)],
        check=True,
        capture_output=True,
        cwd=folder.parent if first == "warm" else folder,
        env={**os.environ, **variables},
    )
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    assert [name for name in found if str(folder).encode() in (folder / name).read_bytes()] == []
    return found


def test_threads_hash_seed_folder_and_earlier_exports_change_no_byte(tmp_path: Path) -> None:
    one = digests(tmp_path / "a", threads=1, seed="0", first="cold", locale="C")
    two = digests(tmp_path / "b", threads=2, seed="1", first="warm", locale="de_DE.UTF-8")
    assert {"plain.onnx", "int4.onnx", "bundle/goldens.json"} <= set(one)
    assert two == one


def test_an_export_computes_on_one_thread_and_the_long_checks_on_the_callers() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with isolated():
            alone = torch.get_num_threads()
            with with_callers_threads():
                together = torch.get_num_threads()
            assert torch.get_num_threads() == alone
        assert (alone, together, torch.get_num_threads()) == (1, 2, 2)
    finally:
        torch.set_num_threads(before)


def test_an_export_multiplies_in_full_precision() -> None:
    torch.set_float32_matmul_precision("medium")
    try:
        with isolated():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_an_export_looks_for_unreachable_cycles_less_often_and_its_caller_as_before() -> None:
    before = gc.get_threshold()
    with isolated():
        assert gc.get_threshold()[0] > 10 * before[0]
    assert gc.get_threshold() == before


def has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


class Cycle:
    """Refers to itself, so that it ends only where somebody looks for cycles."""

    def __init__(self) -> None:
        self.own = self


def test_what_exists_before_the_checks_is_not_looked_at_in_them() -> None:
    with isolated():
        kept, before = Cycle(), gc.get_freeze_count()
        with settled():
            assert gc.get_freeze_count() > before
            new = Cycle()
            seen = weakref.ref(kept), weakref.ref(new)
            del kept, new
            gc.collect()
            assert [item() is None for item in seen] == [False, True]
        gc.collect()
        assert seen[0]() is None


def test_what_the_caller_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        with isolated(), settled():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


HELD = """
import ctypes, re, sys
from pathlib import Path
from causal_onnx.export.capture.isolation import without_gaps

def resident():
    return int(re.search(r"VmRSS:\\s*([0-9]+)", Path("/proc/self/status").read_text())[1]) << 10

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def blocks(count, size):
    places = [libc.malloc(size) for _ in range(count)]
    for place in places:
        libc.memset(place, 1, size)
    return places

def left_by_every_other():
    before, places = resident(), blocks(40, 4 << 20)
    for place in places[::2]:
        libc.free(place)
    held = resident() - before
    for place in places[1::2]:
        libc.free(place)
    return held >> 20

libc.free(blocks(1, 30 << 20)[0])
usual = left_by_every_other()
with without_gaps():
    apart = left_by_every_other()
print(usual, apart)
"""
"""What 40 blocks of 4 MB leave when every other one is freed, in MB: as usual, and inside."""


@pytest.mark.skipif(not has_glibc(), reason="malloc of glibc only")
def test_what_is_freed_between_large_blocks_goes_back_to_the_system() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], check=True, capture_output=True, text=True)
    usual, apart = map(int, done.stdout.split())
    assert usual > 140
    assert apart < 100


def test_the_file_keeps_the_shapes_and_the_tolerance_and_no_measured_error(tmp_path: Path) -> None:
    report = export(CausalMechanismV1(8, 4, 12, seed=0), tmp_path / "m.onnx", cache=True)
    kept = read_artifact(tmp_path / "m.onnx").certificate
    assert kept is not None
    assert len(kept["parity"]["cases"]) == len(report.parity.cases)
    assert kept["parity"]["tolerance"] == kept["cache"]["tolerance"] == 1e-5
    assert kept["cache"]["summary"].endswith(
        "equal PyTorch's full pass within 1e-05 of the output's scale"
    )
    assert "error" not in json.dumps([kept["parity"], kept["cache"]])


def test_figures_that_the_file_keeps_are_rounded_to_two_digits() -> None:
    drift = DriftReport(positions=8, relative_error=0.012345, limit=0.1).to_record()
    case = CausalityCase(
        seq=3,
        cut=1,
        past_error=1.2345e-7,
        source_past_error=6.789e-8,
        future_moved=True,
        passed=True,
    )
    kept = CausalityReport(cases=(case,)).to_record()["cases"][0]
    assert (drift["relative_error"], drift["mean_kl"]) == (0.012, None)
    assert (kept["past_error"], kept["source_past_error"]) == (1.2e-7, 6.8e-8)


@pytest.mark.parametrize(
    ("note", "said"), [("", "2.0e-05 from"), ("past 3", "past 3; 2.0e-05 from")]
)
def test_a_distance_from_float64_is_told_and_not_kept(note: str, said: str) -> None:
    case = ParityCase(batch=1, seq=3, error=2e-5, passed=True, note=note, from_float64=1.5e-5)
    assert case.remark == f"{said} float64, PyTorch itself 1.5e-05"
    assert case.note == note
