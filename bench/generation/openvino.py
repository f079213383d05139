"""OpenVINO GenAI with a GGUF file of the same weights, by its pipeline of continuous batching.

Source: https://docs.openvino.ai/2026/openvino-workflow-generative/inference-with-genai.html.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.client import ROOT
from bench.decode.subjects import token_ids
from bench.generation.cases import BATCH, work_of
from bench.generation.files import gguf_name
from bench.worker import Forward, Prepare

__all__ = ["OPENVINO", "OPENVINO_REQUIREMENTS", "Pipeline", "generation"]

OPENVINO = ROOT / "build" / "peers-openvino"
OPENVINO_REQUIREMENTS = ROOT / "bench" / "requirements-openvino.txt"

CACHE_GB = 1
BATCHED_TOKENS = 4096
"""More than any prompt here: each is read in one piece, as others do."""


class Pipeline:
    """Its scheduler with one model, asked for token ids."""

    def __init__(self, gguf: Path, *, threads: int, rows: int, peers: str = str(OPENVINO)) -> None:
        """Read the file.

        Args:
            gguf: The model.
            threads: For inference.
            rows: Sequences at once.
            peers: Where the packages are installed.
        """
        sys.path.append(peers)
        self._tensor = importlib.import_module("openvino").Tensor
        self._genai = importlib.import_module("openvino_genai")
        scheduler = self._genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.cache_size = CACHE_GB
        scheduler.max_num_batched_tokens = BATCHED_TOKENS
        scheduler.max_num_seqs = rows
        make = self._genai.ContinuousBatchingPipeline
        self._pipeline = make(str(gguf), scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})

    def choose(self, prompts: npt.NDArray[np.int64], new: int) -> npt.NDArray[np.int64]:
        """(rows, new): continue prompts, (rows, seq), greedily, all at once."""
        config = self._genai.GenerationConfig(max_new_tokens=new, do_sample=False, ignore_eos=True)
        rows = [self._tensor(np.ascontiguousarray(row[None])) for row in prompts]
        found = self._pipeline.generate(rows, [config] * len(rows))
        return np.array([one.m_generation_ids[0] for one in found], np.int64)


def generation(
    *,
    threads: int,
    folder: str,
    ours: str,
    sizes: dict[str, Any],
    kind: str,
    together: bool = False,
    peers: str = str(OPENVINO),
) -> Prepare:
    """Prompts and tokens of one sequence, or several sequences at once.

    Args:
        threads: Of its pool.
        folder: Of the peers' files.
        ours: Not needed here.
        sizes: Of the model.
        kind: Of the file in `folder`.
        together: Whether it is asked for batches.
        peers: Where the packages are installed.
    """
    path = Path(folder) / gguf_name(kind)
    pipeline = Pipeline(path, threads=threads, rows=BATCH.rows if together else 1, peers=peers)

    def prepare(case: Mapping[str, Any]) -> Forward:
        if together:
            prompts, new = _prompts(case, sizes), case["new"]
            if case.get("at_once", True):
                return lambda: pipeline.choose(prompts, new)
            return lambda: np.concatenate([pipeline.choose(row[None], new) for row in prompts])
        work = work_of(case)
        ids = token_ids(work.prompt, sizes["vocab_size"])
        # It cannot go on from a cache: to decode, it reads the prompt and takes a step less.
        return lambda: pipeline.choose(ids, work.new or 1)[0]

    return prepare


def _prompts(case: Mapping[str, Any], sizes: Mapping[str, Any]) -> npt.NDArray[np.int64]:
    """(rows, seq): those that are given, or made of as many ids."""
    if "prompts" in case:
        return np.array(case["prompts"], np.int64)
    return token_ids(case["rows"] * case["prompt"], sizes["vocab_size"]).reshape(case["rows"], -1)
