"""Write small ONNX files without the onnx package, which a thin environment does not have.

The model is y = CumSum(x) along the sequence: causal, and numpy computes the same.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from causal_onnx.runtime.artifact.golden import GoldenCase, GoldenSet
from causal_onnx.runtime.contract import (
    CERTIFICATE_KEY,
    CONTRACT_KEY,
    FORMAT,
    GOLDEN_KEY,
    SOURCE_KEY,
    CachePair,
    Contract,
    TensorSpec,
)

Array = npt.NDArray[Any]

WIDTH, LIMIT = 3, 16
FLOAT, INT64 = 1, 7  # TensorProto.DataType


def random_input(*, batch: int = 2, seq: int = 5, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal((batch, seq, WIDTH), dtype=np.float32)


def make_contract(*, outputs: int = 1, max_seq_len: int | None = LIMIT) -> Contract:
    axes = ("batch", "seq", WIDTH)
    names = ["y", "y_1", "y_2"][:outputs]
    return Contract(
        inputs=(TensorSpec(name="x", dtype="float32", axes=axes),),
        outputs=tuple(TensorSpec(name=name, dtype="float32", axes=axes) for name in names),
        max_seq_len=max_seq_len,
        unbatched=True,
        opset=18,
    )


def make_cached_contract() -> Contract:
    """With a "cache" that holds all inputs so far."""
    plain = make_contract()
    past = TensorSpec(name="past", dtype="float32", axes=("batch", "past_seq", WIDTH))
    present = TensorSpec(name="present", dtype="float32", axes=("batch", "total_seq", WIDTH))
    return replace(
        plain,
        inputs=(*plain.inputs, past),
        outputs=(*plain.outputs, present),
        cache=(CachePair(past="past", present="present"),),
    )


def make_golden(*, wrong_by: float = 0.0) -> GoldenSet:
    x = random_input()
    case = GoldenCase.record({"x": x}, {"y": np.cumsum(x, axis=1) + np.float32(wrong_by)})
    return GoldenSet(cases=[case], tolerance=1e-5)


def make_certificate(**changes: Any) -> dict[str, Any]:
    """A certificate as an export writes it; `changes` replace whole sections, None removes one."""
    cut = {"past_error": 0.0, "source_past_error": None, "future_moved": True, "passed": True}
    shape = {"error": 1e-7, "passed": True, "refused": False, "note": ""}
    core = {"footprint": "causal", "op_type": "Attention", "num_heads": 4, "num_kv_heads": 2}
    fed = {"batch": 1, "seq": 5, "error": 2e-7, "passed": True}
    document = {
        "verdict": "causal",
        "scope": "every length",
        "reason": "every output at position t depends on inputs up to t",
        "offence": None,
        "cores": [{**core, "head_dim": 8}, {**core, "head_dim": 8}],
        "assumptions": [{"text": "the mask is a mask", "nodes": []}],
        "cache": {
            "cases": [{**fed, "feeding": "steps"}, {**fed, "feeding": "random chunks"}],
            "passed": True,
            "tolerance": 1e-5,
            "summary": "cache: 2 ways of feeding equal PyTorch's full pass",
        },
        "causality": {
            "cases": [{"seq": 2, "cut": 1, **cut}, {"seq": 7, "cut": 3, **cut}],
            "is_causal": True,
            "bit_identical": True,
            "summary": "causal: 2 perturbation points, the past stayed bit-identical",
        },
        "parity": {
            "cases": [
                {**shape, "batch": 1, "seq": 1},
                {**shape, "batch": 2, "seq": 1, "error": 3e-7},
                {**shape, "batch": 1, "seq": 16},
                {**shape, "batch": 1, "seq": 17, "refused": True, "error": 0.0},
            ],
            "tolerance": 1e-5,
            "skipped": [],
            "passed": True,
            "max_error": 3e-7,
        },
        **changes,
    }
    return {key: value for key, value in document.items() if value is not None}


def write_model(
    path: Path,
    *,
    contract: Contract | None = None,
    golden: GoldenSet | None = None,
    certificate: dict[str, Any] | None = None,
    source: dict[str, Any] | None = None,
    foreign: bool = False,
    outputs: int = 1,
) -> Path:
    """Write the model with the metadata of an export; `foreign` leaves all of that out."""
    metadata = {}
    if not foreign:
        contract = contract or make_contract(outputs=outputs)
        golden = golden or make_golden()
        certificate = make_certificate() if certificate is None else certificate
        source = {"class": "tests.Cumulative", "parameters": 0} if source is None else source
        metadata = {
            CONTRACT_KEY: contract.to_json(),
            GOLDEN_KEY: golden.to_json(),
            CERTIFICATE_KEY: json.dumps({"format": FORMAT, **certificate}),
            SOURCE_KEY: json.dumps({"format": FORMAT, **source}),
        }
    sums = ["y", "y_1", "y_2"][:outputs]
    nodes = [_node("CumSum", ["x", "axis"], [name]) for name in sums]
    inputs, results = [_value("x")], [_value(name) for name in sums]
    if contract is not None and contract.cache:
        attribute = _bytes(1, b"axis") + _number(3, 1) + _number(20, 2)
        nodes.append(_node("Concat", ["past", "x"], ["present"]) + _bytes(5, attribute))
        inputs.append(_value("past", "past_seq"))
        results.append(_value("present", "total_seq"))
    axis = _number(1, 1) + _number(2, INT64) + _bytes(8, b"axis") + _bytes(9, b"\1" + bytes(7))
    graph = b"".join(
        [
            *(_bytes(1, node) for node in nodes),
            _bytes(2, b"main"),
            _bytes(5, axis),
            *(_bytes(11, value) for value in inputs),
            *(_bytes(12, value) for value in results),
        ]
    )
    model = b"".join(
        [
            _number(1, 10),
            _bytes(2, b"tests"),
            _bytes(7, graph),
            _bytes(8, _number(2, 18)),
            *(
                _bytes(14, _bytes(1, key.encode()) + _bytes(2, value.encode()))
                for key, value in metadata.items()
            ),
        ]
    )
    path.write_bytes(model)
    return path


# The protobuf wire format, as far as it is needed; field numbers are onnx.proto's.


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _node(operator: str, inputs: list[str], outputs: list[str]) -> bytes:
    return (
        b"".join(_bytes(1, name.encode()) for name in inputs)
        + b"".join(_bytes(2, name.encode()) for name in outputs)
        + _bytes(4, operator.encode())
    )


def _value(name: str, length: str = "seq") -> bytes:
    axes = [_bytes(2, b"batch"), _bytes(2, length.encode()), _number(1, WIDTH)]
    shape = b"".join(_bytes(1, axis) for axis in axes)
    tensor = _number(1, FLOAT) + _bytes(2, shape)
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, tensor))
