"""The weights of a checkpoint lie in files, whatever it holds, and not in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from causal_onnx.export import ExportError, export, export_checkpoint
from causal_onnx.export.checkpoint.mapped import move_to_file
from causal_onnx.export.checkpoint.widened import widened
from tests.export.test_checkpoint import LLAMA

LARGE = {
    **LLAMA,
    "vocab_size": 20_000,
    "hidden_size": 512,
    "intermediate_size": 3000,
    "num_hidden_layers": 6,
}

STEPS = """
import re, sys, threading
from pathlib import Path
from causal_onnx.export import export_checkpoint

most = {}

def note(step, fraction):
    told = Path("/proc/self/status").read_text()
    held = 1024 * int(re.search(r"RssAnon:\\s*([0-9]+)", told)[1])
    most[step] = max(most.get(step, 0), held)
    if step not in ("before", "load"):
        is_loaded.set()

def watch():
    while not is_loaded.wait(0.002):
        note("load", 0.0)

is_loaded = threading.Event()
export_checkpoint(sys.argv[1], sys.argv[3])
note("before", 0.0)
watcher = threading.Thread(target=watch)
watcher.start()
export_checkpoint(sys.argv[2], sys.argv[3], progress=note)
watcher.join()
print(most["before"], most["load"], most["capture"], max(most.values()))
"""
"""Anonymous memory before, while weights are loaded, at the first look after that, and at most."""


def saved(folder: Path, dtype: torch.dtype, settings: Any = LLAMA) -> Path:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    model.to(dtype).save_pretrained(folder)
    return folder


def three_weights() -> nn.Module:
    """Two large ones, one of them in two places, and a small one."""
    torch.manual_seed(0)
    module = nn.ModuleList([nn.Linear(300, 301), nn.Linear(300, 301), nn.Linear(3, 3)])
    module.append(nn.Linear(300, 301, bias=False))
    module[3].weight = module[0].weight
    return module


def test_large_weights_lie_in_a_file_and_keep_their_numbers(tmp_path: Path) -> None:
    module, twin = three_weights(), three_weights()
    places = [value.data_ptr() for value in module.parameters()]
    move_to_file(module, tmp_path)
    moved = [v.data_ptr() != p for v, p in zip(module.parameters(), places, strict=True)]
    assert moved == [True, False, True, False, False, False]
    assert module[3].weight is module[0].weight
    assert module[1].weight.data_ptr() % 4096 == 0
    assert all(map(torch.equal, module.parameters(), twin.parameters()))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_share_memory_stay_together(tmp_path: Path) -> None:
    whole = torch.randn(200, 300)
    module = nn.ParameterList([nn.Parameter(whole[:100]), nn.Parameter(whole.T)])
    move_to_file(module, tmp_path)
    assert [v.untyped_storage().data_ptr() for v in module] == 2 * [whole.data_ptr()]


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        move_to_file(three_weights(), tmp_path / "missing")


@pytest.mark.parametrize(
    ("dtype", "mapped"), [(torch.float32, True), (torch.bfloat16, False), (torch.float16, False)]
)
def test_a_loader_maps_what_is_in_fp32(tmp_path: Path, dtype: torch.dtype, mapped: bool) -> None:
    folder = saved(tmp_path / "checkpoint", dtype)
    (tmp_path / "scratch").mkdir()
    for beside in (None, "consolidated.safetensors"):
        if beside is not None:
            (folder / beside).write_bytes(b"the same in a layout that is not read")
        with widened(folder, tmp_path / "scratch") as (source, is_mapped):
            assert (source == folder) is mapped
            assert is_mapped
    (folder / "model.safetensors").write_bytes(b"damaged")
    with widened(folder, tmp_path / "scratch") as found:
        assert found == (folder, False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard", ["50GB", "4KB"])
def test_a_widened_checkpoint_holds_the_same_numbers(
    tmp_path: Path, dtype: torch.dtype, shard: str
) -> None:
    folder = tmp_path / "checkpoint"
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    before = sorted(folder.iterdir())
    assert (len(before) > 4) is (shard == "4KB")
    (tmp_path / "scratch").mkdir()
    with widened(folder, tmp_path / "scratch") as (wide, _):
        assert wide.name == folder.name
        with widened(wide, tmp_path / "scratch") as found:
            assert found == (wide, True)
        loaded = transformers.LlamaForCausalLM.from_pretrained(wide, dtype=torch.float32)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert sorted(folder.iterdir()) == before
    expected = model.float().state_dict()
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_what_cannot_be_widened_is_read_where_it_is(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float64):
        with widened(saved(tmp_path / str(dtype), dtype), tmp_path) as found:
            assert found == (tmp_path / str(dtype), dtype == torch.float32)
    damaged = saved(tmp_path / "damaged", torch.bfloat16)
    (damaged / "model.safetensors").write_bytes(b"damaged")
    with widened(damaged, tmp_path) as found:
        assert found == (damaged, False)
    sharded = saved(tmp_path / "sharded", torch.bfloat16)
    (sharded / "model.safetensors").rename(sharded / "model-1.safetensors")
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": "missing"}}')
    with widened(sharded, tmp_path) as found:
        assert found == (sharded, False)


def test_a_checkpoint_that_does_not_fit_is_named_by_its_own_folder(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoint", torch.bfloat16)
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace('"num_hidden_layers": 1', '"num_hidden_layers": 3')
    )
    with pytest.raises(ExportError, match=f"^{folder} lacks") as caught:
        export_checkpoint(folder, tmp_path / "m.onnx")
    assert str(caught.value).count(str(tmp_path)) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_the_file_is_that_of_the_model_in_memory(tmp_path: Path) -> None:
    settings = {**LLAMA, "hidden_size": 128, "intermediate_size": 160}
    folder = saved(tmp_path / "checkpoint", torch.bfloat16, settings)
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    export(model, tmp_path / "a.onnx", cache=True)
    export_checkpoint(folder, tmp_path / "b.onnx", cache=True)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_export_holds_the_weights_of_a_session_and_no_module(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    small, large = saved(tmp_path / "s", dtype), saved(tmp_path / "l", dtype, LARGE)
    weights = 4 * 54_400_000
    command = [sys.executable, "-W", "ignore", "-c", STEPS, small, large, tmp_path / "m.onnx"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, load, loaded, most = map(int, told.split())
    assert load - before < 0.6 * weights
    assert loaded - before < weights / 10
    assert most - before < 1.3 * weights
