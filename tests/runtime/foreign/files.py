"""The decoders in foreign.zip; `make.py` says what made them."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.runtime import Model, load

Array = npt.NDArray[Any]

ARCHIVE = Path(__file__).with_name("foreign.zip")

COMPARED = (
    "genai-llama",
    "genai-qwen2",
    "genai-qwen3",
    "merged-bloom",
    "merged-gpt2",
    "merged-llama",
    "mobius-gpt2",
    "mobius-llama",
    "mobius-qwen3",
    "optimum-gpt2",
    "optimum-llama",
    "optimum-qwen2",
)
"""Those of which transformers' continuations are recorded."""

ALL = (*COMPARED, "genai-llama-int4", "mobius-llama-fp16")


def unpack(name: str, folder: Path) -> Path:
    """Unpack one of them below `folder`, and give its .onnx file."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder, [n for n in archive.namelist() if n.startswith(f"{name}/")])
    merged = folder / name / "decoder_model_merged.onnx"
    return merged if merged.is_file() else folder / name / "model.onnx"


def load_foreign(name: str, folder: Path, *, endless: bool = True, **options: Any) -> Model:
    """Load one; `endless`: without ids that end a text."""
    path = unpack(name, folder)
    # mobius writes local functions, which the scan refuses.
    options.setdefault("trusted", name.startswith("mobius"))
    options = {"threads": 1, "huge_pages": False, **options}
    model = load(path, **options)
    if not endless:
        return model
    return load(path, contract=replace(model.contract, eos_token_ids=()), **options)


def reference(name: str, folder: Path) -> dict[str, list[list[int]]]:
    """Prompts, and transformers' continuations: "greedy", and "beams", the best of three."""
    found: dict[str, list[list[int]]] = json.loads((folder / name / "reference.json").read_text())
    return found


def raw_greedy(path: Path, prompt: list[int], count: int) -> list[int]:
    """A loop over onnxruntime alone, as the documentation of these exporters has it."""
    import onnxruntime as ort

    session = ort.InferenceSession(path)
    inputs = {node.name: node for node in session.get_inputs()}
    names = [node.name for node in session.get_outputs()]
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    pasts = {
        name: np.zeros((1, int(node.shape[1]), 0, 16), dtypes[node.type])
        for name, node in inputs.items()
        if name.startswith("past_key_values")
    }
    ids, new = list(prompt), list(prompt)
    for _ in range(count):
        start = len(ids) - len(new)
        feeds: dict[str, Array] = {
            "input_ids": np.array([new]),
            "attention_mask": np.ones((1, len(ids)), np.int64),
            "position_ids": np.arange(start, len(ids))[None],
            "use_cache_branch": np.array([start > 0]),
        }
        given = {name: value for name, value in feeds.items() if name in inputs}
        results = dict(zip(names, session.run(names, {**given, **pasts}), strict=True))
        pasts = {name: results[name.replace("past_key_values", "present")] for name in pasts}
        new = [int(results["logits"][0, -1].argmax())]
        ids += new
    return ids[len(prompt) :]
