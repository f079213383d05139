"""Keep an export and the caller's process-wide settings apart."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["isolated"]


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Run under PyTorch's plain settings, and leave the caller's random states as they were.

    Inside: no gradients, no inference mode (its tensors cannot be traced), no autocast (a graph of
    an fp32 module would be fp16 in parts), tensors on the CPU. The random states of PyTorch, numpy
    and Python are put back on leaving: a module may draw from any of them when it is called.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with contextlib.ExitStack() as stack:
        stack.callback(random.setstate, python_state)
        stack.callback(np.random.set_state, numpy_state)
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.get_default_device().type != "cpu":
            # Only then: the context slows down every call, and torch.export sees it.
            stack.enter_context(torch.device("cpu"))
        yield
