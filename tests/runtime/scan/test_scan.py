from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from causal_onnx.runtime import ArtifactError, Limits, UnsafeFileError, load, read_artifact
from causal_onnx.runtime.scan import scan
from tests.runtime.artifacts import field, fixture, metadata, varint
from tests.runtime.onnx_bytes import (
    FLOAT,
    external,
    graph,
    integer,
    ints,
    model,
    node,
    subgraph,
    tensor,
    value,
)

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
SEQ = node("Shape", ["x"], ["seq"], integer("start", 1), integer("end", 2))
COUNT = node("Squeeze", ["seq"], ["count"])
TRUE = field(2, 9) + field(8, "true") + field(9, b"\1")


def body(*nodes: bytes, inputs: Sequence[str] = ("step", "going"), result: str = "x") -> bytes:
    """Of a Loop that stacks one value of each step."""
    last = node("Identity", [result], ["out"])
    going = node("Identity", ["going"], ["on"])
    scalars = [value(name, dtype=7 if name == "step" else 9) for name in inputs]
    outputs = [value("on", dtype=9), value("out", "batch", "seq", 4)]
    return graph([*nodes, going, last], inputs=scalars, outputs=outputs)


def loop(content: bytes, *, count: str = "count", more: Sequence[str] = ()) -> bytes:
    return node("Loop", [count, "true", *more], ["stacked"], subgraph("body", content))


def branch(*nodes: bytes, result: str = "x") -> bytes:
    return graph(
        [*nodes, node("Identity", [result], [f"{result}_b"])], outputs=[value(f"{result}_b")]
    )


def choice(then: bytes, other: bytes) -> bytes:
    return node(
        "If", ["true"], ["z"], subgraph("then_branch", then), subgraph("else_branch", other)
    )


def test_a_plain_file_loads_and_runs_like_a_trusted_one() -> None:
    content = model()
    np.testing.assert_array_equal(load(content)(X), load(content, trusted=True)(X))


@pytest.mark.parametrize(
    "path", sorted(fixture("small").parent.glob("*.onnx")), ids=lambda p: p.stem
)
def test_the_files_of_the_tests_pass(path: Path) -> None:
    with scan(read_artifact(path), Limits()) as held:
        assert held.size == path.stat().st_size


def test_a_loop_and_branches_as_exports_write_them_pass() -> None:
    inner = model(SEQ, COUNT, choice(branch(loop(body())), branch()), tensors=[TRUE])
    np.testing.assert_array_equal(load(inner)(X), X)


