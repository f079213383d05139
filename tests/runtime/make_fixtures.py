"""Write the small ONNX files that the runtime's tests load; run it by hand after changing it.

    python -m tests.runtime.make_fixtures

It needs the package onnx, which the runtime and its tests do without; so the files are kept beside
this script, and a test of the exporter's checks that they are what it writes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

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
from tests.runtime import language

FOLDER = Path(__file__).parent / "fixtures"
DIM, CONTEXT, VOCAB = 8, 16, 11

Array = npt.NDArray[Any]


def weights(*shape: int, seed: int) -> Array:
    scale = 1 / np.sqrt(shape[0])
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in fixtures():
        (folder / name).write_bytes(content)


def fixtures() -> Iterator[tuple[str, bytes]]:
    yield "one_head.onnx", one_head()
    yield "foreign.onnx", foreign()
    yield "decoder.onnx", decoder()
    yield "cached.onnx", cached()
    yield "language.onnx", language_model()
    yield "seq_first.onnx", seq_first()
    yield "small.onnx", small()
    yield "half.onnx", half()
    yield "bfloat16.onnx", brain_float()
    yield "fixed_length.onnx", fixed_length()
    yield "external.onnx", external()
    yield "external.data", np.eye(4, dtype=np.float32).tobytes()
    yield "grouped_query.onnx", grouped_query()


def one_head() -> bytes:
    """Causal self-attention of one head, with all that an exported file carries."""
    contract = Contract(
        inputs=(spec("x", "batch", "seq", DIM),),
        outputs=(spec("y", "batch", "seq", DIM),),
        max_seq_len=CONTEXT,
        unbatched=True,
        opset=20,
    )
    cases = []
    for seed, shape in enumerate([(1, 1, DIM), (2, 5, DIM), (1, CONTEXT, DIM)]):
        x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
        y = attention_reference(x).astype(np.float32)
        cases.append(GoldenCase.record({"x": x}, {"y": y}))
    model = attention_model([value("x", "batch", "seq", DIM)], [], "x", contract)
    set_metadata(model, SOURCE_KEY, {"class": "OneHead", "weights_sha256": "0" * 64})
    set_metadata(model, CERTIFICATE_KEY, {"verdict": "causal"})
    golden = GoldenSet(cases=cases, tolerance=1e-5)
    helper.set_model_props(
        model, {p.key: p.value for p in model.metadata_props} | {GOLDEN_KEY: golden.to_json()}
    )
    return serialized(model)


def foreign() -> bytes:
    """The same graph as another exporter writes it: other axis names and no metadata."""
    inputs = [value("x", "batch_size", "sequence_length", DIM)]
    return serialized(attention_model(inputs, [], "x", None))


def decoder() -> bytes:
    """Token ids to logits."""
    contract = Contract(
        inputs=(
            TensorSpec(name="input_ids", dtype="int64", axes=("batch", "seq"), vocab_size=VOCAB),
        ),
        outputs=(spec("y", "batch", "seq", DIM),),
        max_seq_len=CONTEXT,
        unbatched=True,
    )
    embed = helper.make_node("Gather", ["table", "input_ids"], ["x"])
    model = attention_model(
        [value("input_ids", "batch", "seq", dtype=TensorProto.INT64)], [embed], "x", contract
    )
    model.graph.initializer.append(numpy_helper.from_array(weights(VOCAB, DIM, seed=9), "table"))
    return serialized(model)


def cached() -> bytes:
    """A past beside the new positions, a mask over both, two outputs."""
    contract = Contract(
        inputs=(
            spec("x", "batch", "seq", 4),
            spec("past", "batch", "past_seq", 4),
            TensorSpec(name="attention_mask", dtype="int64", axes=("batch", "total_seq")),
        ),
        outputs=(spec("y", "batch", "seq", 4), spec("present", "batch", "total_seq", 4)),
        max_seq_len=CONTEXT,
    )
    nodes = [
        helper.make_node("Concat", ["past", "x"], ["present"], axis=1),
        helper.make_node("Cast", ["attention_mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["kept", "last"], ["count"], keepdims=1),
        helper.make_node("Unsqueeze", ["count", "last"], ["counts"]),
        helper.make_node("Add", ["x", "counts"], ["y"]),
    ]
    inputs = [
        value("x", "batch", "seq", 4),
        value("past", "batch", "past_seq", 4),
        value("attention_mask", "batch", "total_seq", dtype=TensorProto.INT64),
    ]
    outputs = [value("y", "batch", "seq", 4), value("present", "batch", "total_seq", 4)]
    return serialized(build(nodes, inputs, outputs, {"last": np.array([-1])}, contract))


def language_model() -> bytes:
    """A language model with a cache: logits from the mean of all embeddings so far.

    Its rows must have the same length.
    """
    contract = Contract(
        inputs=(
            TensorSpec(
                name="input_ids", dtype="int64", axes=("batch", "seq"), vocab_size=language.VOCAB
            ),
            spec("past", "batch", "past_seq", language.DIM),
        ),
        outputs=(
            spec("logits", "batch", "seq", language.VOCAB),
            spec("present", "batch", "total_seq", language.DIM),
        ),
        cache=(CachePair(past="past", present="present"),),
        max_seq_len=language.CONTEXT,
        unbatched=True,
    )
    nodes = [
        helper.make_node("Gather", ["embedding", "input_ids"], ["x"]),
        helper.make_node("Concat", ["past", "x"], ["present"], axis=1),
        helper.make_node("CumSum", ["present", "one"], ["sums"]),
        helper.make_node("Shape", ["present"], ["total"], start=1, end=2),
        helper.make_node("Squeeze", ["total"], ["count"]),
        helper.make_node("Range", ["zero", "count", "one"], ["before"]),
        helper.make_node("Add", ["before", "one"], ["counts"]),
        helper.make_node("Cast", ["counts"], ["counts_f"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["counts_f", "last"], ["column"]),
        helper.make_node("Div", ["sums", "column"], ["means"]),
        helper.make_node("Shape", ["input_ids"], ["seq"], start=1, end=2),
        helper.make_node("Neg", ["seq"], ["start"]),
        helper.make_node("Slice", ["means", "start", "end", "axis"], ["now"]),
        helper.make_node("MatMul", ["now", "head"], ["logits"]),
    ]
    embedding, head = language.weights()
    constants = {
        "embedding": embedding,
        "head": head,
        "zero": np.array(0),
        "one": np.array(1),
        "last": np.array([-1]),
        "end": np.array([np.iinfo(np.int64).max]),
        "axis": np.array([1]),
    }
    inputs = [
        value("input_ids", "batch", "seq", dtype=TensorProto.INT64),
        value("past", "batch", "past_seq", language.DIM),
    ]
    outputs = [
        value("logits", "batch", "seq", language.VOCAB),
        value("present", "batch", "total_seq", language.DIM),
    ]
    return serialized(build(nodes, inputs, outputs, constants, contract))


def seq_first() -> bytes:
    """The batch axis in the middle: running sums over axis 0."""
    contract = Contract(
        inputs=(spec("x", "seq", "batch", 4),),
        outputs=(spec("y", "seq", "batch", 4),),
        unbatched=True,
    )
    return serialized(
        build(
            [helper.make_node("CumSum", ["x", "axis"], ["y"])],
            [value("x", "seq", "batch", 4)],
            [value("y", "seq", "batch", 4)],
            {"axis": np.array(0)},
            contract,
        )
    )


def small() -> bytes:
    """Times 1e-10: the way to make denormals on purpose."""
    contract = Contract(inputs=(spec("x", "batch", "seq"),), outputs=(spec("y", "batch", "seq"),))
    return serialized(
        build(
            [helper.make_node("Mul", ["x", "factor"], ["y"])],
            [value("x", "batch", "seq")],
            [value("y", "batch", "seq")],
            {"factor": np.array(1e-10, np.float32)},
            contract,
        )
    )


def half() -> bytes:
    """float16 and bool: x where the mask is true, else 0."""
    contract = Contract(
        inputs=(
            spec("x", "batch", "seq", dtype="float16"),
            spec("mask", "batch", "seq", dtype="bool"),
        ),
        outputs=(spec("y", "batch", "seq", dtype="float16"),),
    )
    return serialized(
        build(
            [helper.make_node("Where", ["mask", "x", "zero"], ["y"])],
            [
                value("x", "batch", "seq", dtype=TensorProto.FLOAT16),
                value("mask", "batch", "seq", dtype=TensorProto.BOOL),
            ],
            [value("y", "batch", "seq", dtype=TensorProto.FLOAT16)],
            {"zero": np.array(0, np.float16)},
            contract,
        )
    )


def brain_float() -> bytes:
    """bfloat16 in and out, and int64 beside it: the square of x, plus n."""
    contract = Contract(
        inputs=(
            spec("x", "batch", "seq", dtype="bfloat16"),
            spec("n", "batch", "seq", dtype="int64"),
        ),
        outputs=(
            spec("y", "batch", "seq", dtype="bfloat16"),
            spec("wide", "batch", "seq"),
        ),
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["n"], ["n32"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x32", "x32"], ["square"]),
        helper.make_node("Add", ["square", "n32"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["y"], to=TensorProto.BFLOAT16),
    ]
    inputs = [
        value("x", "batch", "seq", dtype=TensorProto.BFLOAT16),
        value("n", "batch", "seq", dtype=TensorProto.INT64),
    ]
    outputs = [
        value("y", "batch", "seq", dtype=TensorProto.BFLOAT16),
        value("wide", "batch", "seq"),
    ]
    return serialized(build(nodes, inputs, outputs, {}, contract))


def fixed_length() -> bytes:
    """A source that takes sequences of 3 and no others."""
    contract = Contract(
        inputs=(spec("x", "batch", "seq"),),
        outputs=(spec("y", "batch", "seq"),),
        min_seq_len=3,
        max_seq_len=3,
    )
    return serialized(
        build(
            [helper.make_node("Identity", ["x"], ["y"])],
            [value("x", "batch", 3)],
            [value("y", "batch", 3)],
            {},
            contract,
        )
    )


def external() -> bytes:
    """Its weight, the identity, lies in external.data."""
    contract = Contract(inputs=(spec("x", "batch", 4),), outputs=(spec("y", "batch", 4),))
    model = build(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", "batch", 4)],
        [value("y", "batch", 4)],
        {},
        contract,
    )
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4])
    weight.data_location = TensorProto.EXTERNAL
    for key, text in (("location", "external.data"), ("offset", "0"), ("length", "64")):
        weight.external_data.add(key=key, value=text)
    model.graph.initializer.append(weight)
    return serialized(model)


def grouped_query() -> bytes:
    """GroupQueryAttention in fp32, for which CUDA has no kernel."""
    contract = Contract(
        inputs=(spec("q", "batch", "seq", 32), spec("k", "batch", "seq", 16)),
        outputs=(spec("y", "batch", "seq", 32),),
    )
    nodes = [
        helper.make_node("Shape", ["q"], ["length"], start=1, end=2),
        helper.make_node("Cast", ["length"], ["total"], to=TensorProto.INT32),
        helper.make_node("Shape", ["q"], ["rows"], start=0, end=1),
        helper.make_node("Sub", ["total", "one"], ["last"]),
        helper.make_node("Expand", ["last", "rows"], ["seqlens"]),
        helper.make_node("Squeeze", ["total"], ["total_length"]),
        helper.make_node(
            "GroupQueryAttention",
            ["q", "k", "k", "", "", "seqlens", "total_length"],
            ["y", "present_key", "present_value"],
            domain="com.microsoft",
            name="attention",
            num_heads=2,
            kv_num_heads=1,
        ),
    ]
    inputs = [value("q", "batch", "seq", 32), value("k", "batch", "seq", 16)]
    outputs = [value("y", "batch", "seq", 32)]
    return serialized(build(nodes, inputs, outputs, {"one": np.array([1], np.int32)}, contract))


def attention_model(
    inputs: list[Any], before: list[NodeProto], x: str, contract: Contract | None
) -> ModelProto:
    """softmax(x wq (x wk)^T / sqrt(DIM) + mask) x wv, the mask made from the shape of `x`."""
    nodes = [
        *before,
        *(helper.make_node("MatMul", [x, f"w{n}"], [n]) for n in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["products"]),
        helper.make_node("Mul", ["products", "scale"], ["scores"]),
        helper.make_node("Shape", [x], ["length"], start=1, end=2),
        helper.make_node("Concat", ["length", "length"], ["square"], axis=0),
        helper.make_node(
            "ConstantOfShape",
            ["square"],
            ["forbidden"],
            value=numpy_helper.from_array(np.array([-np.inf], np.float32)),
        ),
        helper.make_node("Trilu", ["forbidden", "one"], ["mask"], upper=1),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    constants = {f"w{name}": weights(DIM, DIM, seed=i) for i, name in enumerate("qkv")}
    constants["scale"] = np.array(DIM**-0.5, np.float32)
    constants["one"] = np.array(1)
    outputs = [value("y", "batch", "seq", DIM)]
    return build(nodes, inputs, outputs, constants, contract)


def attention_reference(x: Array) -> Array:
    """The same in float64, position by position."""
    wq, wk, wv = (weights(DIM, DIM, seed=seed).astype(np.float64) for seed in range(3))
    result = np.zeros(x.shape)
    for row, sequence in enumerate(x.astype(np.float64)):
        for t in range(len(sequence)):
            scores = (sequence[: t + 1] @ wk) @ (sequence[t] @ wq) / np.sqrt(DIM)
            shares = np.exp(scores - scores.max())
            result[row, t] = (shares / shares.sum()) @ (sequence[: t + 1] @ wv)
    return result


def spec(name: str, *axes: str | int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, axes=axes)


def value(name: str, *axes: str | int, dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, axes)


def build(
    nodes: list[NodeProto],
    inputs: list[Any],
    outputs: list[Any],
    constants: dict[str, Array],
    contract: Contract | None,
) -> ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    if contract is not None:
        model.metadata_props.add(key=CONTRACT_KEY, value=contract.to_json())
    return model


def set_metadata(model: ModelProto, key: str, document: dict[str, Any]) -> None:
    text = json.dumps({"format": FORMAT, **document}, sort_keys=True)
    model.metadata_props.add(key=key, value=text)


def serialized(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
