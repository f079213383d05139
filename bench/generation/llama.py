"""llama.cpp's server with a GGUF file of the same weights, asked for token ids.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.decode.subjects import token_ids
from bench.generation.cases import BATCH, BATCH_POSITIONS, work_of
from bench.generation.files import gguf_name
from bench.program import Elsewhere, Program, llama_command
from bench.worker import Forward, Prepare

__all__ = ["generation"]

ROUTE = "/completion"


def generation(
    *,
    threads: int,
    folder: str,
    ours: str,
    sizes: dict[str, Any],
    program: str,
    kind: str,
    together: bool = False,
) -> Prepare:
    """Prompts and tokens of one sequence, or several sequences at once.

    Args:
        threads: Of the server.
        folder: Of the peers' files.
        ours: Not needed here.
        sizes: Of the model.
        program: The server.
        kind: Of the file in `folder`.
        together: Whether it is asked for batches.
    """
    slots = BATCH.rows if together else 1
    positions = BATCH_POSITIONS if together else sizes["max_seq_len"]
    path = Path(folder) / gguf_name(kind)
    command = llama_command(Path(program), path, threads=threads, slots=slots, positions=positions)
    log = path.with_name(f"{'batch' if together else 'server'}.log")
    server = Program(command, log=log)

    def chosen(ids: npt.NDArray[np.int64], new: int, **more: object) -> Any:
        asked = {
            "prompt": ids.tolist(),
            "n_predict": new,
            "temperature": 0,
            "ignore_eos": True,
            "cache_prompt": False,
            "return_tokens": True,
        }
        return server.post(ROUTE, {**asked, **more})

    def prepare(case: Mapping[str, Any]) -> Forward:
        if together:
            return Elsewhere(_batch(case), server.processor_s)
        work = work_of(case)
        ids = token_ids(work.prompt, sizes["vocab_size"])[0]

        def prefill() -> Any:
            found = chosen(ids, 1)
            assert found["tokens"] == [logits.argmax()], "it chose another token than before"
            return logits[None]

        def decode() -> Any:
            # The cache holds the prompt but its last token, so there are as many runs as tokens.
            return np.array(chosen(ids, work.new, cache_prompt=True)["tokens"], np.int64)

        if work.kind == "decode":
            chosen(ids, 1)
            return Elsewhere(decode, server.processor_s)
        logits = _logits(chosen(ids, 1, n_probs=sizes["vocab_size"]), sizes["vocab_size"])
        return Elsewhere(prefill, server.processor_s)

    def _batch(case: Mapping[str, Any]) -> Forward:
        rows, new = case["rows"], case["new"]
        ids = token_ids(rows * case["prompt"], sizes["vocab_size"]).reshape(rows, -1)
        pool = ThreadPoolExecutor(rows)

        def at_once() -> Any:
            found = pool.map(lambda row: chosen(row, new)["tokens"], ids)
            return np.array(list(found), np.int64)

        return at_once

    return prepare


def _logits(answer: Mapping[str, Any], vocab_size: int) -> npt.NDArray[np.float32]:
    """Log-probabilities of all tokens: logits but for a number that is the same for each."""
    found = np.full(vocab_size, np.nan, np.float32)
    for one in answer["completion_probabilities"][0]["top_logprobs"]:
        found[one["id"]] = one["logprob"]
    return found
