"""A plain onnxruntime session: one thread, no log, nothing of the contract."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["CPU", "plain_session"]

CPU = ("CPUExecutionProvider",)


def plain_session(
    source: str | bytes,
    *,
    providers: Sequence[str] = CPU,
    threads: int = 1,
    settings: Mapping[str, str] | None = None,
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> InferenceSession:
    """Open a graph in onnxruntime.

    Args:
        source: A path, or the serialised model.
        providers: Execution providers, the first that takes a node runs it.
        threads: Of its own pool. 0: as many as it takes by itself.
        settings: Entries of the session's configuration.
        weights: The numbers of some initializers, where they lie in memory already. The session
            reads them there, and takes no copy: they must outlive it.

    Raises:
        ImportError: onnxruntime is not installed.
        Exception: onnxruntime refuses the graph, in classes of its own without a common base.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # The static analysis runs without it, and seldom needs it; it is slow to import.
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors reach us as exceptions
    options.intra_op_num_threads = threads
    options.enable_cpu_mem_arena = False
    # On some graphs of others it ends the process, see passes/transposed_products.py.
    options.add_session_config_entry(
        "optimization.disable_specified_optimizers", "NchwcTransformer"
    )
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    # Held until the session is made: the options point to them.
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
        for name, array in (weights or {}).items()
    }
    for name, value in values.items():
        # `add_external_initializers` would copy what no kernel arranges for itself.
        options.add_initializer(name, value)
    return onnxruntime.InferenceSession(source, options, providers=list(providers))
