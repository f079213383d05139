"""How far the past of a graph moves in onnxruntime when its future changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

__all__ = ["graph_leak"]

BATCH, SEQ, PAST = 2, 9, 3


def graph_leak(model: onnx.ModelProto) -> float:
    """Relative to the output's scale, over all cuts; inf where the graph does not run.

    The first input holds (batch, seq, features), as does the first output; a past is kept as it is.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    rng = np.random.default_rng(5)
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        inputs = session.get_inputs()
        feeds = {item.name: _values(item, rng, first=item is inputs[0]) for item in inputs}
        base = session.run(None, feeds)[0]
        name = inputs[0].name
        worst = 0.0
        for cut in range(1, SEQ):
            changed = feeds[name].copy()
            changed[:, cut:] = rng.standard_normal(changed[:, cut:].shape)
            moved = session.run(None, {**feeds, name: changed})[0]
            worst = max(worst, float(np.abs(moved[:, :cut] - base[:, :cut]).max()))
    except Exception:  # onnxruntime raises a dozen classes of its own
        return float("inf")
    return worst / float(np.abs(base).max())


def _values(item: Any, rng: np.random.Generator, *, first: bool) -> np.ndarray[Any, Any]:
    names = {"batch": BATCH, "seq": SEQ, "past_seq": PAST}
    shape = [axis if isinstance(axis, int) else names.get(axis) for axis in item.shape]
    if first and None in shape:
        shape = [BATCH, SEQ, *shape[2:]]
    return rng.standard_normal([n or 1 for n in shape]).astype(np.float32)
