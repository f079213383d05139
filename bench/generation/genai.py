"""The builder's graphs in onnxruntime-genai's own runtime.

Source: https://onnxruntime.ai/docs/genai/api/python.html and
https://onnxruntime.ai/docs/genai/reference/config.html.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.decode.subjects import token_ids
from bench.generation.cases import work_of
from bench.peers import PEERS
from bench.worker import Forward, Prepare

__all__ = ["generation"]


def generation(
    *,
    threads: int,
    folder: str,
    ours: str,
    sizes: dict[str, Any],
    built: str,
    session: dict[str, Any] | None = None,
    provider: dict[str, dict[str, str]] | None = None,
    piece: int | None = None,
    peers: str = str(PEERS),
) -> Prepare:
    """Prompts and tokens by `Generator`.

    Args:
        threads: `intra_op_num_threads`; without it a session takes one thread on two cores.
        folder: Of the peers' files.
        ours: Not needed here.
        sizes: Of the model.
        built: The folder in it that the builder wrote.
        session: More entries of `session_options`.
        provider: Options of an execution provider, by its name.
        piece: Positions of a prompt that are appended at once; None: all.
        peers: Where the package is installed.
    """
    sys.path.append(peers)
    genai = importlib.import_module("onnxruntime_genai")

    genai.disable_telemetry_events()  # off for every subject
    config = genai.Config(str(Path(folder) / built))
    options = {"intra_op_num_threads": threads, **(session or {})}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    for name, given in (provider or {}).items():
        for key, value in given.items():
            config.set_provider_option(name, key, value)
    model = genai.Model(config)

    def prepare(case: Mapping[str, Any]) -> Forward:
        work = work_of(case)
        ids = token_ids(work.prompt, sizes["vocab_size"])[0].astype(np.int32)
        parameters = genai.GeneratorParams(model)
        longest = min(work.prompt + work.new + 1, sizes["max_seq_len"])
        parameters.set_search_options(max_length=longest, do_sample=False)
        generator = genai.Generator(model, parameters)

        size = piece or len(ids)

        def prefill() -> Any:
            generator.rewind_to(0)
            for start in range(0, len(ids), size):
                generator.append_tokens(ids[start : start + size])
            return generator.get_logits()[:, -1]

        def decode() -> Any:
            # The last token of the prompt again, then all that are chosen but the last: as many
            # runs of the graph as tokens. The first call chooses from the logits that are there.
            generator.rewind_to(work.prompt - 1)
            generator.append_tokens(ids[-1:])
            for _ in range(work.new):
                generator.generate_next_token()
            return np.array(generator.get_sequence(0)[work.prompt :], np.int64)

        if work.kind == "prefill":
            return prefill
        generator.append_tokens(ids)
        return decode

    return prepare
