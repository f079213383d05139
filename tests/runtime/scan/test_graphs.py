"""Each kind of graph that costs too much, does not end, or kills: refused, by its node."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import Limits, TensorSpec, UnsafeFileError, load
from causal_onnx.runtime.contract import CONTRACT_KEY, CachePair
from causal_onnx.runtime.scan.rules import ALLOWED, OPSETS
from tests.runtime.artifacts import field, metadata
from tests.runtime.onnx_bytes import (
    CONTRIB,
    FLOAT,
    contract,
    graph,
    integer,
    ints,
    model,
    node,
    subgraph,
    tensor,
    value,
)

LEAST = -(2**63)
TRUE = field(2, 9) + field(8, "true") + field(9, b"\1")
SEQ = node("Shape", ["x"], ["seq"], integer("start", 1), integer("end", 2))
COUNT = node("Squeeze", ["seq"], ["count"])
EMPTY = node("Slice", ["x", "none", "none"], ["empty"])
NONE = tensor("none", 0)
ONE = tensor("one", 1)
CONTRIB_DOMAIN = "com.microsoft"


def floats(name: str, *shape: int) -> bytes:
    """A float32 tensor of ones."""
    count = 1
    for size in shape:
        count *= size
    data = struct.pack(f"<{count}f", *[1.0] * count)
    return (
        b"".join(field(1, size) for size in shape)
        + field(2, FLOAT)
        + field(8, name)
        + field(9, data)
    )


def text(name: str, content: str) -> bytes:
    return field(1, name) + field(4, content) + field(20, 3)


def chain(op_type: str, count: int, *attributes: bytes, start: str = "x") -> list[bytes]:
    """A node on its own result, twice, again and again."""
    names = [start, *(f"c{i}" for i in range(count))]
    return [node(op_type, [a, a], [b], *attributes) for a, b in itertools.pairwise(names)]


def loop(
    *nodes: bytes, count: str = "count", result: str = "x", carried: Sequence[str] = ()
) -> bytes:
    inputs = [value("step", dtype=7), value("going", dtype=9), *(value(f"in_{n}") for n in carried)]
    outputs = [value("on", dtype=9), *(value(f"in_{n}") for n in carried), value("out")]
    last = [node("Identity", ["going"], ["on"]), node("Identity", [result], ["out"])]
    body = graph([*nodes, *last], inputs=inputs, outputs=outputs)
    return node("Loop", [count, "true", *carried], ["stacked"], subgraph("body", body))


def scanned(*nodes: bytes, axis: int = 1) -> list[bytes]:
    """A Scan over x that carries the sum of what it has seen; `nodes` make `sum` of s and item."""
    inner = nodes or (node("Add", ["s", "item"], ["sum"]),)
    last = node("Identity", ["sum"], ["each"])
    body = graph(
        [*inner, last],
        inputs=[value("s", "batch", 4), value("item", "batch", 4)],
        outputs=[value("sum", "batch", 4), value("each", "batch", 4)],
    )
    start = node("ReduceMin", ["x", "one"], ["start"], integer("keepdims", 0))
    attributes = [
        integer("num_scan_inputs", 1),
        ints("scan_input_axes", axis),
        ints("scan_output_axes", 1),
        subgraph("body", body),
    ]
    return [start, node("Scan", ["start", "x"], ["end", "all"], *attributes)]


def old(*nodes: bytes, opset: int = 20, ir_version: int = 10) -> bytes:
    """A file of another version."""
    main = graph(
        [node("Identity", ["x"], ["y"]), *nodes],
        inputs=[value("x", "batch", "seq", 4)],
        outputs=[value("y", "batch", "seq", 4)],
    )
    head = field(1, ir_version) + field(7, main) + field(8, field(2, opset)) + field(8, CONTRIB)
    return head + metadata("causal_onnx.contract", contract().to_json())


def big(op_type: str, *numbers: int, first: str = "x", before: Sequence[bytes] = ()) -> bytes:
    """An operator with a shape of these numbers as its last input."""
    inputs = [first, "s"] if first else ["s"]
    return model(*before, node(op_type, inputs, ["z"]), tensors=[tensor("s", *numbers)])


SIZES = {
    "ConstantOfShape": (big("ConstantOfShape", 1 << 31, first=""), "gives 2.15e.09 elements"),
    "ConstantOfShape of a size in bytes": (
        model(
            node(
                "ConstantOfShape",
                ["s"],
                ["z"],
                field(1, "value") + field(5, tensor("", 1)) + field(20, 4),
            ),
            tensors=[tensor("s", (1 << 27) + 1)],
        ),
        "make 1.07e.09 bytes",
    ),
    "Expand": (big("Expand", 1 << 20, 1 << 10, 1, 1, 1), "gives"),
    "Expand by a size": (
        model(
            SEQ,
            node("Mul", ["seq", "k"], ["t"]),
            node("ConstantOfShape", ["t"], ["z"]),
            tensors=[tensor("k", 1 << 30)],
        ),
        "ConstantOfShape. gives 1.72e.10 elements",
    ),
    "above a size that is tried": (
        model(
            SEQ,
            node("Sub", ["seq", "k"], ["t"]),
            node("Max", ["t", "none"], ["u"]),
            node("Mul", ["u", "big"], ["v"]),
            node("ConstantOfShape", ["v"], ["z"]),
            tensors=[tensor("k", 1000), NONE, tensor("big", 1 << 40)],
        ),
        "ConstantOfShape. gives 1.76e.13 elements",
    ),
    "Tile": (big("Tile", 1, 1, 1 << 30), "gives"),
    "Range": (
        model(
            node("Range", ["a", "b", "c"], ["z"]),
            tensors=[
                tensor("a", 0, shape=()),
                tensor("b", 1 << 40, shape=()),
                tensor("c", 1, shape=()),
            ],
        ),
        "gives 1.1e.12 elements",
    ),
    "Pad": (big("Pad", 0, 0, 0, 0, 0, 1 << 40), "gives"),
    "OneHot": (
        model(
            node("OneHot", ["s", "d", "v"], ["z"]),
            tensors=[tensor("s", 1), tensor("d", 1 << 40), floats("v", 2)],
        ),
        "gives 1.1e.12 elements",
    ),
    "RandomNormal": (
        model(node("RandomNormal", [], ["z"], ints("shape", 1 << 20, 1 << 20))),
        "gives",
    ),
    "Concat": (model(*chain("Concat", 40, integer("axis", 0))), "the nodes before it make"),
    "Concat of a size": (
        model(SEQ, *chain("Add", 40, start="seq"), node("ConstantOfShape", ["c39"], ["z"])),
        "gives 1.76e.13 elements",
    ),
    "outer products": (
        model(
            node("Reshape", ["x", "flat"], ["row"]),
            node("Reshape", ["x", "column"], ["col"]),
            node("Mul", ["row", "col"], ["m"]),
            node("Reshape", ["m", "flat"], ["r2"]),
            node("Reshape", ["m", "column"], ["c2"]),
            node("Mul", ["r2", "c2"], ["z"]),
            tensors=[tensor("flat", -1), tensor("column", -1, 1)],
        ),
        "Mul. gives 1.1e.12 elements",
    ),
    "MatMul, again and again": (
        model(
            node("ConstantOfShape", ["s"], ["c"]),
            *chain("MatMul", 200, start="c"),
            tensors=[tensor("s", 600, 600)],
        ),
        "operations, with every open axis of its inputs at 16, more than",
    ),
    "Einsum": (
        model(node("Einsum", ["x"] * 4, ["z"], text("equation", "abc,def,ghi,jkl->adgjbehkcfil"))),
        "gives 1.1e.12 elements",
    ),
    "Einsum with a large product in between": (
        model(
            node("Einsum", ["x", "d", "d", "w"], ["z"], text("equation", "abc,d,e,de->abc")),
            tensors=[floats("d", 1536), floats("w", 1536, 1536)],
        ),
        "make 3.87e.10 bytes",
    ),
    "a wide kernel": (
        model(
            node("Conv", ["i", "w"], ["z"], ints("pads", 199_999, 199_999)),
            tensors=[floats("i", 1, 1, 4), floats("w", 1, 1, 200_000)],
        ),
        "Conv. and the nodes before it make",
    ),
    "pads of a pool": (
        model(node("MaxPool", ["x"], ["z"], ints("kernel_shape", 2), ints("pads", 1 << 30, 0))),
        "has the pads 1073741824 and 0 around a window of 2",
    ),
    "a transposed stride": (
        model(
            node("ConvTranspose", ["i", "w"], ["z"], ints("strides", 1 << 23)),
            tensors=[floats("i", 1, 1, 64), floats("w", 1, 1, 1)],
        ),
        "ConvTranspose. gives 5.28e.08 elements",
    ),
    "heads": (
        model(
            node(
                "Attention",
                ["x", "x", "x"],
                ["z"],
                integer("q_num_heads", 1 << 20),
                integer("kv_num_heads", 1),
            )
        ),
        "is of opset 23, and the file of an earlier one",
    ),
    "declared size": (
        model(
            node("NonZero", ["x"], ["n"]),
            node("Shape", ["n"], ["s"]),
            node("ConstantOfShape", ["s"], ["z"]),
            in_graph=field(13, value("n", 3, 1 << 38, dtype=7)),
        ),
        "gives 8.25e.11 elements",
    ),
    "many small ones": (
        model(
            *(node("ConstantOfShape", ["s"], [f"m{i}"]) for i in range(50_000)),
            tensors=[tensor("s", 6000)],
        ),
        "the nodes before it make",
    ),
    "an unknown shape": (
        model(
            node("Cast", ["x"], ["i"], integer("to", 7)),
            node("ReduceMax", ["i"], ["m"], integer("keepdims", 0)),
            node("Reshape", ["m", "one"], ["s"]),
            node("ConstantOfShape", ["s"], ["z"]),
            tensors=[tensor("one", 1)],
        ),
        "does not come from constants and the sizes of the inputs",
    ),
    "a size that wraps": (
        model(
            SEQ,
            node("Mul", ["seq", "k"], ["t"]),
            node("Add", ["t", "t"], ["u"]),
            node("ConstantOfShape", ["u"], ["z"]),
            tensors=[tensor("k", 1 << 43)],
        ),
        "does not come from constants and the sizes of the inputs",
    ),
    "texts": (
        model(tensors=[field(1, 1) + field(2, 8) + field(6, "a") + field(8, "w")]),
        "has the value 'w' of texts",
    ),
}

LOOPS = {
    "no count": (model(loop(count=""), tensors=[TRUE]), "a number of times that does not come"),
    "a count among the data": (
        model(
            node("Cast", ["x"], ["i"], integer("to", 7)),
            node("ReduceMax", ["i"], ["count"]),
            loop(),
            tensors=[TRUE],
        ),
        "a number of times that does not come",
    ),
    "a large count": (
        model(loop(), tensors=[TRUE, tensor("count", 1 << 40, shape=())]),
        "may run more than 1048576 times",
    ),
    "a product of sizes": (
        model(SEQ, node("Mul", ["seq", "seq"], ["count"]), loop(), tensors=[TRUE]),
        "may run more than 1048576 times",
    ),
    "a count that wraps": (
        model(
            SEQ, node("Mul", ["seq", "k"], ["count"]), loop(), tensors=[TRUE, tensor("k", 2**62)]
        ),
        "a number of times that does not come",
    ),
    "a state that doubles": (
        model(SEQ, COUNT, loop(carried=["x"]), tensors=[TRUE]),
        "carries values from step to step",
    ),
    "a loop in a loop": (
        model(SEQ, COUNT, loop(loop(), result="stacked"), tensors=[TRUE]),
        "is a loop in a loop",
    ),
    "work times steps": (
        model(
            loop(*(node("Exp", ["x"], [f"e{i}"]) for i in range(20))),
            tensors=[TRUE, tensor("count", 1 << 20, shape=())],
        ),
        "operations, with every open axis",
    ),
    "a Scan without a scanned input": (
        model(node("Scan", ["x"], ["z"], subgraph("body", graph([])))),
        "lacks the attribute 'num_scan_inputs'",
    ),
    "a Scan whose body takes another number": (
        model(
            node("Scan", ["x"], ["z"], integer("num_scan_inputs", 1), subgraph("body", graph([])))
        ),
        "has 0 inputs in its body for 1 of its own",
    ),
    "a Scan along an axis that is not there": (
        model(*scanned(axis=3), tensors=[ONE]),
        "goes along the axis 3 of a tensor of 3 axes",
    ),
    "a Scan with a state that grows": (
        model(*scanned(node("Concat", ["s", "s"], ["sum"], integer("axis", 0))), tensors=[ONE]),
        "a state whose type or shape changes",
    ),
    "a Scan in a loop": (
        model(SEQ, COUNT, loop(*scanned(), result="all"), tensors=[TRUE, ONE]),
        "is a loop in a loop",
    ),
}

KILLERS = {
    "Div at load": (
        model(node("Div", ["a", "b"], ["q"]), tensors=[tensor("a", LEAST), tensor("b", -1)]),
        "divides by what may be -1 what may be -9223372036854775808",
    ),
    "Mod at load": (
        model(node("Mod", ["a", "b"], ["q"]), tensors=[tensor("a", LEAST), tensor("b", -1)]),
        "divides by what may be -1 what may be -9223372036854775808",
    ),
    "Div by 0": (
        model(node("Div", ["a", "b"], ["q"]), tensors=[tensor("a", 1), tensor("b", 0)]),
        "divides whole numbers by what may be 0",
    ),
    "Div of a float by a whole number": (
        model(node("Div", ["x", "b"], ["q"]), tensors=[tensor("b", 0)]),
        "divides numbers of one type by numbers of another",
    ),
    "Mod of a whole number by a float": (
        model(node("Mod", ["a", "x"], ["q"]), tensors=[tensor("a", LEAST)]),
        "divides numbers of one type by numbers of another",
    ),
    "Div of a size that wraps": (
        model(
            SEQ,
            node("Mul", ["seq", "k"], ["t"]),
            node("Div", ["t", "n"], ["q"]),
            tensors=[tensor("k", -(2**62)), tensor("n", -1)],
        ),
        "divides by what may be -1",
    ),
    "Div by a size less another": (
        model(
            SEQ,
            node("Sub", ["seq", "k"], ["t"]),
            node("Div", ["k", "t"], ["q"]),
            tensors=[tensor("k", 2)],
        ),
        "divides whole numbers by what may be 0",
    ),
    "Div by the same numbers in another shape": (
        model(
            node("Shape", ["x"], ["s"]),
            node("Reshape", ["s", "down"], ["column"]),
            node("Sub", ["s", "column"], ["d"]),
            node("Add", ["d", "one"], ["e"]),
            node("Div", ["s", "e"], ["q"]),
            tensors=[tensor("down", -1, 1), tensor("one", 1)],
        ),
        "divides whole numbers by what may be 0",
    ),
    "Div by a rounded float": (
        model(
            node("Cast", ["a"], ["f"], integer("to", 1)),
            node("Cast", ["f"], ["i"], integer("to", 7)),
            node("Sub", ["i", "b"], ["d"]),
            node("Div", ["a", "d"], ["q"]),
            tensors=[tensor("a", 16_777_217), tensor("b", 16_777_216)],
        ),
        "divides whole numbers by what may be 0",
    ),
    "Div by a difference of floats": (
        model(
            node("Cast", ["a"], ["f"], integer("to", 1)),
            node("Cast", ["one"], ["g"], integer("to", 1)),
            node("Add", ["f", "g"], ["h"]),
            node("Sub", ["h", "f"], ["d"]),
            node("Cast", ["k"], ["i"], integer("to", 1)),
            node("Mul", ["d", "i"], ["m"]),
            node("Cast", ["m"], ["n"], integer("to", 7)),
            node("Div", ["a", "n"], ["q"]),
            tensors=[tensor("a", 1 << 24), tensor("one", 1), tensor("k", 1000)],
        ),
        "divides whole numbers by what may be 0",
    ),
    "infinity in half precision": (
        model(
            node("Cast", ["a"], ["f"], integer("to", 10)),
            node("Mul", ["f", "f"], ["g"]),
            node("Cast", ["g"], ["i"], integer("to", 7)),
            node("Div", ["i", "n"], ["q"]),
            tensors=[tensor("a", 300), tensor("n", -1)],
        ),
        "divides by what may be -1",
    ),
    "Einsum of what is empty where one axis is 1": (
        model(
            SEQ,
            node("Shape", ["x"], ["batch"], integer("start", 0), integer("end", 1)),
            node("Sub", ["batch", "one"], ["b"]),
            node("Min", ["b", "seq"], ["end"]),
            node("Slice", ["x", "none", "end", "one"], ["part"]),
            node("Add", ["part", "x"], ["sum"]),
            node("Einsum", ["sum", "sum"], ["z"], text("equation", "bij,bkj->bik")),
            tensors=[tensor("one", 1), NONE],
        ),
        "works on a tensor whose axis 1 may be empty",
    ),
    "Div by a large constant": (
        model(node("Div", ["a", "a"], ["q"]), tensors=[tensor("a", *range(1, 200))]),
        "divides whole numbers by what may be 0",
    ),
    "Einsum of nothing": (
        model(
            EMPTY,
            node("Einsum", ["empty", "empty"], ["z"], text("equation", "bij,bkj->bik")),
            tensors=[NONE],
        ),
        "works on a tensor whose axis 0 may be empty",
    ),
    "ArgMax of nothing": (
        model(EMPTY, node("ArgMax", ["empty"], ["z"]), tensors=[NONE]),
        "axis 0 may be empty",
    ),
    "Det": (model(node("Det", ["x"], ["z"])), "Det. is not one of the operators that exports have"),
    "StringConcat": (model(node("StringConcat", ["x", "x"], ["z"])), "is not one of the operators"),
    "a group of 0": (
        model(
            node("Conv", ["i", "w"], ["z"], integer("group", 0)),
            tensors=[floats("i", 1, 1, 4), floats("w", 1, 1, 1)],
        ),
        "'group' is .0., expected 1 or more",
    ),
    "a block that is no power of 2": (
        model(
            node(
                "MatMulNBits",
                ["x", "w", "s"],
                ["z"],
                integer("K", 4),
                integer("N", 1),
                integer("block_size", 24),
                integer("bits", 4),
                domain=CONTRIB_DOMAIN,
            ),
            tensors=[tensor("w", 1), floats("s", 1)],
        ),
        "has blocks of 24, expected a power of 2 from 16 on",
    ),
    "weights smaller than stated": (
        model(
            node(
                "MatMulNBits",
                ["x", "w", "s"],
                ["z"],
                integer("K", 4),
                integer("N", 1 << 20),
                integer("block_size", 16),
                integer("bits", 4),
                domain=CONTRIB_DOMAIN,
            ),
            tensors=[tensor("w", 1), floats("s", 1)],
        ),
        "has an input 1 that is not of the shape .1048576, 1, 8.",
    ),
}

VERSIONS = {
    "an old opset": (old(opset=12), "imports version 12 .*; 13 to 26 were reviewed"),
    "a new opset": (old(opset=99), "imports version 99"),
    "an old format": (old(ir_version=3), "IR version 3; 4 to 14 were reviewed"),
    "a new format": (old(ir_version=15), "IR version 15"),
}

ALL = {
    f"{kind}: {name}": case
    for kind, cases in (
        ("size", SIZES),
        ("loop", LOOPS),
        ("killer", KILLERS),
        ("version", VERSIONS),
    )
    for name, case in cases.items()
}


@pytest.mark.parametrize(("content", "message"), ALL.values(), ids=ALL.keys())
def test_each_kind_is_refused_by_its_node(content: bytes, message: str) -> None:
    with pytest.raises(UnsafeFileError, match=message):
        load(content)


HARMLESS = {
    "Div by a positive constant": model(
        SEQ, node("Div", ["seq", "k"], ["z"]), tensors=[tensor("k", 64)]
    ),
    "Div by a size": model(SEQ, node("Div", ["k", "seq"], ["z"]), tensors=[tensor("k", 64)]),
    "Div by what Max keeps above 0": model(
        SEQ,
        node("Sub", ["seq", "k"], ["t"]),
        node("Max", ["t", "k"], ["d"]),
        node("Div", ["k", "d"], ["z"]),
        tensors=[tensor("k", 2)],
    ),
    "blocks of a padded sequence": model(
        SEQ,
        node("Neg", ["seq"], ["n"]),
        node("Mod", ["n", "k"], ["rest"]),
        node("Add", ["seq", "rest"], ["whole"]),
        node("Div", ["whole", "k"], ["blocks"]),
        node("Div", ["whole", "blocks"], ["z"]),
        tensors=[tensor("k", 4)],
    ),
    "groups of channels without places": model(
        node("Reshape", ["x", "rows"], ["flat"]),
        node("GroupNormalization", ["flat", "one", "one"], ["z"], integer("num_groups", 2)),
        tensors=[tensor("rows", -1, 4), floats("one", 4)],
    ),
    "Einsum that sums what it needs no more": model(
        node("Einsum", ["x", "d", "w", "e"], ["z"], text("equation", "ijd,dn,ns,sp->ijp")),
        tensors=[floats("d", 4, 512), floats("w", 512, 512), floats("e", 512, 4)],
    ),
    "Einsum of inputs": model(node("Einsum", ["x", "x"], ["z"], text("equation", "bij,bkj->bik"))),
}


@pytest.mark.parametrize("content", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_is_known_not_to_harm_passes(content: bytes) -> None:
    load(content)


def test_a_scan_that_carries_a_state_of_one_shape_runs() -> None:
    load(model(*scanned(), tensors=[ONE]))(np.ones((2, 3, 4), np.float32))


def test_limits_raise_what_a_file_may_take() -> None:
    content, _ = SIZES["ConstantOfShape of a size in bytes"]
    load(content, limits=Limits(max_memory_bytes=1 << 31))
    with pytest.raises(UnsafeFileError, match=r"limits=Limits\(max_memory_bytes=\.\.\.\)"):
        load(content, limits=Limits(max_memory_bytes=1 << 20))


def scored(places: int) -> bytes:
    """A file whose rows have scores between so many places, whatever their length."""
    return model(
        node("ReduceSum", ["x", "one"], ["sum"]),
        node("Expand", ["sum", "shape"], ["queries"]),
        node("Transpose", ["queries"], ["keys"], ints("perm", 0, 2, 1)),
        node("MatMul", ["queries", "keys"], ["scores"]),
        node("Softmax", ["scores"], ["z"]),
        tensors=[ONE, tensor("shape", 1, places, 4)],
    )


def test_a_file_of_large_rows_takes_as_many_as_keep_to_the_limits() -> None:
    with pytest.raises(UnsafeFileError, match=r"at 16, more than"):
        load(scored(10_000))  # 400 MB of scores a row
    found = load(scored(3000))
    found(np.ones((8, 3, 4), np.float32))
    for call in (found, found.runner.run_step):
        feeds = np.ones((9, 3, 4), np.float32)
        with pytest.raises(ValueError, match=r"a batch of 9, but .* 8 at most.*max_memory_bytes"):
            call({"x": feeds} if call is not found else feeds)  # type: ignore[operator]
    load(scored(3000), limits=Limits(max_memory_bytes=2 << 30))(np.ones((9, 3, 4), np.float32))


def test_every_operator_of_the_list_has_a_reviewed_domain_and_opset() -> None:
    for domain, op_type in ALLOWED:
        first, last = OPSETS[domain]
        assert first <= max(ALLOWED[domain, op_type].since, first) <= last, op_type
    assert not {name for _, name in ALLOWED if name.startswith(("String", "Scan", "Det"))}


WIDE = 1 << 23
"""Elements of a slot: 16 of them for two rows are more than a file may give, one for 16 is not."""


def slotted(bounded: int) -> bytes:
    """A file that hands on a past of so many slots."""
    axes = [("batch", 1, f"{when}_slots", WIDE) for when in ("past", "present")]
    names = ("past", "present")
    past, present = (
        TensorSpec(name=name, dtype="float32", axes=own)
        for name, own in zip(names, axes, strict=True)
    )
    mask = TensorSpec(name="mask", dtype="int64", axes=("batch", "total_seq"))
    plain = contract()
    whole = replace(
        plain,
        inputs=(*plain.inputs, mask, past),
        outputs=(*plain.outputs, present),
        cache=(CachePair(past="past", present="present", bounded=bounded),),
        mask="mask",
    )
    main = graph(
        [node("Identity", ["x"], ["y"]), node("Identity", ["past"], ["present"])],
        inputs=[
            value("x", "batch", "seq", 4),
            value("mask", "batch", "total_seq", dtype=7),
            value("past", *axes[0]),
        ],
        outputs=[value("y", "batch", "seq", 4), value("present", *axes[1])],
    )
    opsets = field(8, field(2, 20)) + field(8, CONTRIB)
    return field(1, 10) + field(7, main) + opsets + metadata(CONTRACT_KEY, whole.to_json())


def test_a_past_is_judged_at_the_slots_that_it_may_have(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(slotted(1))
    assert load(path).contract.cache[0].bounded == 1
    path.write_bytes(slotted(16))
    with pytest.raises(UnsafeFileError, match=r"gives 2\.15e.09 elements, with every"):
        load(path)
