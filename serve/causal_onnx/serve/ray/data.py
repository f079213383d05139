"""Language models over Ray Data: a column of prompts in, a column of texts out."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_onnx.runtime import Sampling, load
from causal_onnx.serve.engine.engine import Engine, EngineOptions

if TYPE_CHECKING:
    import numpy.typing as npt

    Batch = dict[str, npt.NDArray[Any]]

__all__ = ["OnnxLM"]

ADAPTER = "adapter"
"""What the engine knows it by."""

log = logging.getLogger(__name__)


class OnnxLM:
    """Continues prompts, for `Dataset.map_batches`; one engine an actor.

        dataset.map_batches(
            OnnxLM,
            fn_constructor_kwargs={"path": "model/", "max_new_tokens": 64, "done": "done/"},
            batch_size=256,
            compute=ray.data.ActorPoolStrategy(size=2),
        )

    All prompts of a batch are decoded together, as many at once as the engine has room for. With
    `done`, what was written is kept as it comes, and a run that was interrupted goes on from
    there: the same prompt gives the same text, so nothing depends on where it stopped.
    """

    def __init__(
        self,
        path: str,
        *,
        prompts: str = "prompt",
        texts: str = "text",
        max_new_tokens: int = 64,
        sampling: Sampling | None = None,
        seed: int = 0,
        done: str | None = None,
        engine_options: EngineOptions | None = None,
        device: str = "cpu",
        threads: int | None = None,
        adapter: str | None = None,
    ) -> None:
        """Load a model.

        Args:
            path: A folder or file, which is on every node.
            prompts: The column of prompts: texts, or lists of ids.
            texts: The column to add; of ids where the model has no tokenizer. Beside it
                `<texts>_finish` says why each ended.
            max_new_tokens: As for `Model.tokens`.
            sampling: As for `Model.tokens`.
            seed: As for `Model.tokens`; the same for every prompt.
            done: A folder that all nodes share, which keeps what is written; None: nothing is.
            engine_options: Of the engine.
            device: As for `load`.
            threads: As for `load`.
            adapter: The file or folder of a LoRA adapter to write with, which is on every node.

        Raises:
            ValueError: The model is no language model with a cache, an option does not fit, or the
                model does not take this adapter.
        """
        self._prompts, self._texts = prompts, texts
        self._options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "sampling": sampling,
            "seed": seed,
        }
        adapters = {} if adapter is None else {ADAPTER: adapter}
        model = load(path, device=device, threads=threads, adapters=adapters)
        self._writes_ids = model.tokenizer is None
        self._engine = Engine(model, options=engine_options)
        self._most = self._engine.options.queue
        self._done = None
        if done is not None:
            told = {**self._options, "sampling": None if sampling is None else asdict(sampling)}
            digests = [_digest(Path(place)) for place in (path, *adapters.values())]
            self._done = _Done(Path(done), digests, told)
        if adapters:
            self._options["adapter"] = ADAPTER
        self._began, self._count, self._found = time.monotonic(), 0, 0

    def __call__(self, batch: Batch) -> Batch:
        """Add the columns of texts and of how they ended.

        Raises:
            KeyError: There is no column of prompts.
            ValueError: A prompt is too long, or has ids that are not the model's.
        """
        prompts = [_plain(item) for item in batch[self._prompts]]
        results: list[tuple[Any, str] | None] = [
            None if self._done is None else self._done.find(prompt) for prompt in prompts
        ]
        missing = [place for place, result in enumerate(results) if result is None]
        for start in range(0, len(missing), self._most):
            self._write(prompts, missing[start : start + self._most], results)
        self._count += len(prompts)
        self._found += len(prompts) - len(missing)
        seconds = max(time.monotonic() - self._began, 1e-9)
        log.info(
            "%d prompts, %d of them found done, %.1f a second",
            self._count,
            self._found,
            self._count / seconds,
        )
        found = [result for result in results if result is not None]
        return {
            **batch,
            self._texts: _column([text for text, _ in found]),
            f"{self._texts}_finish": np.array([finish for _, finish in found], dtype=object),
        }

    def _write(
        self, prompts: list[Any], places: list[int], results: list[tuple[Any, str] | None]
    ) -> None:
        """Continue the prompts of these places together."""
        begun = [self._engine.prepare(prompts[place], **self._options) for place in places]
        self._engine.enqueue(begun)
        for place, generation in zip(places, begun, strict=True):
            (written,) = generation.results()
            value = list(written.ids) if self._writes_ids else written.text
            results[place] = value, written.finish
            if self._done is not None:
                self._done.keep(prompts[place], value, written.finish)

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()


class _Done:
    """What was written, as lines of JSON: each actor appends to a file of its own."""

    def __init__(self, folder: Path, model: Sequence[str], options: Mapping[str, Any]) -> None:
        self._key = json.dumps([model, options], sort_keys=True)
        folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, tuple[Any, str]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            self._read(path)
        name = f"{int(time.time())}-{secrets.token_hex(6)}.jsonl"
        self._file = (folder / name).open("x", encoding="utf-8")

    def _read(self, path: Path) -> None:
        with path.open(encoding="utf-8") as file:
            for line in file:
                if not line.endswith("\n"):  # an actor ended while it was written
                    break
                key, value, finish = json.loads(line)
                self._known[key] = value, finish

    def find(self, prompt: Any) -> tuple[Any, str] | None:
        """What came of a prompt; None where nothing did yet."""
        return self._known.get(self._key_of(prompt))

    def keep(self, prompt: Any, value: Any, finish: str) -> None:
        """Keep what came of a prompt; it outlives the process, and the machine's file cache."""
        key = self._key_of(prompt)
        self._known[key] = value, finish
        self._file.write(json.dumps([key, value, finish]) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _key_of(self, prompt: Any) -> str:
        text = json.dumps([self._key, prompt])
        return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> str:
    """Of all bytes of a model: another one has other texts."""
    found = hashlib.sha256()
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    for file in files:
        found.update(str(file.relative_to(path) if path.is_dir() else file.name).encode())
        with file.open("rb") as opened:
            found.update(hashlib.file_digest(opened, "sha256").digest())
    return found.hexdigest()


def _plain(prompt: Any) -> str | list[int]:
    return str(prompt) if isinstance(prompt, str) else [int(token) for token in prompt]


def _column(values: list[Any]) -> npt.NDArray[Any]:
    """Of Python's own values, whatever their lengths."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found
