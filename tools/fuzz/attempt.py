"""Load one file, use it, and name what came of it."""

from __future__ import annotations

import math
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from causal_onnx.runtime import (
    ArtifactError,
    CausalOnnxError,
    Contract,
    DeviceError,
    Model,
    TensorSpec,
    UnsafeFileError,
    load,
)
from causal_onnx.runtime.artifact.protobuf import WireError
from causal_onnx.runtime.scan.limits import Limits

__all__ = ["OUTCOMES", "attempt_model", "attempt_stream"]

OUTCOMES = {
    "scan": "refused by the scan, or not the format of a model",
    "contract": "refused for its contract, or not its contract's graph",
    "onnxruntime": "refused by onnxruntime, in an error of ours",
    "ran": "loaded, ran, gave what its contract says",
    "run refused": "loaded; a call gave a clear error",
    "stream refused": "a saved stream, refused",
    "stream ran": "a saved stream, taken up and gone on with",
    "unclear": "another exception: a defect",
}

LIMITS = Limits(max_value_elements=1 << 24)
"""Below what the worker may allocate, so that a refusal and not a lack of memory is the result."""


def attempt_model(path: Path, *, trusted: bool = False) -> tuple[str, str]:
    """The outcome of loading and running the model, and what was said; `trusted` as for `load`."""
    contract = _contract_for(path)
    try:
        model = load(path, threads=1, limits=LIMITS, contract=contract, trusted=trusted)
    except UnsafeFileError as error:
        return "scan", str(error)
    except ArtifactError as error:
        if isinstance(error.__cause__, WireError):
            return "scan", str(error)
        kind = "onnxruntime" if " does not load " in str(error) else "contract"
        return kind, str(error)
    except DeviceError as error:
        return "onnxruntime", str(error)
    except Exception:
        return "unclear", traceback.format_exc()
    try:
        return _use(model)
    except Exception:
        return "unclear", traceback.format_exc()


def _contract_for(path: Path) -> Contract | None:
    """For a file without one, which is the fixture of another exporter."""
    if b"causal_onnx.contract" in path.read_bytes():
        return None
    axes = ("batch", "seq", 8)
    spec = TensorSpec(name="x", dtype="float32", axes=axes)
    return Contract(inputs=(spec,), outputs=(TensorSpec(name="y", dtype="float32", axes=axes),))


def _use(model: Model) -> tuple[str, str]:
    """Replay the goldens, call it at two lengths, and feed its cache."""
    refusals = []
    calls: list[Any] = [model.selftest]
    for seq in (1, 5):
        calls.append(lambda seq=seq: model.run(**_inputs(model.contract, seq)))
    if model.contract.cache:
        calls.append(lambda: _feed(model))
    for call in calls:
        try:
            call()
        except (CausalOnnxError, ValueError) as error:
            # A ValueError must be one of the request's own checks.
            if isinstance(error, ValueError) and not _is_ours(error):
                raise
            refusals.append(str(error))
    return ("run refused", refusals[0]) if len(refusals) == len(calls) else ("ran", "")


def _is_ours(error: BaseException) -> bool:
    """Whether the error was raised by a line of this project's runtime."""
    frames = traceback.extract_tb(error.__traceback__)
    return "causal_onnx/runtime" in Path(frames[-1].filename).as_posix()


def _inputs(contract: Contract, seq: int) -> dict[str, Any]:
    rng = np.random.default_rng(seq)
    sizes = {"batch": 2, "seq": seq, "past_seq": 0, "total_seq": seq, "past_slots": 0}
    feeds = {}
    for spec in contract.inputs:
        if spec.name in contract.optional_names:
            continue
        shape = [sizes.get(axis, 1) if isinstance(axis, str) else axis for axis in spec.axes]
        if math.prod(shape) > 1 << 20:
            raise ValueError("the contract states inputs larger than this fuzzer makes")
        if spec.dtype.startswith("float"):
            feeds[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        else:
            high = min(spec.vocab_size or 2, 2)
            feeds[spec.name] = rng.integers(0, high, shape).astype(spec.dtype)
    return feeds


def _feed(model: Model) -> None:
    stream = model.stream(batch=1)
    for seq in (3, 1):
        feeds = _inputs(model.contract, seq)
        stream.run(**{name: value[:1] for name, value in feeds.items()})


def attempt_stream(model: Model, path: Path) -> tuple[str, str]:
    """The outcome of taking up a saved stream."""
    try:
        stream = model.restore(path)
        chunk = np.ones((len(stream.lengths), 1), np.int64)
        stream(chunk)
        stream.rewind(0)
        stream(chunk)
    except CausalOnnxError as error:
        return "stream refused", str(error)
    except ValueError as error:
        if _is_ours(error):
            return "stream refused", str(error)
        return "unclear", traceback.format_exc()
    except Exception:
        return "unclear", traceback.format_exc()
    return "stream ran", ""
