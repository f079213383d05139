"""LoRA adapters as inputs of a file: any of them, row by row, and none to the bit."""

from __future__ import annotations

import copy
import json
import pickle
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from torch import Tensor, nn

from causal_onnx.cli.main import main
from causal_onnx.export import ExportError, export, export_checkpoint, verify
from causal_onnx.runtime import ArtifactError, Model, load, verify_bundle

peft = pytest.importorskip("peft", reason="adapters are made by peft")

RANKS = {"three": 3, "eight": 8, "seventeen": 17}
"""Adapters, and their ranks; "eight" changes fewer layers."""
ROWS = [None, *RANKS]
PROMPTS = [[3, 4, 5], [3, 4, 5], [3, 4], [7]]
MEANT = {"llama": ["q_proj", "v_proj", "up_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}


@cache
def made(kind: str) -> Any:
    """The same for all files, so that it is captured once; none changes it."""
    torch.manual_seed(0)
    if kind == "llama":
        sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
        config = transformers.LlamaConfig(
            vocab_size=61, max_position_embeddings=32, **sizes, **heads
        )
        return transformers.LlamaForCausalLM(config).eval()
    settings = {"n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 1}
    config = transformers.GPT2Config(vocab_size=61, n_positions=32, **settings)
    return transformers.GPT2LMHeadModel(config).eval()


def adapt(model: nn.Module, folder: Path, **settings: Any) -> Any:
    """The model with an adapter of random weights, which is saved to the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers tells peft of its next version
        config = peft.LoraConfig(**{"init_lora_weights": False, **settings})
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        adapted.save_pretrained(folder)
    return adapted.eval()


@dataclass(frozen=True)
class Made:
    """A model, its adapters, and the files with and without their inputs."""

    folder: Path
    model: Any
    adapted: dict[str, Any]

    def file(self, name: str) -> Model:
        paths = {key: self.folder / key for key in RANKS}
        return load(self.folder / f"{name}.onnx", adapters=paths)

    @property
    def plain(self) -> Model:
        return load(self.folder / "plain.onnx")


def prepare(kind: str, folder: Path, **options: Any) -> Made:
    model = made(kind)
    adapted = {
        name: adapt(
            model,
            folder / name,
            r=rank,
            lora_alpha=5,
            use_rslora=rank == 17,
            target_modules=MEANT[kind][:1] if rank == 8 else MEANT[kind],
            alpha_pattern={r"layers\.1\..*": 9} if rank == 3 else {},
        )
        for name, rank in RANKS.items()
    }
    options = {"effort": "quick", "cache": True, **options}
    export(model, folder / "adaptable.onnx", adaptable=[folder / "three"], **options)
    export(model, folder / "plain.onnx", **options)
    return Made(folder, model, adapted)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def given(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return prepare(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return prepare("llama", tmp_path_factory.mktemp("one"), cache=False)


def some_ids(batch: int, seq: int) -> Any:
    return np.random.default_rng(seq).integers(0, 61, (batch, seq))


def error(model: Model, source: Any, rows: Sequence[str | None]) -> float:
    """The largest error of the logits beside PyTorch's in float64."""
    ids = some_ids(len(rows), 9)
    with torch.no_grad():
        expected = copy.deepcopy(source).double()(torch.from_numpy(ids)).logits.numpy()
    got = model.run(ids, **model.adapter_inputs(rows))["logits"]
    return float(np.abs(got - expected).max())


def greedy(source: Any, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(source(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "seq"), [(1, 1), (1, 7), (3, 2), (2, 32)])
def test_without_an_adapter_the_bits_are_those_of_a_file_without_adapters(
    batch: int, seq: int, given: Made
) -> None:
    ids = some_ids(batch, seq)
    expected = given.plain(ids)
    assert given.file("adaptable")(ids).tobytes() == expected.tobytes()
    rows = given.file("adaptable").adapter_inputs([None] * batch)
    assert given.file("adaptable").run(ids, **rows)["logits"].tobytes() == expected.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", RANKS)
def test_with_an_adapter_it_computes_what_peft_does(name: str, given: Made) -> None:
    model = given.file("adaptable")
    assert error(model, given.adapted[name], [name] * 2) < 2e-6
    assert error(model, given.model, [name] * 2) > 1e-3
    assert model.generate([3, 4], max_new_tokens=9, adapter=name).ids == tuple(
        greedy(given.adapted[name], [3, 4], 9)
    )


@pytest.mark.slow
@pytest.mark.parametrize("seq", [1, 9])
def test_a_row_has_the_same_bits_whatever_adapter_is_beside_it(seq: int, given: Made) -> None:
    model, ids = given.file("adaptable"), some_ids(4, seq)
    mixed = model.run(ids, **model.adapter_inputs(ROWS))["logits"]
    for row, name in enumerate(ROWS):
        alike = model.run(ids, **model.adapter_inputs([name] * 4))["logits"]
        assert mixed[row].tobytes() == alike[row].tobytes()
    assert mixed[0].tobytes() == given.plain(ids)[0].tobytes()


@pytest.mark.slow
def test_a_batch_generates_what_each_row_does_alone(given: Made) -> None:
    model = given.file("adaptable")
    together = model.generate_batch(PROMPTS, max_new_tokens=8, adapter=ROWS)
    for name, prompt, found in zip(ROWS, PROMPTS, together, strict=True):
        alone = model.generate(prompt, max_new_tokens=8, adapter=name)
        assert found.ids == alone.ids
    assert len({found.ids for found in together}) == len(ROWS)


@pytest.mark.slow
def test_a_stream_keeps_the_adapters_of_its_rows(given: Made, tmp_path: Path) -> None:
    model, ids = given.file("adaptable"), some_ids(3, 6)
    rows = ["three", None, "eight"]
    whole = model.run(ids, **model.adapter_inputs(rows))["logits"]
    stream = model.stream(batch=3, adapter=rows)
    stream(ids[:, :4])
    stream.save(tmp_path / "saved")
    chosen = stream.fork().select([2, 0])
    assert chosen.adapters == ("eight", "three")
    restored = model.restore(tmp_path / "saved")
    np.testing.assert_allclose(chosen(ids[[2, 0], 4:]), whole[[2, 0], 4:], atol=1e-5)
    np.testing.assert_allclose(restored(ids[:, 4:]), whole[:, 4:], atol=1e-5)


@pytest.mark.slow
def test_a_saved_stream_needs_the_adapter_that_it_was_read_with(
    given: Made, tmp_path: Path
) -> None:
    stream = given.file("adaptable").stream(adapter="three")
    stream(some_ids(1, 3))
    stream.save(tmp_path / "saved")
    path = given.folder / "adaptable.onnx"
    with pytest.raises(ArtifactError, match=r"was read with the adapter 'three', and .* has none"):
        load(path).restore(tmp_path / "saved")
    other = load(path, adapters={"three": given.folder / "seventeen"})
    with pytest.raises(ArtifactError, match=r"'three', and .* has another one of that name"):
        other.restore(tmp_path / "saved")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_weights_are_those_of_a_file_without_adapters(
    precision: str, tmp_path: Path
) -> None:
    found = prepare("llama", tmp_path, precision=precision, max_drift=9.0, rounding="gptq")
    model, ids = found.file("adaptable"), some_ids(2, 9)
    without = found.plain(ids)
    assert model(ids).tobytes() == without.tobytes()
    got = model.run(ids, **model.adapter_inputs(["seventeen"] * 2))["logits"]
    with torch.no_grad():
        expected = found.adapted["seventeen"](torch.from_numpy(ids)).logits.numpy()
    rounding = np.abs(without - found.model(torch.from_numpy(ids)).logits.detach().numpy()).max()
    assert np.abs(got - expected).max() < 4 * rounding
    assert np.abs(got - without).max() > 2 * rounding


def test_the_report_and_the_file_say_which_layers_adapters_may_change(llama: Made) -> None:
    model = llama.file("adaptable")
    assert model.adapters == tuple(RANKS)
    pairs = {pair.module: pair for pair in model.contract.adapters}
    assert len(pairs) == 8
    pair = pairs["model.layers.1.mlp.up_proj"]
    assert (pair.down, pair.up) == (f"{pair.module}.lora_down", f"{pair.module}.lora_up")
    assert model.certificate is not None
    assert model.certificate["verdict"] == "causal"
    assert verify(llama.model, llama.folder / "adaptable.onnx").passed


def test_no_product_of_an_adapter_is_transposed(llama: Made) -> None:
    """onnxruntime before 1.32 leaves a product of rank 0 unwritten where it is."""
    graph = onnx.load(llama.folder / "adaptable.onnx").graph
    names = {
        name for pair in llama.file("adaptable").contract.adapters for name in (pair.down, pair.up)
    }
    users = [node.op_type for node in graph.node if names & set(node.input)]
    assert len(names) == users.count("MatMul") == 16
    assert set(users) <= {"MatMul", "Shape"}


def test_patterns_choose_layers_and_each_entry_must_mean_one(tmp_path: Path) -> None:
    model = made("llama")
    report = export(model, tmp_path / "m.onnx", adaptable=["*.0.*.[qk]_proj"], effort="quick")
    layers = [pair.module for pair in report.contract.adapters]
    assert layers == [f"model.layers.0.self_attn.{name}_proj" for name in "qk"]
    with pytest.raises(ValueError, match=r"'\*\.query' is neither the name of a linear layer of"):
        export(model, tmp_path / "m.onnx", adaptable=["*.query"])
    with pytest.raises(TypeError, match="adaptable holds patterns and folders, got 3"):
        export(model, tmp_path / "m.onnx", adaptable=[3])  # type: ignore[list-item]
    adapt(made("gpt2"), tmp_path / "lora", target_modules=["c_attn"])
    with pytest.raises(ExportError, match=r"lora changes transformer\.h\.0\.attn\.c_attn.*, which"):
        export(model, tmp_path / "m.onnx", adaptable=[tmp_path / "lora"])


class Attends(nn.Module):
    """Attention whose parts an adapter cannot all change."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 2, batch_first=True)
        self.across = nn.Linear(16, 16)
        self.after = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        y = self.inner(x, x, x, attn_mask=mask, need_weights=False)[0]
        return self.after(self.across(y.transpose(0, 1)).transpose(0, 1))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("inner.out_proj", "no adapter can change inner.out_proj: the module does not call it"),
        ("across", "no adapter can change across: .*rows are not its first axis. Leave it out"),
    ],
)
def test_a_layer_that_an_adapter_cannot_change_is_named(
    layer: str, message: str, tmp_path: Path
) -> None:
    example = torch.randn(3, 7, 16)
    with pytest.raises(ExportError, match=message):
        export(Attends().eval(), tmp_path / "m.onnx", example=example, adaptable=[layer])


def test_a_layer_of_any_module_is_changed_row_by_row(tmp_path: Path) -> None:
    module, x = Attends().eval(), torch.randn(2, 5, 16)
    export(module, tmp_path / "m.onnx", example=torch.randn(3, 7, 16), adaptable=["after"])
    down, up = torch.randn(2, 16), torch.randn(16, 2)
    np.savez(tmp_path / "a.npz", **{"after.lora_A": down.numpy(), "after.lora_B": up.numpy()})
    model = load(tmp_path / "m.onnx", adapters={"a": tmp_path / "a.npz"})
    got = model.run(x.numpy(), **model.adapter_inputs([None, "a"]))["output"]
    with torch.no_grad():
        expected = [module(x)[0]]
        module.after.weight += up @ down
        expected.append(module(x)[1])
    np.testing.assert_allclose(got, torch.stack(expected).numpy(), atol=1e-5)


def test_adapters_need_rows(tmp_path: Path) -> None:
    options: dict[str, Any] = {"example": torch.randn(7, 16), "axes": [{0: "seq"}]}
    with pytest.raises(
        ValueError, match="adapters are chosen row by row, and no input has a batch"
    ):
        export(Attends().eval(), tmp_path / "m.onnx", adaptable=["after"], **options)


@pytest.mark.slow
def test_a_checkpoint_becomes_a_folder_that_takes_adapters(tmp_path: Path) -> None:
    made("llama").save_pretrained(tmp_path / "base")
    adapted = adapt(made("llama"), tmp_path / "lora", target_modules=["k_proj"], r=2)
    export_checkpoint(
        tmp_path / "base", tmp_path / "m", adaptable=[tmp_path / "lora"], effort="quick"
    )
    assert verify_bundle(tmp_path / "m").passed
    model = load(tmp_path / "m", adapters={"lora": tmp_path / "lora"})
    assert model.selftest().passed
    assert pickle.loads(pickle.dumps(model)).adapters == ("lora",)
    assert error(model, adapted, ["lora"] * 2) < 2e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"use_dora": True}, "has use_dora True, which is more than two matrices for each layer"),
        ({"bias": "lora_only"}, "has bias 'lora_only', which is more than two matrices"),
        ({"modules_to_save": ["lm_head"]}, r"has modules_to_save \['lm_head'\]"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights 'pissa', which changes the model"),
        (
            {"target_modules": ["embed_tokens"]},
            "embed_tokens.*, which is neither lora_A nor lora_B of a linear",
        ),
        ({"target_modules": ["gate_proj"]}, r"changes model\.layers\.0\.mlp\.gate_proj, and"),
    ],
)
def test_what_is_more_than_two_matrices_for_a_layer_of_the_file_is_refused(
    settings: dict[str, Any], complaint: str, llama: Made, tmp_path: Path
) -> None:
    settings = {"target_modules": ["q_proj"], **settings}
    adapt(made("llama"), tmp_path / "lora", **settings)
    with pytest.raises(ArtifactError, match=complaint) as caught:
        load(llama.folder / "adaptable.onnx", adapters={"x": tmp_path / "lora"})
    assert re.search("merge it into a file of its own|export it with adaptable", str(caught.value))


def edited(llama: Made, folder: Path, **changes: Any) -> Path:
    """A copy of an adapter with other settings."""
    source = llama.folder / "three"
    folder.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"r": 4}, "has rank 3, and adapter_config.json says 4"),
        ({"rank_pattern": {"up_proj": 5}}, "up_proj has rank 3, and adapter_config.json says 5"),
        ({"rank_pattern": {"(": 5}}, "rank_pattern is no pattern"),
        ({"lora_alpha": "much"}, "lora_alpha must be a number, got 'much'"),
        ({"peft_type": "LOHA"}, "is an adapter of type 'LOHA', expected 'LORA'; merge it"),
        ({"of_tomorrow": 1}, "has of_tomorrow 1, which is more than two matrices"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_refused(
    changes: dict[str, Any], complaint: str, llama: Made, tmp_path: Path
) -> None:
    folder = edited(llama, tmp_path / "lora", **changes)
    with pytest.raises(ArtifactError, match=complaint):
        load(llama.folder / "adaptable.onnx", adapters={"x": folder})


def test_a_name_that_is_not_loaded_is_refused(llama: Made) -> None:
    model = llama.file("adaptable")
    with pytest.raises(ValueError, match="there is no adapter 'four'; loaded are three, eight, "):
        model.adapter_inputs(["four"])
    with pytest.raises(ValueError, match=r"plain.onnx takes no adapters: export it with adaptable"):
        llama.file("plain")


@pytest.mark.slow
def test_the_commands_take_an_adapter(given: Made, capsys: pytest.CaptureFixture[str]) -> None:
    place, adapter = given.folder / "adaptable.onnx", given.folder / "three"
    arguments = ["generate", str(place), "--ids", "3,4,5", "--max-new-tokens", "6"]
    assert main([*arguments, "--adapter", str(adapter)]) == 0
    expected = given.file("adaptable").generate([3, 4, 5], max_new_tokens=6, adapter="three").ids
    assert capsys.readouterr().out.strip() == ",".join(map(str, expected))
    assert main([*arguments, "--adapter", str(given.folder / "none")]) == 1
    assert f"there is no adapter {given.folder / 'none'}" in capsys.readouterr().err


def test_an_encoder_that_adapters_change_is_still_computed_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(vocab_size=61, decoder_start_token_id=0, **sizes)
    module, place = transformers.T5ForConditionalGeneration(config).eval(), tmp_path / "m.onnx"
    options = {"cache": True, "max_seq_len": 24, "effort": "quick"}
    report = export(module, place, adaptable=["*.q", "*.v"], **options)
    assert report.contract.once_names == {"input_ids", "attention_mask"}
    pair = next(pair for pair in report.contract.adapters if pair.module.startswith("encoder."))
    layer = module.get_submodule(pair.module)
    shapes = {"A": (4, layer.in_features), "B": (layer.out_features, 4)}
    arrays = {f"{pair.module}.lora_{k}": np.ones(v, np.float32) for k, v in shapes.items()}
    np.savez(tmp_path / "a.npz", **arrays)
    model = load(place, adapters={"a": tmp_path / "a.npz"})
    source = {"input_ids": some_ids(1, 5), "attention_mask": np.ones((1, 5), np.int64)}
    ids, rows = some_ids(1, 4), model.adapter_inputs(["a"])
    whole = model.run(decoder_input_ids=ids, **source, **rows)["logits"]
    stream = model.stream(inputs=source, adapter="a")
    steps = [stream.run(ids[:, t : t + 1])["logits"] for t in range(4)]
    np.testing.assert_allclose(np.concatenate(steps, 1), whole, rtol=0, atol=1e-5)
    assert np.abs(whole - model.run(decoder_input_ids=ids, **source)["logits"]).max() > 1e-3
