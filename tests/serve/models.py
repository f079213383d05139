"""Folders of models that are served in tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from causal_onnx.runtime import load

__all__ = ["with_template", "write_adapter", "write_talker"]

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if tools %}{{ 'tools: ' + tools | map(attribute='function.name') | join(' ') + '\n' }}"
    "{% endif %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def with_template(model: Path, folder: Path) -> Path:
    """A copy with a chat template, and no manifest that this would contradict."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("contract.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def write_talker(folder: Path) -> Path:
    """A model of random weights that can write every byte, and so JSON too."""
    from tests.runtime.artifacts import fixture
    from tests.runtime.language import write_tokenizer

    folder.mkdir()
    shutil.copy(fixture("language"), folder / "model.onnx")
    write_tokenizer(folder, end=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def write_adapter(folder: Path, path: Path, *, rank: int = 4, seed: int = 0) -> Path:
    """An adapter of random weights for the model in a folder, which changes what it writes."""
    contract = load(folder).contract
    specs = {spec.name: spec for spec in contract.inputs}
    random = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for pair in contract.adapters:
        width, height = int(specs[pair.down].axes[1]), int(specs[pair.up].axes[2])
        down = random.standard_normal((rank, width)) / width**0.5
        arrays[f"{pair.module}.lora_A"] = down
        arrays[f"{pair.module}.lora_B"] = random.standard_normal((height, rank)) * 0.3
    np.savez(path, **arrays)
    return path
