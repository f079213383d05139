"""PyTorch and transformers as they come."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.decode.subjects import token_ids
from bench.generation.cases import work_of
from bench.worker import Forward, Prepare

__all__ = ["MODEL", "generation"]

MODEL = "model"
"""The folder that `save_pretrained` wrote."""

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def generation(
    *,
    threads: int,
    folder: str,
    ours: str,
    sizes: dict[str, Any],
    precision: str,
    device: str = "cpu",
) -> Prepare:
    """Prompts and tokens by calling the model with its cache; `generate` does more around it."""
    import torch  # noqa: PLC0415 - only here
    import transformers  # noqa: PLC0415

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    dtype = getattr(torch, _DTYPES[precision])
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        Path(folder) / MODEL, dtype=dtype
    )
    model = loaded.to(device)  # in eval mode

    def prepare(case: Mapping[str, Any]) -> Forward:
        work = work_of(case)
        ids = torch.from_numpy(token_ids(work.prompt, sizes["vocab_size"])).to(device)
        cache = transformers.DynamicCache()

        @torch.inference_mode()
        def prefill() -> Any:
            fresh = transformers.DynamicCache()
            found = model(ids, past_key_values=fresh, use_cache=True, logits_to_keep=1)
            return found.logits[:, -1].float().cpu().numpy()

        @torch.inference_mode()
        def decode() -> Any:
            cache.crop(work.prompt - 1 - cache.get_seq_length())  # so many off its end
            chosen = np.empty(work.new, np.int64)
            token = ids[:, -1:]
            for index in range(work.new):
                found = model(token, past_key_values=cache, use_cache=True)
                token = found.logits[:, -1].argmax(-1, keepdim=True)
                chosen[index] = token.item()
            return chosen

        if work.kind == "prefill":
            return prefill
        with torch.inference_mode():
            model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return decode

    return prepare
