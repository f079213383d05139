"""The zoo: causal modules as people really write them, and the mutants a prover must reject."""

from __future__ import annotations

from .attention import ENTRIES as _ATTENTION
from .beside import ENTRIES as _BESIDE
from .codebooks import ENTRIES as _CODEBOOKS
from .dtypes import ENTRIES as _DTYPES
from .entry import ZooEntry, output_tensors
from .graph_mutants import GRAPH_MUTANTS, GraphMutant
from .graphs import GRAPHS, GoodGraph
from .guards import ENTRIES as _GUARDS
from .huggingface import ENTRIES as _HUGGINGFACE
from .masks import ENTRIES as _MASKS
from .mutants import MUTANTS, Mutant
from .own_caches import ENTRIES as _OWN_CACHES
from .padding import ENTRIES as _PADDING
from .positions import ENTRIES as _POSITIONS
from .scans import ENTRIES as _SCANS
from .states import ENTRIES as _STATES
from .whole import ENTRIES as _WHOLE
from .windows import ENTRIES as _WINDOWS

__all__ = [
    "GRAPHS",
    "GRAPH_MUTANTS",
    "MUTANTS",
    "ZOO",
    "GoodGraph",
    "GraphMutant",
    "Mutant",
    "ZooEntry",
    "entry",
    "output_tensors",
]

ZOO: tuple[ZooEntry, ...] = (
    *_MASKS,
    *_ATTENTION,
    *_POSITIONS,
    *_WINDOWS,
    *_PADDING,
    *_GUARDS,
    *_BESIDE,
    *_CODEBOOKS,
    *_OWN_CACHES,
    *_DTYPES,
    *_SCANS,
    *_STATES,
    *_WHOLE,
    *_HUGGINGFACE,
)
"""Every entry, family by family."""

_BY_NAME = {item.name: item for item in ZOO}


def entry(name: str) -> ZooEntry:
    """The entry called `name`.

    Raises:
        KeyError: No such entry; the message lists names that share a part with it.
    """
    if name not in _BY_NAME:
        near = [known for known in _BY_NAME if set(known.split("_")) & set(name.split("_"))]
        raise KeyError(f"no zoo entry {name!r}; similar: {', '.join(near[:8]) or 'none'}")
    return _BY_NAME[name]
