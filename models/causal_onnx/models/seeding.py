"""Draw initial weights from a seed without touching the caller's random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["seeded"]


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed PyTorch's CPU generator inside the block, and restore its state afterwards.

    Only the CPU generator is touched: `torch.manual_seed` would reseed every accelerator too. Build
    modules on the CPU and move them, and the same seed gives the same weights on every machine.

    Args:
        seed: None leaves the generator alone: modules draw from the caller's state and advance it,
            as PyTorch's own modules do.
    """
    if seed is None:
        yield
        return
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
