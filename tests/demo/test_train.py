from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from causal_onnx.models import DecoderLM, tiny_llama_config
from examples.demo import train as train_module
from examples.demo.checkpoint import load_decoder, save_decoder
from examples.demo.corpus import Corpus
from examples.demo.screen import Update
from examples.demo.train import Training, bits_per_byte, decoder_config, train

TEXT = b"to be or not to be, that is the question; " * 40
CORPUS = Corpus(train=TEXT, held_out=TEXT[:800], repeated_bytes=0)


def ignore(share: float, words: str) -> None:
    """No progress is shown."""


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


def train_shortly(*, steps: int = 80, seed: int = 0, update: Update = ignore) -> Training:
    return train(CORPUS, tiny_llama_config(), steps=steps, seed=seed, update=update)


def bits_of(training: Training) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in training.model.state_dict().values())


def test_training_learns_and_reports() -> None:
    shares: list[float] = []
    training = train_shortly(update=lambda share, words: shares.append(share))
    assert training.held_out < 4.0  # the text's own entropy by letters is 3.4
    assert shares == [*(step / 80 for step in range(1, 81)), 1.0]
    assert (training.steps, training.curve[-1].step) == (80, 80)
    assert [p.step for p in training.curve] == sorted({p.step for p in training.curve})
    assert len(training.curve) == train_module.POINTS
    assert not training.model.training


def test_a_short_training_has_a_point_for_each_step() -> None:
    assert [point.step for point in train_shortly(steps=3).curve] == [1, 2, 3]


def test_equal_trainings_give_equal_bits() -> None:
    first, second = train_shortly(steps=8), train_shortly(steps=8)
    assert bits_of(first) == bits_of(second)
    assert first.curve == second.curve


def test_the_seed_decides_the_training() -> None:
    assert bits_of(train_shortly(steps=2)) != bits_of(train_shortly(steps=2, seed=1))


def test_training_takes_one_thread_and_leaves_pytorch_as_it_was() -> None:
    before, used = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:
        train_shortly(steps=2, update=lambda share, words: used.add(torch.get_num_threads()))
        assert (used, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(before)


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
    ("steps", "corpus", "message"),
    [
        (0, CORPUS, "steps must be at least 1, got 0"),
        (
            1,
            Corpus(train=TEXT, held_out=b"short", repeated_bytes=0),
            "the held_out text has 5 bytes",
        ),
    ],
)
def test_training_on_nothing_is_refused(steps: int, corpus: Corpus, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(corpus, tiny_llama_config(), steps=steps, seed=0, update=ignore)
