"""Our files in our runtime, through its public functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.decode.subjects import CachedGraph, token_ids
from bench.generation.cases import work_of
from bench.sizes import ModelSizes
from bench.worker import Forward, Prepare

__all__ = ["batch", "generation", "ours_name", "step"]

STEPS = 40
"""Of one call of `step`, so that going back once in a call weighs little."""
FIRST = 16
"""Positions that are read before them."""


def ours_name(precision: str) -> str:
    return f"{precision}.onnx"


def generation(
    *,
    threads: int,
    folder: str,
    ours: str,
    sizes: dict[str, Any],
    precision: str,
    device: str = "cpu",
) -> Prepare:
    """Prompts as `generate` reads them, and tokens one by one, by `model.stream()`."""
    from causal_onnx.runtime import load  # noqa: PLC0415 - only here
    from causal_onnx.runtime.generation.prompt import prefill as read  # noqa: PLC0415

    model = load(Path(ours) / ours_name(precision), threads=threads, device=device)

    def prepare(case: Mapping[str, Any]) -> Forward:
        work = work_of(case)
        ids = token_ids(work.prompt, sizes["vocab_size"])
        stream = model.stream()

        def prefill() -> Any:
            stream.rewind(0)
            return np.asarray(read(stream, ids.tolist()), np.float32)

        def decode() -> Any:
            stream.rewind(work.prompt - 1)
            chosen = np.empty(work.new, np.int64)
            token = ids[:, -1:]
            for index in range(work.new):
                chosen[index] = stream(token)[0, -1].argmax()
                token = chosen[None, index : index + 1]
            return chosen

        if work.kind == "prefill":
            return prefill
        stream(ids, last_only=True)
        return decode

    return prepare


def batch(
    *, threads: int, folder: str, ours: str, sizes: dict[str, Any], precision: str, together: bool
) -> Prepare:
    """Several prompts: all by one `generate_batch`, or one `generate` after another."""
    from causal_onnx.runtime import load  # noqa: PLC0415 - only here

    model = load(Path(ours) / ours_name(precision), threads=threads)

    def prepare(case: Mapping[str, Any]) -> Forward:
        rows, new = case["rows"], case["new"]
        ids = token_ids(rows * case["prompt"], sizes["vocab_size"])
        prompts = ids.reshape(rows, case["prompt"]).tolist()

        def at_once() -> Any:
            found = model.generate_batch(prompts, max_new_tokens=new)
            return np.array([row.ids for row in found])

        def one_by_one() -> Any:
            found = [model.generate(prompt, max_new_tokens=new) for prompt in prompts]
            return np.array([row.ids for row in found])

        return at_once if together else one_by_one

    return prepare


def step(*, threads: int, path: str, sizes: dict[str, Any]) -> Prepare:
    """`STEPS` steps of one token, by a stream or by the session that the stream runs.

    It is the same session: another one may have its weights where they are read a quarter faster.
    """
    from causal_onnx.runtime import load  # noqa: PLC0415 - only here

    model = load(path, threads=threads)
    shape = ModelSizes(**sizes)

    def prepare(case: Mapping[str, Any]) -> Forward:
        if case["bare"]:
            graph = CachedGraph(model.runner.session, shape)
            once = graph.prepare({"past_seq": FIRST + STEPS // 2, "seq": 1})

            def bare() -> Any:
                for _ in range(STEPS - 1):
                    once()
                return once()

            return bare
        stream = model.stream()
        ids = token_ids(FIRST + STEPS, shape.vocab_size)
        stream(ids[:, :FIRST])
        tokens = [ids[:, FIRST + index : FIRST + index + 1] for index in range(STEPS)]

        def streamed() -> Any:
            stream.rewind(FIRST)
            for token in tokens:
                logits = stream(token)
            return logits

        return streamed

    return prepare
