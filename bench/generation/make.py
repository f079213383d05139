"""Make files that need PyTorch: `python -m bench.generation.make JOB`.

Runs in a process of its own, so that the driver never holds PyTorch. JOB is JSON with the name of a
job below under "job", and its arguments.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.attention.cases import ModuleSizes
from bench.attention.files import make_module
from bench.decode.cases import ModelSizes
from bench.decode.files import save_model

__all__ = ["MODULE_ARTIFACT", "MODULE_WEIGHTS", "main"]

MODULE_ARTIFACT = "module.onnx"
MODULE_WEIGHTS = "module.pt"


def model(*, folder: str, sizes: dict[str, Any]) -> None:
    """The language model itself, as transformers saves it."""
    save_model(Path(folder), ModelSizes(**sizes))


def artifact(*, model: str, path: str, max_seq_len: int, precision: str, target: str) -> None:
    """Our file of a saved language model, with all proofs."""
    import transformers  # noqa: PLC0415 - not in the driver

    from causal_onnx.export import export  # noqa: PLC0415

    module = transformers.AutoModelForCausalLM.from_pretrained(model)
    export(module, path, cache=True, target=target, max_seq_len=max_seq_len, precision=precision)


def attention(*, folder: str, sizes: dict[str, Any]) -> None:
    """An attention module, as our file and as PyTorch saves its weights."""
    import torch  # noqa: PLC0415 - not in the driver

    from causal_onnx.export import export  # noqa: PLC0415

    module = make_module(ModuleSizes(**sizes))
    export(module, Path(folder) / MODULE_ARTIFACT, target="ort")
    state = {**module.state_dict(), "num_heads": sizes["num_heads"]}
    torch.save(state, Path(folder) / MODULE_WEIGHTS)


def main(text: str) -> None:
    """Do one job."""
    arguments = json.loads(text)
    jobs: dict[str, Callable[..., None]] = {
        "model": model,
        "artifact": artifact,
        "attention": attention,
    }
    jobs[arguments.pop("job")](**arguments)


if __name__ == "__main__":
    main(sys.argv[1])
