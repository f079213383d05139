"""Replay a bundle's golden vectors: `python selftest.py [--engine NAME] BUNDLE`.

Prints one line of JSON. ENGINE is onnxruntime, reference or openvino.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from client import Arrays, Bundle, Stream, array  # type: ignore[import-not-found]
from engines import ENGINES  # type: ignore[import-not-found]


def error(outputs: Arrays, case: Any) -> float:
    """The largest error, relative to each output's scale."""
    worst = 0.0
    for name, stored in case["outputs"].items():
        if list(outputs[name].shape) != stored["whole_shape"]:
            raise ValueError(f"{name} is {outputs[name].shape}, not {stored['whole_shape']}")
        expected = array(stored).astype(np.float64)
        difference = outputs[name].reshape(-1)[:: stored["stride"]] - expected
        worst = max(worst, np.abs(difference).max() / np.abs(expected).max())
    return float(worst)


def streamed(bundle: Bundle, inputs: Arrays, chunks: list[int]) -> Arrays:
    """Feed inputs cut along their positions, and join the outputs."""
    axes = {
        spec["name"]: spec["axes"].index("seq")
        for spec in bundle.contract["inputs"] + bundle.contract["outputs"]
        if "seq" in spec["axes"]
    }
    stream, parts, start = Stream(bundle), [], 0
    for count in chunks:
        now = {k: np.take(v, range(start, start + count), axes[k]) for k, v in inputs.items()}
        parts.append(stream.read(now))
        start += count
    return {name: np.concatenate([part[name] for part in parts], axes[name]) for name in parts[0]}


def refusals(bundle: Bundle, inputs: Arrays) -> int:
    """How many of three requests that the contract forbids are refused: all, or it is an error."""
    name, good = next(iter(inputs.items()))
    limit = bundle.contract["max_seq_len"]
    # Without a limit, no position at all is too few.
    wrong = good[:, :0] if limit is None else good.repeat(limit, axis=1)[:, : limit + 1]
    bad = [good[0], good.astype(np.float64), wrong]
    for value in bad:
        try:
            bundle.run({**inputs, name: value})
        except ValueError:
            continue
        raise RuntimeError(f"{name} {value.dtype} {value.shape} was not refused")
    return len(bad)


def main() -> int:
    """Replay everything twice, time it, and print what was found."""
    parser = argparse.ArgumentParser(description="Replay a bundle's golden vectors.")
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("bundle", type=Path)
    args = parser.parse_args()
    if not (args.bundle / "contract.json").is_file():
        sys.exit(f"error: {args.bundle} has no contract.json; expected the folder of a model")
    runtime, session = ENGINES[args.engine](args.bundle / "model.onnx")
    bundle = Bundle(args.bundle, session)
    cases = bundle.goldens["cases"]
    inputs = [{name: array(x) for name, x in case["inputs"].items()} for case in cases]
    errors, repeats = [], True
    for given, case in zip(inputs, cases, strict=True):
        first, second = bundle.run(given), bundle.run(given)
        repeats &= all(np.array_equal(first[name], second[name]) for name in first)
        errors.append(error(first, case))
    for plan in bundle.goldens["streams"]:
        outputs = streamed(bundle, inputs[plan["case"]], plan["chunks"])
        errors.append(error(outputs, cases[plan["case"]]))
    start = time.perf_counter()
    for _ in range(100):
        bundle.run(inputs[1])
    found = {
        "runtime": runtime,
        "cases": len(cases),
        "streams": len(bundle.goldens["streams"]),
        "refused": refusals(bundle, inputs[1]),
        "error": max(errors),
        "repeats": repeats,
        "ms_per_call": (time.perf_counter() - start) * 10,
    }
    print(json.dumps(found))
    return 0 if repeats and max(errors) <= bundle.goldens["tolerance"] else 1


if __name__ == "__main__":
    sys.exit(main())
