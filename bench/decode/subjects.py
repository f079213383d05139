"""A cached graph in a bare onnxruntime session: bound buffers, past and present the same memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.sizes import ModelSizes
from bench.subject import Subject, bare_session
from bench.worker import Forward, Prepare

__all__ = [
    "BUILT",
    "OURS",
    "OURS_NAME",
    "REFERENCE",
    "SUBJECTS",
    "CachedGraph",
    "cached",
    "token_ids",
]


REFERENCE = "built"
OURS_NAME = "ours"
FACTORY = "bench.decode.subjects:cached"

BUILT = "built/model.onnx"
OURS = "ours.onnx"

SUBJECTS = (
    Subject(
        name=REFERENCE,
        title="onnxruntime-genai builder",
        about="`python -m onnxruntime_genai.models.builder -p fp32 -e cpu`",
        factory=FACTORY,
        options={"file": BUILT},
    ),
    Subject(
        name=OURS_NAME,
        title="causal-onnx",
        about='`export(model, path, cache=True, target="ort", max_seq_len=...)`',
        factory=FACTORY,
        options={"file": OURS},
    ),
)


def cached(*, threads: int, folder: str, sizes: dict[str, Any], file: str) -> Prepare:
    """Either graph; they take and give the same tensors."""
    session = bare_session(Path(folder) / file, threads)
    return CachedGraph(session, ModelSizes(**sizes)).prepare


class CachedGraph:
    """One session with a cache of `max_seq_len` positions that every call reads and writes."""

    def __init__(self, session: Any, sizes: ModelSizes) -> None:
        import onnxruntime  # noqa: PLC0415 - only here

        self._ort, self._session, self._sizes = onnxruntime, session, sizes
        shape = (1, sizes.num_kv_heads, sizes.max_seq_len, sizes.head_dim)
        self._cache = {
            f"{layer}.{kind}": self._on_cpu(np.zeros(shape, np.float32))
            for layer in range(sizes.num_layers)
            for kind in ("key", "value")
        }

    def prepare(self, case: Mapping[str, Any]) -> Forward:
        """Fill the cache with `past_seq` tokens; the call then adds `seq`, at the same place."""
        past, seq = int(case["past_seq"]), int(case["seq"])
        ids = token_ids(past + seq, self._sizes.vocab_size)
        if past:
            self._binding(ids[:, :past], past)[0]()
        run, logits = self._binding(ids[:, past:], past + seq)

        def forward() -> Any:
            run()
            return logits

        return forward

    def _binding(self, ids: npt.NDArray[np.int64], total: int) -> tuple[Any, Any]:
        """A call with everything bound, and the array in which its logits will lie."""
        binding = self._session.io_binding()
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((1, total), np.int64),
            "position_ids": np.arange(total - ids.shape[1], total, dtype=np.int64)[None],
        }
        held = []
        for wanted in self._session.get_inputs():
            if wanted.name in feeds:
                held.append(self._on_cpu(feeds[wanted.name]))
                binding.bind_ortvalue_input(wanted.name, held[-1])
            else:
                key = wanted.name.removeprefix("past_key_values.")
                binding.bind_ortvalue_input(wanted.name, self._cache[key])
        logits = np.zeros((1, ids.shape[1], self._sizes.vocab_size), np.float32)
        held.append(self._on_cpu(logits))
        for given in self._session.get_outputs():
            key = given.name.removeprefix("present.")
            binding.bind_ortvalue_output(given.name, self._cache.get(key, held[-1]))
        session = self._session

        def run(_: Any = held) -> None:
            session.run_with_iobinding(binding)

        return run, logits

    def _on_cpu(self, array: npt.NDArray[Any]) -> Any:
        """The same memory, as onnxruntime takes it."""
        return self._ort.OrtValue.ortvalue_from_numpy(array)


def token_ids(count: int, vocab_size: int) -> npt.NDArray[np.int64]:
    """(1, count), the same in every process."""
    return np.random.default_rng(0).integers(2, vocab_size, (1, count))
