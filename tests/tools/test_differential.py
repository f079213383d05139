from __future__ import annotations

import re

import pytest

pytest.importorskip("onnx")
from tools.fuzz import differential
from tools.fuzz.differential import compare, make, run

from causal_onnx.runtime.scan import decode
from tests.runtime.artifacts import field


def test_a_seed_makes_the_same_message_again() -> None:
    made = [make(seed) for seed in range(200)]
    assert made == [make(seed) for seed in range(200)]
    assert {name for name, _ in made} == set(differential.OFFICIAL)


def test_messages_are_read_as_protobuf_reads_them_or_refused() -> None:
    counts, found = run(range(1500))
    assert found == []
    assert counts["equal"] > 600
    assert counts["refused"] > 300


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"signed": int}, "protobuf -"),
        ({"_NUMBERS": {}}, "int32_data: ours has|uint64_data: ours has"),
        ({"_RANGES": {}}, "data_type|elem_type|data_location|type"),
        ({"_ONE_OF": {}}, "dim_value|dim_param|_type"),
        ({"_TOO_LONG": b"never"}, "protobuf refuses the"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_decoder_that_reads_otherwise_is_found(
    wrong: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in wrong.items():
        monkeypatch.setattr(decode, name, value)
    parts = (run(range(start, start + 500))[1] for start in range(0, 6000, 500))
    assert any(re.search(message, text) for found in parts for text in found)


def test_a_difference_names_the_field(monkeypatch: pytest.MonkeyPatch) -> None:
    content = field(2, (1 << 32) + 1)
    assert compare("tensor", content) == ("refused", "")
    monkeypatch.setattr(decode, "_RANGES", {})
    outcome, where = compare("tensor", content)
    assert outcome == "difference"
    assert where == "tensor.data_type: ours has 4294967297, protobuf 1"


def test_the_command_says_no(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert differential.main(["--messages", "300"]) == 0
    monkeypatch.setattr(decode, "signed", int)
    assert differential.main(["--messages", "300"]) == 1
    assert "seed" in capsys.readouterr().err
