from __future__ import annotations

import pytest

from bench.attention.section import LeftOut
from bench.attention.table import losses, to_markdown
from tests.bench.sections import MACHINE, memory_row, section, time_row


def row_of(text: str, heading: str, first: str) -> list[str]:
    """The cells of the table row that starts with `first`, below `heading`."""
    below = text.split(heading)[1]
    line = next(line for line in below.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_loss_is_bold_and_a_gain_is_not() -> None:
    text = to_markdown(
        section([time_row("eager", {}), time_row("ours", {"eager": 1.25, "plain20": 0.8})]),
        chart=None,
    )
    cells = row_of(text, "Batch 1, one thread: processor time", "16")
    assert cells[1:] == ["1 (0.9-1.1)", "-", "-", "**1.25** (1.23-1.29)", "0.80 (0.78-0.82)"]


def test_a_loss_of_a_peer_is_not_bold() -> None:
    text = to_markdown(
        section([time_row("eager", {}), time_row("plain20", {"eager": 3.0})]), chart=None
    )
    assert row_of(text, "Batch 1, one thread", "16")[3] == "3.00 (2.94-3.09)"


@pytest.mark.parametrize(("ratio", "is_loss"), [(1.004, False), (1.006, True)])
def test_what_rounds_to_equal_is_no_loss(ratio: float, is_loss: bool) -> None:
    ours = time_row("ours", {"eager": ratio})
    assert bool(losses(section([time_row("eager", {}), ours]))) is is_loss


def test_losses_are_listed_worst_first_time_and_memory() -> None:
    found = losses(
        section(
            [
                time_row("ours", {"eager": 1.1}, seq=4),
                time_row("ours", {"eager": 0.9, "plain20": 1.7}, seq=8, threads=2),
            ],
            [memory_row("eager", 10), memory_row("plain20", 40), memory_row("ours", 30)],
        )
    )
    assert found == [
        "3.00 x the extra memory of the eager at batch 1, length 16",
        "1.70 x the time of the plain20 at batch 1, length 8, two threads",
        "1.10 x the time of the eager at batch 1, length 4, one thread",
    ]


def test_memory_shows_the_call_and_the_whole_process() -> None:
    text = to_markdown(
        section(
            memory=[memory_row("eager", 10), memory_row("plain20", 60), memory_row("ours", 15)]
        ),
        chart=None,
    )
    cells = row_of(text, "Batch 1: memory", "16")
    assert cells[1:] == ["10.0 (110)", "-", "60.0 (160)", "15.0 (115)", "**1.50**", "0.25"]


def test_memory_that_is_nothing_has_no_ratio() -> None:
    text = to_markdown(
        section(memory=[memory_row("eager", 0.01), memory_row("ours", 0.4)]), chart=None
    )
    assert row_of(text, "Batch 1: memory", "16")[-2:] == ["-", "-"]


def test_what_is_left_out_stands_there_with_its_reason_once() -> None:
    missing = [
        LeftOut(
            subject="compile",
            what="time",
            batch=1,
            seq=seq,
            threads=1,
            has_failed=True,
            reason="no compiler",
        )
        for seq in (1, 2)
    ]
    text = to_markdown(section([time_row("eager", {})], left_out=missing), chart=None)
    assert text.count("no compiler") == 1
    assert "at batch 1 length 1 one thread; batch 1 length 2 one thread: no compiler" in text


def test_the_verdict_counts_the_places() -> None:
    times = [
        time_row("ours", {"eager": ratio}, seq=seq) for seq, ratio in enumerate((0.5, 1.2, 0.9), 1)
    ]
    text = to_markdown(section(times), chart=None)
    assert "0.50 to 1.20 of its time, slower at 1 of 3 places" in text


def test_a_busy_machine_is_said_to_be_busy() -> None:
    busy = section(machine={**MACHINE, "load_before": 3.0})
    assert "busy with other work (load 3.0)" in to_markdown(busy, chart=None)
    assert "busy with other work" not in to_markdown(section(), chart=None)


def test_a_reference_that_threads_slow_down_is_named() -> None:
    rows = [
        time_row("eager", {}, seq=seq, threads=threads, wall_s=wall_s)
        for seq, threads, wall_s in [(1, 1, 0.1), (1, 2, 0.2), (9, 1, 0.2), (9, 2, 0.1)]
    ]
    text = to_markdown(section(rows), chart=None)
    assert "proves little: two threads, batch 1, length 1.\n" in text


def test_the_machine_and_the_versions_stand_above() -> None:
    text = to_markdown(section(), chart="results.svg")
    for fact in ("Some Processor (avx2, avx512f)", "2 cores", "8 GiB", "numpy 2.0", "abc1234"):
        assert fact in text
    assert "](results.svg)" in text
