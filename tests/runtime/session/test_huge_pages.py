"""Weights on huge pages: which memory is meant, and that asking changes nothing else."""

from __future__ import annotations

import contextlib
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import load
from causal_onnx.runtime.session import huge_pages
from causal_onnx.runtime.session.huge_pages import (
    huge_page_size,
    minus,
    on_huge_pages,
    private_memory,
)
from tests.runtime.artifacts import fixture

MAPS = """\
00400000-00401000 r-xp 00000000 fe:00 1234 /usr/bin/python3
00600000-00601000 rw-p 00000000 fe:00 1234 /usr/bin/python3
01000000-01200000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000800000 rw-p 00000000 00:00 0
7f0001000000-7f0001001000 ---p 00000000 00:00 0
7f0002000000-7f0002400000 rw-s 00000000 00:01 77 /dev/shm/shared memory
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]
"""


def test_only_memory_of_the_process_alone_is_meant(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text(MAPS)
    assert private_memory(maps) == [
        (0x1000000, 0x1200000),
        (0x7F0000000000, 0x7F0000800000),
    ]
    assert private_memory(tmp_path / "absent") == []


@pytest.mark.parametrize(
    ("ranges", "others", "left"),
    [
        ([(0, 10)], [], [(0, 10)]),
        ([(0, 10)], [(0, 10)], []),
        ([(0, 10)], [(3, 5)], [(0, 3), (5, 10)]),
        ([(0, 10)], [(0, 2), (8, 12)], [(2, 8)]),
        ([(0, 4), (6, 9)], [(3, 7)], [(0, 3), (7, 9)]),
        ([(5, 9)], [(0, 5), (9, 12)], [(5, 9)]),
    ],
)
def test_what_is_new(
    ranges: list[tuple[int, int]], others: list[tuple[int, int]], left: list[tuple[int, int]]
) -> None:
    assert minus(ranges, others) == left


def test_the_administrator_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    for enabled, expected in (
        ("always [madvise] never\n", 2 << 20),
        ("[always] madvise never\n", 2 << 20),
        ("always madvise [never]\n", None),
    ):
        (tmp_path / "enabled").write_text(enabled)
        huge_page_size.cache_clear()
        assert huge_page_size(tmp_path) == expected
    huge_page_size.cache_clear()
    assert huge_page_size(tmp_path / "absent") is None


@pytest.mark.skipif(
    sys.platform != "linux" or huge_page_size() is None, reason="no huge pages on this system"
)
def test_new_memory_lies_on_huge_pages_with_its_contents() -> None:
    with on_huge_pages():
        block = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        array = np.frombuffer(block, np.uint8)
        array[:] = np.arange(len(array)) % 251
    assert (array == np.arange(len(array)) % 251).all()
    size = _huge_kib(array.ctypes.data)
    if size == 0:
        pytest.skip("the system had no huge page to give")
    assert size >= 8 << 10


def _huge_kib(address: int) -> int:
    """KiB on huge pages in the mapping with this address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and (found := re.match(r"AnonHugePages:\s+(\d+) kB", line)):
            return int(found[1])
    return 0


def test_a_model_computes_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((2, 7)).astype(np.float32)
    asked = []

    class Spy:
        def __enter__(self) -> None:
            asked.append(True)

        def __exit__(self, *_: object) -> None:
            pass

    expected = load(fixture("small"), huge_pages=False)(x)
    assert load(fixture("small"))(x).tobytes() == expected.tobytes()
    monkeypatch.setattr("causal_onnx.runtime.session.open.on_huge_pages", Spy)
    load(fixture("small"), huge_pages=False)
    assert not asked
    load(fixture("small"))
    assert asked


def test_memory_of_the_first_two_longer_calls_lies_on_huge_pages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, ...]] = []
    shape: tuple[int, ...] = ()

    @contextlib.contextmanager
    def spy() -> Iterator[None]:
        asked.append(shape)
        yield

    monkeypatch.setattr("causal_onnx.runtime.session.runner.on_huge_pages", spy)
    model, without = load(fixture("small")), load(fixture("small"), huge_pages=False)
    values = np.random.default_rng(0).standard_normal((2, 120)).astype(np.float32)
    for shape in [(1, 1), (2, 31), (2, 40), (2, 40), (2, 40), (1, 100), (2, 51), (1, 60)]:
        x = values[: shape[0], : shape[1]]
        assert model(x).tobytes() == without(x).tobytes()
    assert asked == [(2, 40), (2, 40), (2, 51)]


def test_a_session_that_fails_raises_its_own_error() -> None:
    with pytest.raises(ZeroDivisionError), on_huge_pages():
        raise ZeroDivisionError


def test_a_system_without_them_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "huge_page_size", lambda: None)
    monkeypatch.setattr(huge_pages, "private_memory", lambda: pytest.fail("not needed"))
    with on_huge_pages():
        pass
