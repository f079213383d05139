from __future__ import annotations

import numpy as np
import pytest

from bench.attention.cases import (
    BATCHES,
    LENGTHS,
    Case,
    default_cases,
    make_input,
    memory_cases,
)
from bench.sizes import ModuleSizes


def test_the_default_run_goes_to_8192_and_leaves_out_only_batch_8_there() -> None:
    cases = default_cases(BATCHES, LENGTHS)
    everything = {Case(batch=b, seq=s) for b in BATCHES for s in LENGTHS}
    assert everything - set(cases) == {Case(batch=8, seq=8192)}
    assert [case.seq for case in cases if case.batch == 1] == sorted(LENGTHS)


def test_memory_is_measured_at_every_length_that_needs_some() -> None:
    seqs = [case.seq for case in memory_cases(default_cases([1], LENGTHS))]
    assert seqs == [1, *(seq for seq in LENGTHS if seq >= 16)]


@pytest.mark.parametrize(("batch", "seq"), [(0, 4), (4, 0), (-1, 4)])
def test_empty_cases_are_refused(batch: int, seq: int) -> None:
    with pytest.raises(ValueError, match=f"got batch {batch}, seq {seq}"):
        Case(batch=batch, seq=seq)


def test_every_process_makes_the_same_input() -> None:
    case = {"batch": 2, "seq": 3}
    x = make_input(case, 8)
    assert (x.shape, x.dtype) == ((2, 3, 8), np.float32)
    np.testing.assert_array_equal(x, make_input(case, 8))


def test_work_grows_with_the_square_of_long_lengths() -> None:
    sizes = ModuleSizes(embed_dim=8, num_heads=2)
    assert Case(batch=1, seq=1).flops(sizes) == 8 * 64 + 2 * 8
    ratio = Case(batch=1, seq=200_000).flops(sizes) / Case(batch=1, seq=100_000).flops(sizes)
    assert ratio == pytest.approx(4, rel=1e-3)
    assert Case(batch=8, seq=5).flops(sizes) == 8 * Case(batch=1, seq=5).flops(sizes)
