"""A small section of servers, made up, for the tests of tables."""

from __future__ import annotations

from typing import Any

from bench.serving import Figures, ServingSection
from bench.serving_clients import HttpFigures
from tests.bench.sections import MACHINE

__all__ = ["http", "serving_section"]


def http(**others: float | None) -> HttpFigures:
    given: dict[str, Any] = {"in_turn_tokens_s": 100.0, "together_tokens_s": 300.0}
    given |= {"server_cpu_ms": 2.0, "in_turn_cpu_ms": 8.0}
    return HttpFigures(**given | others)


def serving_section(ours: HttpFigures, peer: HttpFigures) -> ServingSection:
    figures = Figures(
        ours=ours,
        engine_cpu_ms=1.8,
        replayed=17,
        different=0,
        peers={"llama.cpp": peer},
        left_out={"OpenVINO GenAI": "no wheel for this Python"},
    )
    return ServingSection(
        date="2026-11-30T10:00+00:00",
        seconds=60.0,
        machine=MACHINE,
        sizes={"name": "135M"},
        works={"tokens": 64, "prompt": 32, "long_prompt": 1984, "rounds": 3},
        threads=1,
        files={"w8a8": figures},
        left_out={},
    )
