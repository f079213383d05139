"""The process in which `trial.py` tries a model: `python -m causal_onnx.runtime.trial_child`.

It reads one order from its standard input and writes one answer, both JSON. What libraries print
goes to stderr.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from causal_onnx.runtime.artifact.artifact import Artifact
from causal_onnx.runtime.artifact.header import read_header
from causal_onnx.runtime.artifact.held import Held
from causal_onnx.runtime.bundle.replay import replay_streams, stream_plans
from causal_onnx.runtime.contract import Contract
from causal_onnx.runtime.errors import ArtifactError, RunError
from causal_onnx.runtime.model import Model
from causal_onnx.runtime.profile.workload import Workload
from causal_onnx.runtime.session.ort import import_onnxruntime
from causal_onnx.runtime.session.runner import LoadOptions, Runner

__all__ = ["main"]

NO_MEMORY = ("bad_alloc", "ailed to allocate memory", "Cannot allocate", "start new thread")
"""How onnxruntime says that there is none."""


THREAD_BYTES = 16 << 20
"""Stack and heap of the thread that loads: Python waits for ever for one that could not begin."""


def main() -> None:
    """Carry out the order, and answer what came of it."""
    order = json.load(sys.stdin)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_onnxruntime()  # before the limits, which are the file's
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = order["processor_s"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (order["memory_bytes"], order["memory_bytes"]))
    json.dump(_too_small(order["memory_bytes"]) or _outcome(order), replies)
    replies.flush()
    # Without taking anything apart: what the file did to this process is none of its concern.
    os._exit(0)


def _too_small(limit: int) -> dict[str, str] | None:
    """The answer where the limit is less than what the libraries hold without any model."""
    told = Path("/proc/self/status").read_text(encoding="ascii")
    held = 1024 * int(told.partition("VmData:")[2].split()[0])
    if held + THREAD_BYTES <= limit:
        return None
    return {"kind": "memory", "text": f"the libraries alone hold {held}"}


def _outcome(order: dict[str, Any]) -> dict[str, str]:
    try:
        _try(order)
    except MemoryError:
        return {"kind": "memory", "text": "MemoryError"}
    except Exception as error:
        if any(sign in str(error) for sign in NO_MEMORY):
            return {"kind": "memory", "text": str(error)}
        return {"kind": type(error).__name__, "text": str(error)}
    return {"kind": "passed", "text": ""}


def _try(order: dict[str, Any]) -> None:
    held = Held.inherited(order["name"], order["model"], order["files"])
    header = read_header(held.stream, name=order["name"])
    artifact = Artifact(location=Path(order["name"]), header=header)
    given = order["contract"]
    contract = artifact.contract if given is None else Contract.from_json(given)
    if contract is None:
        raise ArtifactError(f"{order['name']} carries no contract")
    model = Model(Runner.of_held(artifact, contract, held, LoadOptions(**order["options"])))
    _replay(model)
    least = contract.min_seq_len
    for seq in (least, least + 1):
        if seq <= (contract.max_seq_len or seq):
            _call(model, seq)


def _replay(model: Model) -> None:
    golden = model.runner.artifact.golden
    if golden is None or not golden.cases:
        return
    report = model.selftest()
    streams = replay_streams(model, golden, stream_plans(golden, model.contract))
    worst = max([report.max_error, *(case.error for case in streams)])
    if not worst <= golden.tolerance:
        raise ArtifactError(
            f"{model.runner.artifact.name} does not repeat its golden vectors on {model.device}: "
            f"largest error {worst:.1e}, limit {golden.tolerance:.0e}; see `causal-onnx selftest`"
        )


def _call(model: Model, seq: int) -> None:
    """Call it on made-up inputs, which it may refuse."""
    try:
        Workload(model.runner, seq=seq).call()
    except RunError as error:
        if any(sign in str(error) for sign in NO_MEMORY):
            raise


if __name__ == "__main__":
    main()
