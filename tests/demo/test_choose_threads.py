"""The demo takes as many threads as help."""

from __future__ import annotations

import pytest
import torch

from examples.demo import choose_threads as module
from examples.demo.choose_threads import choose_threads


@pytest.mark.parametrize("fastest", [1, 4])
def test_the_faster_number_of_threads_is_chosen(
    fastest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "available_cores", lambda: 4)
    monkeypatch.setattr(
        module, "_round", lambda _: 1.0 if torch.get_num_threads() == fastest else 2.0
    )
    assert choose_threads() == fastest
    assert torch.get_num_threads() == before


def test_one_core_needs_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 1)
    assert choose_threads() == 1
