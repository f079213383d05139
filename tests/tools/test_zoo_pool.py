"""A crash, a hang, lack of memory and an error of one task are results, and the rest goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tools.zoo.pool import Pool


def results(folder: Path, *tasks: str, workers: int = 1) -> dict[str, dict[str, Any]]:
    pool = Pool("tests.tools.worker_tasks:run", workers=workers, limit_s=1.0, log_folder=folder)
    found: dict[str, dict[str, Any]] = {}
    pool.run([{"what": task} for task in tasks], lambda t, r: found.update({t["what"]: r}))
    return found


def test_crash_is_a_result_and_the_next_task_gets_a_new_worker(tmp_path: Path) -> None:
    found = results(tmp_path, "before", "crash", "after")
    assert found["crash"]["status"] == "crash"
    assert "SIGSEGV" in found["crash"]["reason"]
    assert "worker_tasks.py" in found["crash"]["reason"]
    assert [found[name]["status"] for name in ("before", "after")] == ["right", "right"]


def test_hang_is_a_result_that_says_where(tmp_path: Path) -> None:
    found = results(tmp_path, "before", "hang", "after")
    assert found["hang"]["status"] == "hang"
    assert "no answer after 1 s" in found["hang"]["reason"]
    assert "hang_for_good" in found["hang"]["reason"]
    assert found["after"]["status"] == "right"


def test_exit_of_the_process_is_a_crash(tmp_path: Path) -> None:
    found = results(tmp_path, "exit", "after")
    assert found["exit"] == {"status": "crash", "reason": "exit status 3"}
    assert found["after"]["status"] == "right"


def test_memory_has_a_limit(tmp_path: Path) -> None:
    found = results(tmp_path, "memory", "after")
    assert found["memory"]["status"] == "memory"
    assert "GiB" in found["memory"]["reason"]
    assert found["after"]["status"] == "right"


def test_error_that_escapes_is_named(tmp_path: Path) -> None:
    found = results(tmp_path, "error")
    assert found["error"]["status"] == "error"
    assert found["error"]["reason"] == "KeyError: 'the name of what is missing'"


def test_what_a_task_prints_is_no_answer(tmp_path: Path) -> None:
    assert results(tmp_path, "chatter")["chatter"]["what"] == "chatter"
    assert "not an answer" in (tmp_path / "worker-0.log").read_text()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_task_is_run_once_whatever_the_number_of_workers(
    tmp_path: Path, workers: int
) -> None:
    found = results(tmp_path, "a", "b", "c", workers=workers)
    assert {name: r["what"] for name, r in found.items()} == {"a": "a", "b": "b", "c": "c"}


def test_tasks_that_belong_together_share_a_process(tmp_path: Path) -> None:
    pool = Pool("tests.tools.worker_tasks:run", workers=2, limit_s=1.0, log_folder=tmp_path)
    processes: dict[str, set[int]] = {"a": set(), "b": set()}
    pool.run(
        [{"what": name} for name in ("a1", "a2", "a3", "b1", "b2", "b3")],
        lambda task, result: processes[task["what"][0]].add(result["process"]),
        together=lambda task: task["what"][0],
    )
    assert [len(found) for found in processes.values()] == [1, 1]


def test_the_rest_of_a_group_goes_on_after_a_crash(tmp_path: Path) -> None:
    pool = Pool("tests.tools.worker_tasks:run", workers=1, limit_s=1.0, log_folder=tmp_path)
    statuses = []
    tasks = [{"what": name} for name in ("before", "crash", "after")]
    pool.run(tasks, lambda _, result: statuses.append(result["status"]), together=lambda _: 0)
    assert statuses == ["right", "crash", "right"]
