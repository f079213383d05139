from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import resident
from bench.client import Worker, WorkerError, worker_environment
from bench.memory import fits, measure_footprint, predict_extra


def start(subject: str, log: Path) -> Worker:
    return Worker(
        f"tests.bench.subjects:{subject}",
        threads=1,
        setup={},
        log=log / f"{subject}.log",
        name=subject,
    )


def test_a_turn_times_every_call(tmp_path: Path) -> None:
    with start("right", tmp_path) as worker:
        assert worker.ask("prepare", case={"batch": 1, "seq": 3})["seconds"] > 0
        turn = worker.ask("turn", calls=5)
    assert len(turn["wall_s"]) == len(turn["cpu_s"]) == 5
    assert min(turn["wall_s"]) > 0


def test_the_saved_output_is_the_forwards(tmp_path: Path) -> None:
    with start("right", tmp_path) as worker:
        worker.ask("prepare", case={"batch": 2, "seq": 3})
        worker.ask("save", path=str(tmp_path / "y.npy"))
    assert np.load(tmp_path / "y.npy").shape == (2, 3, 4)


def test_what_libraries_print_is_kept_out_of_the_replies(tmp_path: Path) -> None:
    with start("chatty", tmp_path) as worker:
        worker.ask("prepare", case={"batch": 1, "seq": 3})
        assert worker.ask("turn", calls=2)["wall_s"]
    log = (tmp_path / "chatty.log").read_text()
    assert "hello from the library" in log
    assert "and from its C part" in log


def test_a_subject_that_does_not_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"broken: RuntimeError: no compiler found$"):
        start("broken", tmp_path)
    assert "second line" in (tmp_path / "broken.log").read_text()


def test_a_process_that_ends_is_reported_with_its_code(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="dead: the process ended with code 7"):
        start("dead", tmp_path)


def test_after_an_error_the_worker_goes_on(tmp_path: Path) -> None:
    with start("refuses_five", tmp_path) as worker:
        with pytest.raises(WorkerError, match="ValueError: length 5 is not to my taste"):
            worker.ask("prepare", case={"batch": 1, "seq": 5})
        worker.ask("prepare", case={"batch": 1, "seq": 4})


def test_a_turn_before_a_case_is_refused(tmp_path: Path) -> None:
    with (
        start("right", tmp_path) as worker,
        pytest.raises(WorkerError, match="turn before prepare"),
    ):
        worker.ask("turn", calls=1)


def test_a_killed_process_is_told_from_a_failed_one(tmp_path: Path) -> None:
    with start("right", tmp_path) as worker:
        worker._process.kill()
        with pytest.raises(WorkerError, match=r"killed \(signal 9\), as the system does"):
            worker.ask("usage")


def test_every_subject_gets_the_same_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("GOMP_SPINCOUNT", "0")
    expected = "'OMP_NUM_THREADS': '1', 'GOMP_SPINCOUNT': None, 'ORT_DISABLE_TELEMETRY': '1'"
    with pytest.raises(WorkerError, match=f"{expected}, 'threads': 1"):
        start("tells_environment", tmp_path)
    assert worker_environment(3)["MKL_NUM_THREADS"] == "3"


@pytest.mark.skipif(not resident.is_supported(), reason="needs /proc/self/clear_refs")
def test_the_memory_of_a_call_is_seen_though_it_is_given_back(tmp_path: Path) -> None:
    footprint = measure_footprint(
        lambda: start("hungry", tmp_path),
        case={"batch": 1, "seq": 64},
        settle={"batch": 1, "seq": 1},
    )
    assert 60e6 < footprint["extra_bytes"] < 80e6
    assert footprint["peak_bytes"] >= footprint["loaded_bytes"] + footprint["extra_bytes"]


@pytest.mark.skipif(not resident.is_supported(), reason="needs /proc/self/clear_refs")
def test_memory_of_the_settling_call_is_not_counted(tmp_path: Path) -> None:
    footprint = measure_footprint(
        lambda: start("hungry", tmp_path),
        case={"batch": 1, "seq": 1},
        settle={"batch": 1, "seq": 64},
    )
    assert footprint["extra_bytes"] < 8e6
    assert footprint["peak_bytes"] > footprint["loaded_bytes"] + 40e6  # of the whole life


def test_memory_is_predicted_by_the_square_of_the_length() -> None:
    known = {100: 10_000_000, 200: 40_000_000}
    assert predict_extra(known, 800) == 640_000_000
    assert predict_extra(known, 200) == 40_000_000
    assert predict_extra(known, 150) == 40_000_000  # an upper bound


@pytest.mark.parametrize("known", [{}, {1: 4096}, {1: 0, 16: 65536}])
def test_pages_say_nothing_about_long_lengths(known: dict[int, int]) -> None:
    assert predict_extra(known, 8192) == 0


def test_some_memory_is_left_to_the_machine() -> None:
    assert fits(89, 100)
    assert not fits(91, 100)


def test_a_control_group_limits_what_is_available(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "LIMIT", tmp_path)
    free = resident.available_bytes()
    assert free > 1_000_000
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    assert resident.available_bytes() == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert resident.available_bytes() > 1_000_000


def test_an_unknown_field_of_proc_is_named(tmp_path: Path) -> None:
    path = tmp_path / "status"
    path.write_text("VmRSS:\t  12 kB\n")
    assert resident.field_bytes(path, "VmRSS") == 12 * 1024
    with pytest.raises(ValueError, match="has no field VmHWM"):
        resident.field_bytes(path, "VmHWM")
