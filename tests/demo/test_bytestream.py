from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from examples.demo.bytestream import WholeContext, allowed_bytes, sample, stream_text

ALL = np.ones(256, dtype=np.bool_)


class RandomModel:
    """Logits that are random but the same for the same ids; notes the lengths it was given."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        self.lengths.append(ids.shape[1])
        random = np.random.default_rng(int(ids.sum()) + ids.shape[1])
        return random.standard_normal((*ids.shape, 256)).astype(np.float32) * 3


def stream(*, model: RandomModel | None = None, max_bytes: int = 300, seed: int = 0) -> list[str]:
    context = WholeContext(model or RandomModel(), max_seq_len=16)
    return list(stream_text(context, b"abc", max_bytes=max_bytes, temperature=1.0, seed=seed))


def test_allowed_bytes_are_those_of_every_printable_character() -> None:
    expected: dict[bytes, set[int]] = defaultdict(set)
    for code in range(0x110000):
        control = (code < 0x20 and code != 0x0A) or 0x7F <= code < 0xA0
        if control or 0xD800 <= code < 0xE000:
            continue
        raw = chr(code).encode()
        for length, byte in enumerate(raw):
            expected[raw[:length]].add(byte)
    got = {prefix: set(np.flatnonzero(allowed_bytes(prefix)).tolist()) for prefix in expected}
    assert got == expected


def test_a_model_of_noise_streams_whole_printable_characters() -> None:
    characters = stream()
    assert all(len(c) == 1 and (c.isprintable() or ord(c) >= 0xA0 or c == "\n") for c in characters)
    assert "\ufffd" not in characters
    assert any(len(c.encode()) == 4 for c in characters)
    assert 300 <= len("".join(characters).encode()) < 304


def test_the_seed_decides_the_text() -> None:
    assert stream(seed=3) == stream(seed=3)
    assert stream(seed=3) != stream(seed=4)


def test_the_model_sees_all_that_was_read_up_to_its_limit() -> None:
    model = RandomModel()
    stream(model=model, max_bytes=40)
    assert model.lengths[:13] == list(range(3, 16))
    assert set(model.lengths[13:]) == {16}


def test_the_context_forgets_the_oldest_bytes_only() -> None:
    seen: list[list[int]] = []

    def forward(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        seen.append(ids[0].tolist())
        return np.zeros((1, ids.shape[1], 256))

    context = WholeContext(forward, max_seq_len=4)
    context.feed([1, 2, 3])
    context.feed([4])
    context.feed([5])
    assert seen == [[1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]


def test_samples_come_as_often_as_the_softmax_says() -> None:
    logits = np.full(256, -np.inf)
    logits[[7, 9, 200]] = np.log([1.0, 2.0, 5.0]) * 0.5
    uniforms = (np.arange(8000) + 0.5) / 8000
    drawn = [sample(logits, ALL, temperature=0.5, uniform=u) for u in uniforms]
    assert [drawn.count(i) for i in (7, 9, 200)] == [1000, 2000, 5000]


@pytest.mark.parametrize("uniform", [0.0, np.nextafter(1.0, 0.0)])
def test_an_index_that_is_not_allowed_is_never_drawn(uniform: float) -> None:
    allowed = np.zeros(256, dtype=np.bool_)
    allowed[[40, 41]] = True
    logits = np.zeros(256, dtype=np.float32)
    logits[[0, 255]] = 50.0
    assert sample(logits, allowed, temperature=1.0, uniform=uniform) in (40, 41)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": b""}, "prompt must hold at least one byte"),
        ({"prompt": b"\xff"}, "invalid start byte"),
        ({"max_bytes": 0}, "max_bytes must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
    ],
)
def test_impossible_requests_are_refused(arguments: dict[str, Any], message: str) -> None:
    request = {"prompt": b"a", "max_bytes": 4, "temperature": 1.0, "seed": 0, **arguments}
    with pytest.raises(ValueError, match=message):
        next(stream_text(WholeContext(RandomModel(), max_seq_len=8), **request))