BIG = 1 << 40
REFUSED = {
    "local functions": (model(extra=field(25, field(1, "f"))), r"it has local functions \(1\)"),
    "training": (model(extra=field(20, b"")), "training graphs"),
    "metadata": (model(extra=metadata("ort_config", "{}")), "the key 'ort_config'"),
    "sparse weights": (model(in_graph=field(15, b"")), "sparse weights"),
    "unknown domain": (
        model(node("Run", ["x"], ["z"], domain="evil.corp")),
        "the node 'z' .evil.corp:Run. is of the operator domain 'evil.corp', expected ONNX's own",
    ),
    "unlisted contrib operator": (
        model(node("EPContext", ["x"], ["z"], domain="com.microsoft")),
        "com.microsoft:EPContext. is not one of the operators",
    ),
    "overload": (model(node("Relu", ["x"], ["z"]) + field(8, "other")), "local function"),
    "scan": (
        model(node("Scan", ["x"], ["z"], subgraph("body", graph([])))),
        "lacks the attribute 'num_scan_inputs'",
    ),
    "graph in another operator": (
        model(node("Relu", ["x"], ["z"], subgraph("body", graph([])))),
        "Relu. has the graphs body, expected none",
    ),
    "if without a branch": (
        model(node("If", ["true"], ["z"], subgraph("then_branch", branch())), tensors=[TRUE]),
        "has the graphs then_branch, expected else_branch, then_branch",
    ),
    "loop over data": (
        model(
            node("Cast", ["x"], ["data"], integer("to", 7)),
            loop(body(), count="data"),
            tensors=[TRUE],
        ),
        "does not come from the sizes of its inputs",
    ),
    "endless loop": (
        model(loop(body(), count=""), tensors=[TRUE]),
        "does not come from the sizes of its inputs",
    ),
    "long loop": (
        model(loop(body()), tensors=[TRUE, tensor("count", BIG)]),
        "may run more than 1048576 times. Raise it: limits=Limits.max_loop_steps",
    ),
    "loop over a product of sizes": (
        model(SEQ, node("Mul", ["seq", "seq"], ["count"]), loop(body()), tensors=[TRUE]),
        "may run more than 1048576 times",
    ),
    "loop with a state": (
        model(
            SEQ, COUNT, loop(body(inputs=("step", "going", "state")), more=["x"]), tensors=[TRUE]
        ),
        "carries values from step to step",
    ),
    "loop in a loop": (
        model(
            SEQ,
            COUNT,
            loop(body(node("Loop", ["count", "true"], ["inner"], subgraph("body", body())))),
            tensors=[TRUE],
        ),
        "is a loop in a loop",
    ),
    "deep branches": (
        model(
            choice(
                branch(
                    choice(
                        branch(
                            choice(
                                branch(choice(branch(choice(branch(), branch())), branch())),
                                branch(),
                            )
                        ),
                        branch(),
                    )
                ),
                branch(),
            ),
            tensors=[TRUE],
        ),
        "nested more than 4 graphs deep",
    ),
    "list of graphs": (
        model(node("Relu", ["x"], ["z"], field(1, "a") + field(11, b"") + field(20, 10))),
        "a list of graphs",
    ),
    "attribute of two kinds": (
        model(
            node("Relu", ["x"], ["z"], field(1, "a") + field(3, 1) + field(6, b"") + field(20, 2))
        ),
        "of type 2 holds i and g, expected i",
    ),
    "unsorted": (
        model(node("Relu", ["later"], ["z"]), node("Relu", ["x"], ["later"])),
        "reads 'later', which no earlier node computes",
    ),
    "defined twice": (
        model(node("Relu", ["x"], ["z"]), node("Relu", ["x"], ["z"])),
        "defines the value 'z' a second time",
    ),
    "tensor smaller than declared": (
        model(tensors=[tensor("w", 1, 2, shape=(BIG,))]),
        rf"the tensor 'w' of shape \({BIG}\) holds 16 bytes, expected {BIG * 8}",
    ),
    "negative axis": (
        model(tensors=[field(1, (1 << 64) - 1) + field(2, 1) + field(8, "w")]),
        r"'w' has the shape \(-1\)",
    ),
    "unknown data type": (model(tensors=[field(2, 99) + field(8, "w")]), "data type 99"),
    "data in two fields": (
        model(tensors=[tensor("w", 1) + field(7, 1)]),
        "holds its data twice",
    ),
    "a number beyond its type": (
        model(tensors=[field(1, 1) + field(2, 3) + field(8, "w") + field(5, 300)]),
        "'w' of data type 3 holds the number 300, expected -128 to 127",
    ),
    "a bool of 2": (
        model(tensors=[field(1, 2) + field(2, 9) + field(8, "w") + field(9, b"\1\2")]),
        "'w' of data type 9 holds the number 2, expected 0 to 1",
    ),
    "bytes with a file": (model(tensors=[external()]), "bytes have none"),
    "filled tensor": (
        model(node("ConstantOfShape", ["s"], ["z"]), tensors=[tensor("s", 1 << 20, 1 << 20)]),
        r"ConstantOfShape. gives 1.1e\+12 elements, .*, more than 268435456. Raise it",
    ),
    "filled tensor by arithmetic": (
        model(
            node("Mul", ["s", "s"], ["t"]),
            node("Concat", ["t", "seq"], ["u"], integer("axis", 0)),
            node("ConstantOfShape", ["u"], ["z"]),
            tensors=[tensor("s", 1 << 20), tensor("seq", 1)],
        ),
        "ConstantOfShape. gives",
    ),
    "expanded": (
        model(node("Expand", ["x", "s"], ["z"]), tensors=[tensor("s", 1 << 20, 1, 1 << 20, 1)]),
        "Expand. gives",
    ),
    "expanded by a shape made in part": (
        model(
            SEQ,
            node("Concat", ["s", "seq", "four"], ["t"], integer("axis", 0)),
            node("Expand", ["x", "t"], ["z"]),
            tensors=[tensor("s", 1 << 40, 1), tensor("four", 4)],
        ),
        "Expand. gives",
    ),
    "tiled": (
        model(node("Tile", ["x", "s"], ["z"]), tensors=[tensor("s", 1, 1 << 30, 1)]),
        "Tile. gives",
    ),
    "range": (
        model(
            node("Range", ["a", "b", "c"], ["z"]),
            tensors=[
                tensor("a", 0, shape=()),
                tensor("b", BIG, shape=()),
                tensor("c", 1, shape=()),
            ],
        ),
        "Range. gives",
    ),
    "padded": (
        model(node("Pad", ["x", "s"], ["z"]), tensors=[tensor("s", 0, 1 << 30, 0, 0, 0, 0)]),
        "Pad. gives",
    ),
    "random": (
        model(node("RandomNormal", [], ["z"], ints("shape", 1 << 20, 1 << 20))),
        "RandomNormal. gives",
    ),
    "doubled constants": (
        model(
            *(
                node("Concat", [f"c{i}", f"c{i}"], [f"c{i + 1}"], integer("axis", 0))
                for i in range(40)
            ),
            tensors=[tensor("c0", 1)],
        ),
        "and the nodes before it make 1.07e.09 bytes, with every open axis .* at 16, more than",
    ),
    "many constants": (
        model(
            *(node("ConstantOfShape", ["s"], [f"c{i}"]) for i in range(40)),
            tensors=[tensor("s", 1 << 23)],
        ),
        "the nodes before it make 1.07e.09 bytes.*Raise it: limits=Limits.max_memory_bytes",
    ),
    "a slow product of constants": (
        model(
            node("ConstantOfShape", ["s"], ["c0"]),
            node("MatMul", ["c0", "c0"], ["z"]),
            tensors=[tensor("s", 1 << 13, 1 << 13)],
        ),
        "take 5.5e.11 operations, .*, more than 343.*. Raise it: limits=Limits.max_work",
    ),
    "outer products of constants": (
        model(
            node("Reshape", ["v", "down"], ["column"]),
            node("Mul", ["v", "column"], ["m"]),
            node("Reshape", ["m", "down"], ["long"]),
            node("Mul", ["v", "long"], ["z"]),
            tensors=[tensor("v", *range(2000)), tensor("down", -1, 1)],
        ),
        "Mul. gives",
    ),
    "a size in an attribute": (
        model(node("MaxPool", ["x"], ["z"], ints("kernel_shape", 1 << 50))),
        r"the attribute 'kernel_shape' is \[1125899906842624\], beyond 32 bits",
    ),
    "no heads": (
        model(
            node(
                "GroupQueryAttention", ["x"], ["z"], integer("num_heads", 0), domain="com.microsoft"
            )
        ),
        r"the attribute 'num_heads' is \[0\], expected 1 or more",
    ),
    "keys of another number of heads": (
        model(
            node(
                "LinearAttention",
                ["x", "v", "x"],
                ["z"],
                integer("q_num_heads", 2),
                integer("kv_num_heads", 2),
                domain="com.microsoft",
            ),
            tensors=[tensor("v", 1, 2, shape=(1, 1, 2))],
        ),
        "LinearAttention.* has an input 1 that is not of 2 heads",
    ),
    "several states": (
        model(
            node(
                "LinearAttention",
                ["x", "x", "x"],
                ["z"],
                integer("q_num_heads", 2),
                integer("kv_num_heads", 2),
                integer("state_window", 2),
                domain="com.microsoft",
            )
        ),
        "LinearAttention.* keeps several states, which onnxruntime does on GPUs alone",
    ),
    "negative size of an input": (
        model(in_graph=field(13, value("v", -1 % (1 << 64)))),
        "the value info 'v' has an axis of size -1",
    ),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_exports_do_not_have_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(UnsafeFileError, match=message) as caught:
        load(content)
    assert "trusted=True" in str(caught.value)


def test_trusted_skips_the_scan() -> None:
    content = model(extra=metadata("author", "me"))
    with pytest.raises(UnsafeFileError, match="the key 'author'"):
        load(content)
    np.testing.assert_array_equal(load(content, trusted=True)(X), X)


DAMAGED = {
    "unknown field": (model(extra=field(90, 1)), "a model has a field 90"),
    "unknown field of a node": (model(node("Relu", ["x"], ["z"]) + field(77, 1)), "field 77"),
    "two names": (model(node("Relu", ["x"], ["z"]) + field(4, "Abs")), "'op_type' twice"),
    "wire type": (model(node("Relu", ["x"], ["z"]) + field(3, 7)), "wire type 0, not 2"),
    "wide data location": (
        # Protobuf cuts an enum to 32 bits: 1, which is external.
        model(tensors=[field(2, 1) + field(8, "w") + field(14, (1 << 32) + 1)]),
        "'data_location' of a tensor is 4294967297, beyond 0 to 1",
    ),
    "wide data type": (
        model(tensors=[field(2, (1 << 32) + 1) + field(8, "w")]),
        "'data_type' of a tensor is 4294967297",
    ),
    "two sizes of an axis": (
        model(in_graph=field(13, field(2, field(1, field(2, field(1, b"\x08\x05\x12\x01n")))))),
        "a dim has dim_param and dim_value, of which only one",
    ),
    "a long length": (
        model(node("Relu", ["x"], ["z"]) + b"\x1a\x81\x80\x80\x80\x80\x00n"),
        "the length of field 3 takes 6 bytes",
    ),
    "a long number in a list": (
        model(node("Relu", ["x"], ["z"], field(8, b"\1" * 99 + b"\xff" * 11 + b"\1"))),
        "an integer is longer than 10 bytes",
    ),
    "not UTF-8": (model(node("Relu", ["x"], ["z"]) + field(3, b"\xff")), "not UTF-8"),
    "cut off": (model(tensors=[tensor("w", 1)[:-1]]), "after the end of what holds it"),
    "long varint": (model(node("Relu", ["x"], ["z"]) + b"\x18" + b"\xff" * 11), "longer than 10"),
    "group": (model(node("Relu", ["x"], ["z"]) + varint(3 << 3 | 3)), "wire type 3"),
    "long name": (model(node("Relu", ["x"], ["z" * 70_000])), "longer than 65536 bytes"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_named(content: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=f"the file is damaged.*{message}"):
        load(content)


def test_deep_nesting_is_refused() -> None:
    kind = field(1, field(1, FLOAT))
    for _ in range(50):
        kind = field(4, field(1, kind))
    with pytest.raises(ArtifactError, match="nested more than 24 deep"):
        load(model(in_graph=field(13, field(1, "v") + field(2, kind))))


def test_a_packed_list_costs_fields_by_its_length() -> None:
    packed = field(1, "k") + field(8, b"\1" * (1 << 20)) + field(20, 7)
    content = model(node("Relu", ["x"], ["z"], packed))
    scan(read_artifact(content), Limits(max_fields=600))
    with pytest.raises(UnsafeFileError, match="more than 500 fields"):
        scan(read_artifact(content), Limits(max_fields=500))


def many(count: int) -> dict[str, bytes]:
    """Files with many of one thing."""
    names = [f"n{i}" for i in range(count)]
    defaults = b"".join(field(11, value(name)) for name in names)
    return {
        "nodes": model(*(node("Relu", ["x"], [name]) for name in names)),
        "inputs of a node": model(node("Concat", ["x"] * count, ["z"], integer("axis", 1))),
        "attributes": model(node("Relu", ["x"], ["z"], *(integer(name, 1) for name in names))),
        "tensors": model(tensors=[tensor(name, 1) for name in names]),
        "defaults": model(tensors=[tensor(name, 1) for name in names], in_graph=defaults),
        "value infos": model(in_graph=b"".join(field(13, value(name, 1)) for name in names)),
        "notes": model(in_graph=b"".join(field(16, field(1, name)) for name in names)),
        "numbers": model(node("Relu", ["x"], ["z"], ints("k", *range(count)))),
        "branches": model(*(choice_of(name) for name in names), tensors=[TRUE]),
    }


def choice_of(name: str) -> bytes:
    branches = (
        subgraph(key, graph([node("Identity", ["x"], [key])], outputs=[value(key)]))
        for key in ("then_branch", "else_branch")
    )
    return node("If", ["true"], [name], *branches)


def steps(content: bytes) -> int:
    """How many functions are called to judge a file, those in C included."""
    artifact, count = read_artifact(content), 0

    def step(*_: object) -> None:
        nonlocal count
        count += 1

    before = sys.getprofile()
    sys.setprofile(step)
    try:
        with contextlib.suppress(UnsafeFileError):
            scan(artifact, Limits())
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("kind", many(1))
def test_the_scan_takes_steps_in_proportion_to_what_a_file_holds(kind: str) -> None:
    base, once, twice = (steps(many(count)[kind]) for count in (0, 300, 600))
    assert 1.9 < (twice - base) / (once - base) < 2.1


@pytest.mark.parametrize(
    ("content", "limit"),
    [
        (model(), {"max_file_bytes": 100}),
        (model(tensors=[tensor("w", 1, 2)]), {"max_weight_bytes": 15}),
        (model(node("Relu", ["x"], ["z"])), {"max_nodes": 1}),
        (model(node("Relu", ["x"], ["z"])), {"max_fields": 40}),
        (
            model(node("ConstantOfShape", ["s"], ["z"]), tensors=[tensor("s", 20_001)]),
            {"max_value_elements": 20_000},
        ),
        (
            model(node("ConstantOfShape", ["s"], ["z"]), tensors=[tensor("s", 20_001)]),
            {"max_memory_bytes": 80_000},
        ),
        (
            model(node("ConstantOfShape", ["s"], ["z"]), tensors=[tensor("s", 20_001)]),
            {"max_work": 20_000},
        ),
        (
            model(loop(body()), tensors=[TRUE, tensor("count", 11, shape=())]),
            {"max_loop_steps": 10},
        ),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_a_limit_can_be_lowered_and_raised(content: bytes, limit: dict[str, int]) -> None:
    (name,) = limit
    load(content)
    load(content, limits=Limits(**{name: limit[name] * 10}))
    with pytest.raises(UnsafeFileError, match=f"Raise it: limits=Limits.{name}="):
        load(content, limits=Limits(**limit))


def test_limits_and_trust_are_checked() -> None:
    with pytest.raises(ValueError, match="max_nodes must be a positive integer, got 0"):
        Limits(max_nodes=0)
    with pytest.raises(ValueError, match="allow_links must be True or False, got 1"):
        Limits(allow_links=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="trusted must be True or False, got 'yes'"):
        load(model(), trusted="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="limits must be a Limits, got int"):
        load(model(), limits=3)  # type: ignore[arg-type]


class TestFilesBesideTheModel:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        np.ones(8, np.float32).tofile(tmp_path / "outside")
        folder = tmp_path / "model"
        folder.mkdir()
        np.ones(8, np.float32).tofile(folder / "w.data")
        return folder

    def path(self, folder: Path, weight: bytes) -> Path:
        path = folder / "m.onnx"
        path.write_bytes(model(node("Add", ["x", "w"], ["z"]), tensors=[weight]))
        return path

    @pytest.mark.parametrize("stated", [{}, {"offset": 16}, {"offset": 0, "length": 16}])
    def test_a_plain_file_is_read(self, folder: Path, stated: dict[str, int]) -> None:
        np.testing.assert_array_equal(load(self.path(folder, external(**stated)))(X), X)

    @pytest.mark.parametrize(
        "location",
        [
            "../outside", "/etc/passwd", "a/w.data", "./w.data", "", ".", "..", "..\\outside",
            "C:w.data", "*/_ORT_MEM_ADDR_/*", "w.data\0", " w.data",
        ],
    )  # fmt: skip
    def test_only_plain_names_are_followed(self, folder: Path, location: str) -> None:
        with pytest.raises(UnsafeFileError, match="expected the plain name of a file beside"):
            load(self.path(folder, external(location=location)))

    @pytest.mark.parametrize(
        ("stated", "message"),
        [
            ({"offset": 17}, r"takes bytes 17 to 33 of 'w.data', which has 32"),
            ({"length": 12}, "takes 12 bytes of 'w.data', expected 16"),
            ({"offset": -1}, "the offset '-1'"),
            ({"offset": "0x10"}, "the offset '0x10'"),
            ({"offset": "9" * 25}, "the offset '999"),
            ({"basepath": "/"}, "states 'basepath'"),
        ],
    )
    def test_only_what_the_file_holds_is_read(
        self, folder: Path, stated: dict[str, object], message: str
    ) -> None:
        with pytest.raises(UnsafeFileError, match=message):
            load(self.path(folder, external(**stated)))

    def test_links_are_refused(self, folder: Path) -> None:
        path = self.path(folder, external())
        (folder / "w.data").unlink()
        (folder / "w.data").symlink_to("../outside")
        with pytest.raises(UnsafeFileError, match=r"'w\.data', which is a symbolic link"):
            load(path)

    def test_hard_links_are_refused(self, folder: Path) -> None:
        path = self.path(folder, external())
        (folder / "w.data").unlink()
        os.link(folder.parent / "outside", folder / "w.data")
        with pytest.raises(UnsafeFileError, match=r"'w\.data', which is one of 2 hard links"):
            load(path)
        assert load(path, trusted=True)(X).shape == X.shape  # onnxruntime would read it

    def test_pipes_and_folders_are_refused(self, folder: Path) -> None:
        path = self.path(folder, external())
        (folder / "w.data").unlink()
        os.mkfifo(folder / "w.data")
        with pytest.raises(UnsafeFileError, match="which is not a regular file"):
            load(path)

    def test_a_model_may_be_a_link_and_its_weights_too_where_allowed(self, folder: Path) -> None:
        """As in a Hugging Face cache: snapshots/<commit>/model.onnx -> ../../blobs/<hash>."""
        path = self.path(folder, external())
        snapshot = folder.parent / "snapshot"
        snapshot.mkdir()
        for name in ("m.onnx", "w.data"):
            (snapshot / name).symlink_to(f"../{folder.name}/{name}")
        with pytest.raises(UnsafeFileError, match=r"a Hugging Face cache, .*allow_links=True"):
            load(snapshot / "m.onnx")
        allowed = Limits(allow_links=True)
        np.testing.assert_array_equal(load(snapshot / "m.onnx", limits=allowed)(X), X)
        (snapshot / "w.data").unlink()
        (snapshot / "w.data").symlink_to("../outside")
        with pytest.raises(UnsafeFileError, match="not in the folder of the model"):
            load(snapshot / "m.onnx", limits=allowed)
        path.write_bytes(model())
        np.testing.assert_array_equal(load(snapshot / "m.onnx")(X), X)


def test_weights_are_not_read(tmp_path: Path) -> None:
    """A sparse file of a gigabyte of weights costs what a small one does."""
    from causal_onnx.runtime.artifact.held import Held
    from causal_onnx.runtime.scan.scan import judge

    size = 1 << 28
    data = field(1, size) + field(2, FLOAT) + field(8, "w") + varint(9 << 3 | 2) + varint(4 * size)
    head = graph(
        [node("Identity", ["x"], ["y"])],
        inputs=[value("x", "batch", "seq", 4)],
        outputs=[value("y", "batch", "seq", 4)],
    )
    length = len(head) + len(varint(5 << 3 | 2)) + len(varint(len(data) + 4 * size))
    length += len(data) + 4 * size
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.write(field(1, 10) + field(8, field(2, 20)) + varint(7 << 3 | 2) + varint(length))
        file.write(head + varint(5 << 3 | 2) + varint(len(data) + 4 * size) + data)
        file.truncate(file.tell() + 4 * size)
    with Held(path, max_bytes=1 << 31) as held:
        before = _bytes_read()
        judge(held, read_artifact(path), Limits())
        assert _bytes_read() - before < 1 << 20
    assert path.stat().st_size > math.prod((4, size))


def _bytes_read() -> int:
    """What this process has read from files, as the kernel counts it."""
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return int(text.splitlines()[0].removeprefix("rchar: "))


def test_rotary_heads_that_are_0_are_those_of_the_tables() -> None:
    """onnxruntime-genai writes the default, with which nothing is divided by it."""
    places = [tensor("places", 0, 0, shape=(1, 2)), tensor("table", 0, 0, shape=(1, 2))]
    heads = integer("num_heads", 0)
    names = ["x", "places", "table", "table"]
    rotary = node("RotaryEmbedding", names, ["z"], heads, domain="com.microsoft")
    scan(read_artifact(model(rotary, tensors=places)), Limits())
