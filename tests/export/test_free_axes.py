"""Axes beside batch and positions, of any size: memory, frames, source text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_onnx.export import CausalityError, ExportError, ExportReport, attest, export
from causal_onnx.runtime import load
from tests.export.quick import quick_export

DIM = 16
BATCHED, MEMORY = {0: "batch", 1: "seq"}, {0: "batch", 1: "memory"}


class Decoder(nn.Module):
    """PyTorch's own, with a padding mask of its memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(DIM, 2, 32, batch_first=True)

    def forward(self, x: Tensor, memory: Tensor, pad: Tensor | None = None) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.layer(x, memory, tgt_mask=mask, tgt_is_causal=True, memory_key_padding_mask=pad)


class Translator(nn.Module):
    """Source ids are encoded in both directions, and read by a causal decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, DIM)
        self.encoder = nn.TransformerEncoderLayer(DIM, 2, 32, batch_first=True)
        self.decoder = Decoder()

    def forward(self, source: Tensor, ids: Tensor) -> Tensor:
        return self.decoder(self.words(ids), self.encoder(self.words(source)))


class Placed(Decoder):
    """A memory of at most 40 entries."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(40, DIM)

    def forward(self, x: Tensor, memory: Tensor, pad: Tensor | None = None) -> Tensor:
        places = self.places(torch.arange(memory.shape[1]))
        return super().forward(x, memory + places, pad)


class SeesItself(Decoder):
    """The decoder's own positions are appended to the memory: it sees later ones there."""

    def forward(self, x: Tensor, memory: Tensor, pad: Tensor | None = None) -> Tensor:
        return super().forward(x, torch.cat([memory, x], 1), pad)


class Patches(nn.Module):
    """Patches of 8 frames."""

    def forward(self, x: Tensor, frames: Tensor) -> Tensor:
        patches = frames.view(len(frames), -1, 8, DIM).mean(2)
        q = functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        return functional.scaled_dot_product_attention(q, patches, patches)


def made(
    module: nn.Module, path: Path, *beside: Tensor, axes: list[Any] | None = None, **options: Any
) -> ExportReport:
    axes = axes or [BATCHED, *[MEMORY] * len(beside)]
    example = (torch.randn(3, 6, DIM), *beside)
    return export(module.eval(), path / "m.onnx", example=example, axes=axes, **options)


def worst(module: nn.Module, path: Path, *args: Tensor) -> float:
    with torch.no_grad():
        expected = module(*args).numpy()
    return float(np.abs(load(path / "m.onnx")(*(x.numpy() for x in args)) - expected).max())


def padding(*kept: int, size: int) -> Tensor:
    return torch.arange(size) >= torch.tensor(kept)[:, None]


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Decoder, ExportReport]:
    """A decoder, and the file of it with a derived cache."""
    module = Decoder()
    path = tmp_path_factory.mktemp("cached")
    return module, made(module, path, torch.randn(3, 5, DIM), cache=True)


@pytest.mark.parametrize("target", ["ort", "portable", "tiled"])
def test_a_memory_of_any_size_is_read_in_every_form(target: str, tmp_path: Path) -> None:
    module = Decoder()
    made(module, tmp_path, torch.randn(3, 5, DIM), padding(5, 3, 2, size=5), target=target)
    for size in (1, 2, 40):
        args = torch.randn(2, 7, DIM), torch.randn(2, size, DIM), padding(size, 1, size=size)
        assert worst(module, tmp_path, *args) < 1e-5


def test_the_certificate_says_whatever_stands_in_the_memory(tmp_path: Path) -> None:
    report = made(Decoder(), tmp_path, torch.randn(3, 5, DIM))
    assert report.certificate.every_length
    assert report.certificate.reason.endswith("whatever stands in memory")
    assert attest(report.path).verdict == "causal"
    assert {case.note for case in report.parity.cases} >= {"memory 1", "memory 9", "memory 17"}


def test_a_whole_encoder_decoder_has_a_source_of_any_length(tmp_path: Path) -> None:
    module = Translator().eval()
    source, ids = torch.randint(11, (3, 5)), torch.randint(11, (3, 6))
    axes = [{0: "batch", 1: "source"}, BATCHED]
    report = export(module, tmp_path / "m.onnx", example=(source, ids), axes=axes)
    assert report.certificate.verdict == "causal"
    assert worst(module, tmp_path, torch.randint(11, (2, 30)), torch.randint(11, (2, 9))) < 1e-5


