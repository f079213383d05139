"""A bundle in Python with numpy and onnxruntime alone: `python client.py BUNDLE`."""

import json
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

Arrays = dict[str, Any]

# What is read here of a contract, of its inputs and outputs, and of the pairs of its cache. A key
# that is not known may restrict what a call may contain.
_CONTRACT = {
    *(
        "adapters",
        "inputs",
        "outputs",
        "cache",
        "mask",
        "max_seq_len",
        "min_seq_len",
        "last_only",
        "computed",
    ),
    *("ragged", "free_axes", "causal_block", "unbatched", "form", "precision", "opset", "format"),
    *("eos_token_ids", "bos_token_id", "pad_token_id", "min_onnxruntime"),
}
_TENSOR = {"name", "dtype", "axes", "vocab_size", "kind", "value_range"}
_PAIR = {"past", "present", "bounded", "shared", "computed_from"}


class Bundle:
    """A model that takes what its contract allows."""

    def __init__(self, folder: Path, session: Any = None) -> None:
        document = json.loads((folder / "contract.json").read_bytes())
        self.contract = contract = document["contract"]
        tensors = {key for spec in contract["inputs"] + contract["outputs"] for key in spec}
        pairs = {key for pair in contract["cache"] for key in pair}
        unknown = (contract.keys() - _CONTRACT) | (tensors - _TENSOR) | (pairs - _PAIR)
        if document["format"] != 1 or unknown:
            raise ValueError(f"format {document['format']} and keys not known here: {unknown}")
        self.goldens = json.loads((folder / "goldens.json").read_bytes())
        self.session = session or onnxruntime.InferenceSession(folder / "model.onnx")
        self.cache = {pair["past"]: pair["present"] for pair in self.contract["cache"]}
        pairs = contract.get("adapters", [])
        self.adapters = {pair[key] for pair in pairs for key in ("down", "up")}
        """Inputs that low-rank adapters are given by; here none is used, so their rank is 0."""

    def run(self, inputs: Arrays) -> Arrays:
        """Give every output but the cache, by name."""
        return Stream(self).read(inputs)

    def check(self, inputs: Arrays, past: int) -> dict[str, int]:
        """Give the sizes of the axes; ValueError where the contract is not kept."""
        sizes: dict[str, int] = {}
        own = {*self.cache, self.contract["mask"], *self.adapters}
        specs = {s["name"]: s for s in self.contract["inputs"] if s["name"] not in own}
        if inputs.keys() != specs.keys():
            raise ValueError(f"the inputs are {[*specs]}, got {[*inputs]}")
        for name, spec in specs.items():
            array, axes = inputs[name], spec["axes"]
            if array.dtype.name != spec["dtype"] or array.ndim != len(axes):
                raise ValueError(f"{name} is {array.dtype} {array.shape}, expected {spec}")
            for axis, size in zip(axes, array.shape, strict=True):
                expected = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
                if size != expected or size == 0:
                    raise ValueError(
                        f"{name} has {axis} {size}, expected {expected or '1 or more'}"
                    )
            vocab_size = spec["vocab_size"]
            if vocab_size and not 0 <= array.min() <= array.max() < vocab_size:
                raise ValueError(f"{name} must hold ids in [0, {vocab_size})")
            low, high = spec.get("value_range") or (None, None)
            if low is not None and not low <= array.min() <= array.max() < high:
                raise ValueError(f"{name} must hold values in [{low}, {high})")
        least, most = self.contract["min_seq_len"], self.contract["max_seq_len"] or float("inf")
        if not least <= (total := past + sizes["seq"]) <= most:
            raise ValueError(f"{total} positions, expected at least {least} and at most {most}")
        ragged, several = self.contract.get("ragged"), sizes["seq"] > 1
        single = ragged == "single" or (past and ragged == "steps")
        if several and (single or (past and ragged == "packed_steps" and sizes["batch"] > 1)):
            raise ValueError(f"{sizes['seq']} positions in a call, expected 1 here")
        return sizes


class Stream:
    """Reads sequences chunk by chunk; the cache holds what came before."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle, self.length, self.past = bundle, 0, dict[str, Any]()

    def read(self, inputs: Arrays) -> Arrays:
        """Give the outputs for the next positions."""
        contract, cache = self.bundle.contract, self.bundle.cache
        sizes = self.bundle.check(inputs, self.length) | {"past_seq": 0, "past_slots": 0}
        sizes["total_seq"] = self.length + sizes["seq"]
        feeds = inputs | self.past
        for spec in contract["inputs"]:
            if spec["name"] not in feeds:  # the mask is all ones, and the first past is empty
                rank = 0  # of the adapters
                shape = [a if isinstance(a, int) else sizes.get(a, rank) for a in spec["axes"]]
                feeds[spec["name"]] = np.ones(shape, spec["dtype"])
        names = [spec["name"] for spec in contract["outputs"]]
        outputs = dict(zip(names, self.bundle.session.run(names, feeds), strict=True))
        self.past = {past: outputs.pop(present) for past, present in cache.items()}
        self.length = sizes["total_seq"]
        return outputs


def array(stored: Any) -> Any:
    """An array of goldens.json."""
    return np.frombuffer(b64decode(stored["data"]), stored["dtype"]).reshape(stored["shape"])
