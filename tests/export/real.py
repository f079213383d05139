"""Two models that were really trained, small enough for tests, as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

REAL = Path(__file__).parent.parent / "data" / "real"
STORIES, SORTER = REAL / "baby105", REAL / "gpt-nano-sort"


def reference(folder: Path) -> Any:
    """The model as transformers loads it, in fp32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return model.eval()


def continued(model: Any, prompt: list[int], count: int, **options: Any) -> list[list[int]]:
    """What transformers' own `generate` writes after a prompt."""
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    return [row[len(prompt) :] for row in found.tolist()]
