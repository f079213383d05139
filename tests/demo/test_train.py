from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.models import DecoderLM, tiny_llama_config
from examples.demo import train as train_module
from examples.demo.checkpoint import load_decoder, save_decoder
from examples.demo.corpus import Corpus
from examples.demo.train import Training, bits_per_byte, decoder_config, train

TEXT = b"to be or not to be, that is the question; " * 40
CORPUS = Corpus(train=TEXT, held_out=TEXT[:800], repeated_bytes=0)


class Fixed(nn.Module):
    """Gives the byte after the present one in `order` the probability `share`."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, ids: Tensor) -> Tensor:
        probabilities = torch.full((*ids.shape, 256), (1 - self.share) / 255)
        probabilities.scatter_(-1, ((ids + 1) % 256)[..., None], self.share)
        return probabilities.log()


@pytest.mark.parametrize("pieces", [None, 3])
def test_bits_per_byte_of_known_probabilities(pieces: int | None) -> None:
    text = bytes(range(256)) * 3
    for share, bits in ((1 / 256, 8.0), (0.25, 2.0)):
        got = bits_per_byte(Fixed(share), text, seq=50, most_pieces=pieces)
        assert got == pytest.approx(bits, rel=1e-5)


def test_bits_per_byte_leaves_the_mode_as_it_was() -> None:
    model = Fixed(0.5).train()
    bits_per_byte(model, TEXT, seq=10)
    assert model.training


class SteadyClock:
    """A clock that each look at moves by as much, so that a budget is a number of steps."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 0.5
        return self.now


def train_steadily(monkeypatch: pytest.MonkeyPatch, *, shares: list[float]) -> Training:
    monkeypatch.setattr(train_module, "time", SteadyClock())
    return train(
        CORPUS,
        tiny_llama_config(),
        budget_s=80.0,
        seed=0,
        threads=(torch.get_num_threads(),),
        update=lambda share, words: shares.append(share),
    )


def test_training_learns_and_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    training = train_steadily(monkeypatch, shares=shares)
    assert training.held_out < 4.0  # 80 steps; the text's own entropy by letters is 3.4
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert training.curve[-1].step == training.steps
    assert [p.step for p in training.curve] == sorted({p.step for p in training.curve})
    assert not training.model.training


def test_each_step_runs_with_the_quickest_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SteadyClock()
    monkeypatch.setattr(train_module, "time", clock)
    used: list[int] = []

    def slow_with_two(count: int) -> None:
        used.append(count)
        clock.now += 5.0 * (count == 2)

    monkeypatch.setattr(torch, "set_num_threads", slow_with_two)
    train(
        CORPUS,
        tiny_llama_config(),
        budget_s=30.0,
        seed=0,
        threads=(1, 2),
        update=lambda share, words: None,
    )
    assert 1 <= used.count(2) <= 2  # tried, and tried again after the pause
    assert used.count(1) > 10


def test_the_seed_decides_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    first = train_steadily(monkeypatch, shares=[])
    assert train_steadily(monkeypatch, shares=[]).curve == first.curve


def test_a_checkpoint_gives_the_same_model(tmp_path: Path) -> None:
    model = DecoderLM(tiny_llama_config(), seed=5).eval()
    save_decoder(model, tmp_path / "model.pt")
    loaded = load_decoder(tmp_path / "model.pt")
    ids = model.example_input(2, 9)
    assert loaded.config == model.config
    torch.testing.assert_close(loaded(ids), model(ids), rtol=0, atol=0)


def test_the_demos_decoder_reads_bytes() -> None:
    assert decoder_config().vocab_size == 256


@pytest.mark.parametrize(
    ("budget_s", "corpus", "message"),
    [
        (0.0, CORPUS, "budget_s must be positive, got 0"),
        (
            1.0,
            Corpus(train=TEXT, held_out=b"short", repeated_bytes=0),
            "the held_out text has 5 bytes",
        ),
    ],
)
def test_training_on_nothing_is_refused(budget_s: float, corpus: Corpus, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(
            corpus,
            tiny_llama_config(),
            budget_s=budget_s,
            seed=0,
            threads=(torch.get_num_threads(),),
            update=lambda share, words: None,
        )
