from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from causal_onnx.runtime.session import threads
from causal_onnx.runtime.session.threads import available_cores, cpu_quota


def group(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("150000 100000\n", 1.5),
        ("max 100000\n", None),
        ("400000 100000\n", 4.0),
        ("", None),
        ("nonsense here", None),
    ],
)
def test_the_quota_of_version_2_is_read(tmp_path: Path, text: str, quota: float | None) -> None:
    assert cpu_quota(group(tmp_path, cpu_dot_max=text)) == quota


@pytest.mark.parametrize(("quota", "expected"), [("250000", 2.5), ("-1", None), ("what", None)])
def test_the_quota_of_version_1_is_read(tmp_path: Path, quota: str, expected: float | None) -> None:
    root = group(tmp_path, cpu__cpu_dot_cfs_quota_us=quota, cpu__cpu_dot_cfs_period_us="100000\n")
    assert cpu_quota(root) == expected


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None


@pytest.mark.parametrize(
    ("processors", "quota", "cores"),
    [
        (8, None, 8),
        (8, 1.5, 2),
        (8, 0.25, 1),
        (2, 16.0, 2),
    ],
)
def test_the_smaller_of_affinity_and_quota_counts(
    monkeypatch: pytest.MonkeyPatch, processors: int, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(threads, "_allowed_processors", lambda: set(range(processors)))
    monkeypatch.setattr(threads, "_core_of", str)
    monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
    assert available_cores() == cores


def test_two_hardware_threads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_allowed_processors", lambda: set(range(8)))
    monkeypatch.setattr(
        threads, "_core_of", lambda processor: f"{processor % 4},{processor % 4 + 4}"
    )
    monkeypatch.setattr(threads, "cpu_quota", lambda: None)
    assert available_cores() == 4


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells its affinity")
def test_a_process_bound_to_one_processor_uses_one_thread() -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
