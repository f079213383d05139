"""Stream from the PyTorch model that was exported: what `serve` is measured beside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from examples.demo.bytestream import WholeContext
from examples.demo.checkpoint import load_decoder
from examples.demo.player import parse_arguments, play

__all__ = ["load_context", "main"]


def main() -> None:
    play(parse_arguments("Stream from a PyTorch model."), load_context)


def load_context(path: Path, threads: int) -> WholeContext:
    """Load a checkpoint of `checkpoint.save_decoder`."""
    torch.set_num_threads(threads)
    model = load_decoder(path)
    limit = model.max_seq_len
    if limit is None:
        raise ValueError(f"{path} has no max_seq_len; the demo's decoder has one")

    def forward(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        with torch.inference_mode():
            return model(torch.from_numpy(ids)).numpy()  # type: ignore[no-any-return]

    return WholeContext(forward, max_seq_len=limit)


if __name__ == "__main__":
    main()
