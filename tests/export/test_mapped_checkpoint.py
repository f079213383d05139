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

from causal_onnx.export import export, export_checkpoint
from causal_onnx.export.checkpoint.mapped import are_mapped, move_to_file
from tests.export.test_checkpoint import LLAMA

LARGE = {**LLAMA, "vocab_size": 50_000, "hidden_size": 512, "intermediate_size": 1400}

STEPS = """
import re, sys
from pathlib import Path
from causal_onnx.export import export_checkpoint

most = {}

def note(step, fraction):
    told = Path("/proc/self/status").read_text()
    held = 1024 * int(re.search(r"RssAnon:\\s*([0-9]+)", told)[1])
    most[step] = max(most.get(step, 0), held)

export_checkpoint(sys.argv[1], sys.argv[3])
note("before", 0.0)
export_checkpoint(sys.argv[2], sys.argv[3], progress=note)
print(most["before"], most["capture"], max(most.values()))
"""
"""Anonymous memory before, at the first look after the weights were loaded, and at most."""


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
    assert are_mapped(saved(tmp_path, dtype)) is mapped
    (tmp_path / "model-2.safetensors").write_bytes(b"damaged")
    assert not are_mapped(tmp_path)


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
    weights = 4 * 53_600_000
    command = [sys.executable, "-W", "ignore", "-c", STEPS, small, large, tmp_path / "m.onnx"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, loaded, most = map(int, told.split())
    assert loaded - before < weights / 20
    assert most - before < 1.3 * weights