def test_the_largest_size_is_found_and_checked(tmp_path: Path) -> None:
    module = Placed()
    report = made(module, tmp_path, torch.randn(3, 5, DIM))
    assert [(axis.name, axis.largest) for axis in report.contract.free_axes] == [("memory", 40)]
    assert worst(module, tmp_path, torch.randn(2, 7, DIM), torch.randn(2, 40, DIM)) < 1e-5
    with pytest.raises(ValueError, match=r"the axis 'memory' is 41, .* at most 40"):
        load(tmp_path / "m.onnx")(torch.randn(1, 2, DIM).numpy(), torch.zeros(1, 41, DIM).numpy())


def test_a_memory_that_holds_the_decoders_positions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CausalityError, match=r"NOT causal.* In the graph, the first "):
        made(SeesItself(), tmp_path, torch.randn(3, 5, DIM))


def test_sizes_that_the_module_does_not_take_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not accept size 1 of the axis 'memory': Runtime"):
        made(Patches(), tmp_path, torch.randn(3, 16, DIM))


@pytest.mark.parametrize(
    ("name", "meant"), [("sequence", "; write 'seq'"), ("bsz", "; write 'batch'"), ("a b", "")]
)
def test_a_name_that_reads_as_one_of_ours_is_no_free_axis(
    name: str, meant: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=f"got '{name}' for axis 1{meant}"):
        made(Decoder(), tmp_path, torch.randn(3, 5, DIM), axes=[BATCHED, {0: "batch", 1: name}])


def test_a_derived_cache_is_given_the_memory_in_every_call(
    cached: tuple[Decoder, ExportReport],
) -> None:
    module, report = cached
    assert report.cache is not None
    assert report.cache.passed
    x, memory = torch.randn(2, 6, DIM), torch.randn(2, 11, DIM)
    stream = load(report.path).stream(batch=2)
    steps = [stream(x[:, t : t + 1].numpy(), memory.numpy()) for t in range(6)]
    expected = module(x, memory).detach().numpy()
    np.testing.assert_allclose(np.concatenate(steps, 1), expected, rtol=0, atol=1e-5)


def test_a_memory_that_stays_is_given_once(cached: tuple[Decoder, ExportReport]) -> None:
    module, report = cached
    x, memory = torch.randn(2, 6, DIM), torch.randn(2, 11, DIM)
    stream = load(report.path).stream(batch=2, inputs={"memory": memory.numpy()})
    first = stream(x[:, :2].numpy())
    swapped = stream.select([1, 0])  # each row takes its memory along
    rest = swapped(x[[1, 0], 2:].numpy())[[1, 0]]
    expected = module(x, memory).detach().numpy()
    np.testing.assert_allclose(np.concatenate([first, rest], 1), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(stream.fork()(x[:, 2:].numpy()), stream(x[:, 2:].numpy()))


def test_what_stays_is_not_given_again(cached: tuple[Decoder, ExportReport]) -> None:
    x, memory = np.zeros((1, 2, DIM), np.float32), np.zeros((1, 4, DIM), np.float32)
    stream = load(cached[1].path).stream(inputs={"memory": memory})
    with pytest.raises(
        ValueError, match=r"at most 1: x .beside what the stream was started with, memory"
    ):
        stream(x, memory)
    with pytest.raises(ValueError, match="'memory' was given when the stream was started"):
        stream(x, memory=memory)


class RowsOfTokens(Decoder):
    """The heads of the memory are split by the batch of the tokens."""

    def forward(self, x: Tensor, memory: Tensor, pad: Tensor | None = None) -> Tensor:
        x = super().forward(x, memory, pad)
        key, value = memory.repeat(1, 1, 2).chunk(2, -1)
        key, value = (y.view(x.shape[0], memory.shape[1], 2, -1).mT for y in (key, value))
        return x + (key * value).sum((1, 2, 3))[:, None, None]


def test_axes_of_one_name_are_one_size_from_the_start(tmp_path: Path) -> None:
    # Two symbols, of tokens and memory, would make the strides of a view a condition on both.
    example = (torch.randn(2, 7, DIM), torch.randn(2, 5, DIM))
    module = RowsOfTokens().eval()
    model = quick_export(module, tmp_path / "m.onnx", example=example, axes=[BATCHED, MEMORY])
    x, memory = torch.randn(1, 3, DIM), torch.randn(1, 1, DIM)
    np.testing.assert_allclose(
        model(x.numpy(), memory.numpy()), module(x, memory).detach(), atol=1e-5
    )
