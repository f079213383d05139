"""Load and use a model in a process of its own, with limits, before this process loads it.

What no scan can promise, a process can: whatever a file does while it is loaded or run, it does to
the child. The child is a fresh interpreter. It is given the descriptors of the very files that are
loaded here afterwards, and reads nothing by a name that somebody could point elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from causal_onnx.runtime.artifact.artifact import Artifact
from causal_onnx.runtime.artifact.graph_parts import read_graph_parts
from causal_onnx.runtime.artifact.held import Held, NotHeldError
from causal_onnx.runtime.contract import Contract
from causal_onnx.runtime.errors import ArtifactError, DeviceError, RunError, UnsafeFileError

__all__ = ["TRIED_OPTIONS", "TrialLimits", "hold_unjudged", "try_out"]

LEAST_MEMORY_BYTES = 2 << 30
"""Of a small model. The interpreter, numpy and onnxruntime take 0.1 GiB of it on one thread; every
thread more has a stack of 8 MiB."""

COPIES = 4
"""Of all weights: as the file has them, parsed, laid out for the kernels, and one to spare."""


TRIED_OPTIONS = (
    "device",
    "threads",
    "spinning",
    "flush_denormals",
    "huge_pages",
    "cast",
    "check_finite",
)
"""Of `load`: those that say how a session is made and called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialLimits:
    """What a model may use while it is tried in a separate process."""

    memory_bytes: int | None = None
    """Private memory of the process (RLIMIT_DATA). None: 2 GiB, and four times the model's size."""
    processor_s: int = 120
    """Seconds of processor time, of all threads together (RLIMIT_CPU)."""
    wall_s: int = 300
    """Seconds until the process must have ended."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None and item.name == "memory_bytes":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{item.name} must be a positive integer, got {value!r}")


def hold_unjudged(artifact: Artifact, *, copied: bool = True) -> Held:
    """Hold the files of a model that is loaded without the scan; `copied` is as for `Held`.

    Raises:
        ArtifactError: It is damaged, or a file beside it cannot be held.
    """
    with contextlib.ExitStack() as undo:
        held = undo.enter_context(Held(artifact.location, max_bytes=sys.maxsize, copied=copied))
        held.check_header(artifact)
        for name in read_graph_parts(held.stream, name=artifact.name).data_files:
            try:
                if Path(name).name != name:
                    raise NotHeldError("which is not the plain name of a file beside the model")
                held.beside(name, allow_link=True)
            except (NotHeldError, OSError) as error:
                found = error.found if isinstance(error, NotHeldError) else f"and {error.strerror}"
                raise ArtifactError(
                    f"{artifact.name} cannot be tried in a separate process: its weights are in "
                    f"{name!r}, {found}. Put the file itself beside the model"
                ) from error
        undo.pop_all()
    return held


def try_out(
    held: Held,
    limits: TrialLimits,
    *,
    artifact: Artifact,
    contract: Contract | None,
    options: Mapping[str, Any],
) -> None:
    """Load a model in a fresh process, replay its golden vectors and call it.

    Args:
        held: Its files.
        limits: What the process may use.
        artifact: The model.
        contract: As for `load`.
        options: Those of `TRIED_OPTIONS`, as for `load`.

    Raises:
        UnsafeFileError: It ended the process, or needed more than `limits`.
        ArtifactError: onnxruntime does not accept it, or it does not repeat its golden vectors.
        DeviceError: The device cannot run it.
    """
    memory = limits.memory_bytes or LEAST_MEMORY_BYTES + COPIES * held.total_bytes
    model, files = held.descriptors()
    order = {
        "name": artifact.name,
        "model": model,
        "files": files,
        "contract": None if contract is None else contract.to_json(),
        "options": dict(options),
        "memory_bytes": memory,
        "processor_s": limits.processor_s,
    }
    with tempfile.TemporaryFile() as said:
        code, answer = _run(order, [model, *files.values()], said, limits.wall_s)
        said.seek(max(0, said.tell() - 1000))
        last = said.read().decode(errors="replace").strip().rpartition("\n")[2]
    if answer is None:
        raise _ended(artifact.name, code, last, limits, memory)
    kind, text = answer["kind"], answer["text"]
    if kind == "memory":
        raise UnsafeFileError(
            f"{artifact.name} was not loaded: in a separate process it needed more than {memory} "
            f"bytes of memory ({text}). If that is right for it, {_more('memory_bytes')}"
        )
    if kind != "passed":
        known = {x.__name__: x for x in (ArtifactError, DeviceError, RunError)}
        if kind in known:
            raise known[kind](text)
        raise UnsafeFileError(
            f"{artifact.name} was not loaded: in a separate process it failed with {kind}: {text}"
        )


def _run(
    order: Mapping[str, Any], descriptors: list[int], said: BinaryIO, wall_s: int
) -> tuple[int | None, dict[str, Any] | None]:
    """The exit code of the process (None: its time was up), and what it answered, if it did."""
    # -P: nothing is imported from the current folder, where the file may have come with others.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "causal_onnx.runtime.trial_child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        pass_fds=descriptors,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        start_new_session=True,  # so that what it starts ends with it
    )
    try:
        answer, _ = process.communicate(json.dumps(order).encode(), timeout=wall_s)
    except subprocess.TimeoutExpired:
        return None, None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
    if process.returncode != 0:
        return process.returncode, None
    return 0, json.loads(answer)


def _ended(
    name: str, code: int | None, last: str, limits: TrialLimits, memory: int
) -> UnsafeFileError:
    """What the end of a process without an answer means."""
    start = f"{name} was not loaded: in a separate process it"
    right = "If that is right for it, "
    if code is None:
        return UnsafeFileError(
            f"{start} was not done after {limits.wall_s} s. {right}{_more('wall_s')}"
        )
    ended = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    if ended == "SIGXCPU":
        return UnsafeFileError(
            f"{start} used more than {limits.processor_s} s of processor time. "
            f"{right}{_more('processor_s')}"
        )
    said = f", and said: {last}" if last else ""
    # Of these two, lack of memory is never the cause.
    if ended not in ("SIGFPE", "SIGILL"):
        said += f". The process had {memory} bytes of memory: if those may be too few, "
        said += _more("memory_bytes")
    return UnsafeFileError(f"{start} ended with {ended}{said}")


def _more(limit: str) -> str:
    return f"raise the limit: isolated_trial=TrialLimits({limit}=...)"
