"""What inputs without positions decide is computed in the first call of a row, and kept."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from causal_onnx.export import ExportReport, attest, export
from causal_onnx.export.arguments import ExportOptions
from causal_onnx.export.check.cache_chunks import prove_cache
from causal_onnx.export.check.parity import Session
from causal_onnx.export.subject import prepare
from causal_onnx.export.write import write_model
from causal_onnx.runtime import ArtifactError, load

DIM, WORDS = 16, 11
IDS, SOURCE = {0: "batch", 1: "seq"}, {0: "batch", 1: "source"}
MEMORY = {0: "batch", 1: "memory"}


class Translator(nn.Module):
    """Source ids are encoded in both directions, and read by a causal decoder of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, DIM)
        self.encoder = nn.TransformerEncoderLayer(DIM, 2, 32, batch_first=True)
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(DIM, 2, 32, batch_first=True), 2
        )

    def forward(self, ids: Tensor, source: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        memory = self.encoder(self.words(source))
        return self.decoder(self.words(ids), memory, tgt_mask=mask, tgt_is_causal=True)


class Crossed(nn.Module):
    """One causal attention, and one over a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(DIM, DIM)

    def memory(self, memory: Tensor) -> Tensor:
        return memory

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        memory = self.memory(memory)
        return x + functional.scaled_dot_product_attention(x, self.keys(memory), memory)


class MergedHeads(Crossed):
    """Heads are merged with the batch, as a product of three axes has them."""

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        q, k, v = (
            y.view(len(y), -1, 2, DIM // 2).transpose(1, 2).flatten(0, 1)
            for y in (x, self.keys(memory), memory)
        )
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return x + y.view(len(x), 2, -1, DIM // 2).transpose(1, 2).flatten(2)


class Transposed(Crossed):
    """The rows stand second."""

    def memory(self, memory: Tensor) -> Tensor:
        return (self.keys(memory.transpose(0, 1)) ** 2).transpose(0, 1)


class Scaled(Crossed):
    """A factor that all rows share is read beside the memory, too."""

    def forward(self, x: Tensor, memory: Tensor, factor: Tensor) -> Tensor:
        return super().forward(x, memory * factor) * factor


def made(
    module: nn.Module, path: Path, example: tuple[Tensor, ...], axes: list[Any], **options: Any
) -> ExportReport:
    return export(
        module.eval(), path, example=example, axes=axes, cache=True, effort="quick", **options
    )


@cache
def crossed(kind: type[Crossed] = Crossed) -> Crossed:
    """The same for all tests, so that it is captured once for each opset and precision."""
    torch.manual_seed(0)
    return kind().eval()


@cache
def translator() -> Translator:
    torch.manual_seed(0)
    module = Translator().eval()
    for layer in module.decoder.layers:  # PyTorch makes copies of the first
        nn.init.normal_(layer.multihead_attn.in_proj_weight, std=0.3)
    return module


EXAMPLE = (torch.randint(WORDS, (3, 6)), torch.randint(WORDS, (3, 5)))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("once") / "m.onnx"
    made(translator(), path, EXAMPLE, [IDS, SOURCE])
    return path


def drawn(rows: int, seq: int, source: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seq)
    return generator.integers(WORDS, size=(rows, seq)), generator.integers(
        WORDS, size=(rows, source)
    )


def whole(*inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return translator()(*map(torch.from_numpy, inputs)).numpy()


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_contract_and_the_report_say_what_is_computed_once(written: Path) -> None:
    contract = load(written).contract
    once = [pair for pair in contract.cache if pair.computed_from]
    assert contract.once_names == {"source"}
    assert [pair.past for pair in once] == [f"past_memory.{n}" for n in range(4)]
    certificate = load(written).certificate or {}
    assert "(source: computed once, 4 values)" in certificate["cache"]["summary"]


def test_a_later_call_of_the_graph_does_not_read_the_source_again(written: Path) -> None:
    ids, source = drawn(2, 6, 9)
    session = Session(written, load(written).contract)
    first, past = session.step([ids[:, :2], source], session.empty_past([ids, source]))
    other = (source + 1) % WORDS
    rest, _ = session.step([ids[:, 2:], other], past, np.ones((2, 6), np.int64))
    assert_close(np.concatenate([first[0], rest[0]], 1), whole(ids, source))


def test_a_row_that_begins_later_reads_its_own_source(written: Path) -> None:
    ids, source = drawn(2, 5, 7)
    stream = load(written).stream(batch=2)
    unread = np.stack([source[0], (source[1] + 3) % WORDS])
    first = stream(ids[:, :2], unread, lengths=[2, 0])
    rest = stream(ids[:, 2:], source)
    assert_close(np.concatenate([first[:1], rest[:1]], 1), whole(ids[:1], source[:1]))
    assert_close(rest[1:], whole(ids[1:, 2:], source[1:]))


def test_a_stream_refuses_another_source_than_its_rows_began_with(written: Path) -> None:
    ids, source = drawn(2, 4, 7)
    stream = load(written).stream(batch=2)
    stream(ids[:, :2], source, lengths=[2, 1])
    with pytest.raises(ValueError, match=r"'source' is not what the sequence began with: .* once"):
        stream(ids[:, 2:], (source + 1) % WORDS)
    assert stream.lengths == (2, 1)
    assert_close(stream(ids[:1].repeat(2, 0)[:, 2:], source)[:1], whole(ids, source)[:1, 2:])


def test_another_source_of_another_size_is_read_after_a_rewind_to_the_start(written: Path) -> None:
    ids, source = drawn(2, 4, 7)
    stream = load(written).stream(batch=2)
    stream(ids, source)
    stream.rewind(0)
    ids, source = drawn(2, 5, 3)
    assert_close(stream(ids, source), whole(ids, source))


def test_a_rewind_keeps_what_was_computed_once(written: Path) -> None:
    ids, source = drawn(2, 6, 7)
    stream = load(written).stream(batch=2, inputs={"source": source})
    stream((ids + 1) % WORDS)
    stream.rewind([0, 0])
    stream(ids[:, :3])
    stream((ids[:, 3:] + 1) % WORDS)
    stream.rewind(3)
    assert_close(stream(ids[:, 3:]), whole(ids, source)[:, 3:])


def test_forks_selections_and_saved_streams_hold_to_their_source(
    written: Path, tmp_path: Path
) -> None:
    ids, source = drawn(2, 6, 7)
    model = load(written)
    stream = model.stream(batch=2)
    stream(ids[:, :3], source)
    stream.save(tmp_path / "saved")
    expected = whole(ids, source)[:, 3:]
    for other in (stream.fork(), model.restore(tmp_path / "saved")):
        with pytest.raises(ValueError, match="'source' is not what the sequence began with"):
            other(ids[:, 3:], (source + 1) % WORDS)
        assert_close(other(ids[:, 3:], source), expected)
    assert_close(stream.select([1, 1])(ids[[1, 1], 3:], source[[1, 1]]), expected[[1, 1]])


def test_a_saved_stream_whose_source_was_taken_out_is_damaged(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, source = drawn(1, 3, 7)
    model = load(written)
    stream = model.stream()
    stream(ids, source)
    monkeypatch.setattr(np, "savez", _without("source", np.savez))
    stream.save(tmp_path / "saved")
    with pytest.raises(ArtifactError, match="damaged: it has no 'source'"):
        model.restore(tmp_path / "saved")


def _without(name: str, save: Callable[..., None]) -> Callable[..., None]:
    return lambda file, **arrays: save(file, **{k: x for k, x in arrays.items() if k != name})


def _choice(model: ir.Model) -> ir.Node:
    return next(
        node
        for node in model.graph
        if node.op_type == "If" and str(node.outputs[0].name).startswith("present_memory")
    )


def _branch(model: ir.Model, name: str) -> ir.Graph:
    return _choice(model).attributes[f"{name}_branch"].as_graph()


def swap_states(model: ir.Model) -> None:
    outputs = _branch(model, "else").outputs
    outputs[0], outputs[1] = outputs[1], outputs[0]


def compute_again(model: ir.Model) -> None:
    """From what the later calls give."""
    always = ir.tensor(np.array(True), name="always")
    value = ir.Value(
        name="always", const_value=always, type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([])
    )
    model.graph.register_initializer(value)
    _choice(model).replace_input_with(0, value)
    _scale(model, "Min", 0)


def take_the_first_row(model: ir.Model) -> None:
    _scale(model, "Range", 0)


def _scale(model: ir.Model, op_type: str, factor: int) -> None:
    """Multiply the last result of an operator in the branch of rows that begin."""
    branch = _branch(model, "then")
    value = [node for node in branch if node.op_type == op_type][-1].outputs[0]
    tensor = ir.tensor(np.array(factor, np.int64), name="factor")
    number = ir.Value(
        name="factor", const_value=tensor, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([])
    )
    model.graph.register_initializer(number)
    users = [(use.node, use.idx) for use in value.uses()]
    product = ir.node("Mul", [value, number])
    product.outputs[0].name = "scaled"
    branch.insert_before(users[0][0], product)
    for node, index in users:
        node.replace_input_with(index, product.outputs[0])


def never_begin(model: ir.Model) -> None:
    """The condition reads whether a row has tokens at all."""
    maker = _choice(model).inputs[0].producer()  # type: ignore[union-attr]
    assert maker is not None
    maker.op_type = "Greater"


@pytest.mark.parametrize(
    "mutate", [swap_states, compute_again, take_the_first_row, never_begin, lambda model: None]
)
def test_a_graph_that_keeps_something_else_is_found_out(
    mutate: Callable[[ir.Model], None], written: Path, tmp_path: Path
) -> None:
    model, contract = ir.load(written), load(written).contract
    mutate(model)
    write_model(model, tmp_path / "m.onnx", dict(model.metadata_props))
    options = ExportOptions(cache=True, opset=24, effort="quick")
    subject = prepare(translator(), EXAMPLE, [IDS, SOURCE], options=options)
    found = prove_cache(
        Session(tmp_path / "m.onnx", contract),
        subject.reference.fresh(),
        subject.specs,
        contract,
        tolerance=1e-5,
    )
    assert found.passed == (mutate.__name__ == "<lambda>")


def test_the_proof_looks_into_the_branch_of_rows_that_begin(written: Path) -> None:
    model = ir.load(written)
    branch = _branch(model, "then")
    ids = next(value for value in model.graph.inputs if value.name == "ids")
    cast = ir.node("Cast", [ids], {"to": int(ir.DataType.FLOAT)})
    leak = ir.node("ReduceMax", [cast.outputs[0]], {"keepdims": 0})
    added = ir.node("Add", [branch.outputs[0], leak.outputs[0]])
    for node in (cast, leak, added):
        node.outputs[0].name = f"leak_{node.op_type}"
        branch.append(node)
    branch.outputs[0] = added.outputs[0]
    assert attest(written).every_length
    assert attest(ir.to_proto(model), dynamic=False).verdict == "not_causal"


@pytest.mark.parametrize(
    "options",
    [
        {"target": "portable", "opset": 17},
        {"target": "tiled"},
        {"target": "ort-1.32"},
        {"precision": "fp16"},
        {"precision": "bf16"},
        {"precision": "int8"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_every_form_computes_the_memory_once(options: dict[str, Any], tmp_path: Path) -> None:
    example = torch.randn(3, 6, DIM), torch.randn(3, 5, DIM)
    report = made(crossed(), tmp_path / "m.onnx", example, [IDS, MEMORY], **options)
    assert report.contract.once_names == {"memory"}
    assert report.certificate.verdict == "causal"
    assert report.cache is not None
    assert report.cache.passed


@pytest.mark.parametrize(
    "options", [{"precision": "int8", "target": "portable"}, {"precision": "w8a8"}], ids=str
)
def test_weights_that_are_decoded_do_not_stand_in_a_branch(
    options: dict[str, Any], tmp_path: Path
) -> None:
    example = torch.randn(3, 6, DIM), torch.randn(3, 5, DIM)
    report = made(crossed(), tmp_path / "m.onnx", example, [IDS, MEMORY], **options)
    assert report.contract.once_names == frozenset()
    reasons = [fallback.reason for fallback in report.fallbacks]
    assert "onnxruntime does not find coded weights that are decoded inside a branch" in reasons


@pytest.mark.parametrize(
    ("module", "kept"), [(Crossed, 2), (MergedHeads, 2), (Transposed, 2)], ids=str
)
def test_any_layout_of_a_memory_is_kept(module: type[Crossed], kept: int, tmp_path: Path) -> None:
    example = torch.randn(3, 6, DIM), torch.randn(3, 5, DIM)
    report = made(crossed(module), tmp_path / "m.onnx", example, [IDS, MEMORY])
    assert report.contract.once_names == {"memory"}
    assert sum(bool(pair.computed_from) for pair in report.contract.cache) == kept


def test_a_module_without_rows_keeps_its_memory(tmp_path: Path) -> None:
    example = torch.randn(6, DIM), torch.randn(5, DIM)
    report = made(crossed(), tmp_path / "m.onnx", example, [{0: "seq"}, {0: "memory"}])
    assert report.contract.once_names == {"memory"}
    x, memory = np.zeros((4, DIM), np.float32), np.ones((7, DIM), np.float32)
    stream = load(tmp_path / "m.onnx").stream(inputs={"memory": memory})
    assert stream(x[:1]).shape == stream(x[1:2]).shape == (1, DIM)


def test_what_cannot_be_kept_is_computed_in_every_call_and_named(tmp_path: Path) -> None:
    example = torch.randn(3, 6, DIM), torch.randn(3, 5, DIM), torch.ones(1)
    report = made(Scaled(), tmp_path / "m.onnx", example, [IDS, MEMORY, {}])
    assert report.contract.once_names == frozenset()
    assert "the input 'factor' has no axis for the rows of the batch" in {
        fallback.reason for fallback in report.fallbacks
    }


def test_what_costs_little_is_computed_in_every_call(tmp_path: Path) -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(WORDS, DIM)

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            x = x + self.table(label)[:, None]
            return functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    example = torch.randn(3, 6, DIM), torch.tensor([1, 2, 3])
    report = made(Labelled(), tmp_path / "m.onnx", example, [IDS, {0: "batch"}])
    assert report.contract.once_names == frozenset()
