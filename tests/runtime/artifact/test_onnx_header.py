from __future__ import annotations

import io
import random

import pytest

from causal_onnx.runtime import ArtifactError
from causal_onnx.runtime.artifact import header as module
from causal_onnx.runtime.artifact.header import OnnxHeader, read_header
from causal_onnx.runtime.artifact.protobuf import WINDOW_BYTES
from causal_onnx.runtime.contract import CONTRACT_KEY
from tests.runtime.artifacts import field, fixture, metadata, varint

MODEL = field(1, 10) + field(7, b"graph") + field(8, field(1, "") + field(2, 20))


def header(content: bytes) -> OnnxHeader:
    return read_header(io.BytesIO(content), name="m.onnx")


def test_versions_operator_sets_and_metadata_are_read() -> None:
    with fixture("one_head").open("rb") as stream:
        got = read_header(stream, name="one_head")
    assert got.ir_version == 10
    assert got.opsets == {"": 20, "com.microsoft": 1}
    assert CONTRACT_KEY in got.metadata
    assert got.size_bytes == fixture("one_head").stat().st_size


def test_metadata_is_the_same_that_onnxruntime_reads() -> None:
    import onnxruntime

    content = fixture("one_head").read_bytes() + metadata("a", "ü") + metadata("b", "")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert header(content).metadata == session.get_modelmeta().custom_metadata_map


def test_the_graph_is_stepped_over_and_not_read() -> None:
    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            self.taken += len(data)
            return data

    stream = Counting(field(1, 10) + field(7, bytes(1 << 20)) + metadata("k", "v"))
    assert read_header(stream, name="m").metadata == {"k": "v"}
    assert stream.taken <= 2 * WINDOW_BYTES


def test_the_long_name_of_the_default_domain_is_the_default_domain() -> None:
    content = field(1, 10) + field(7, b"") + field(8, field(1, "ai.onnx") + field(2, 18))
    assert header(content).opsets == {"": 18}


def test_producer_and_unknown_fields_are_taken() -> None:
    unknown = field(90, b"later") + field(91, 7) + varint(92 << 3 | 5) + b"1234"
    content = (
        MODEL + unknown + varint(93 << 3 | 1) + b"12345678" + field(2, "maker") + field(3, "1")
    )
    assert header(content).producer == "maker 1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "m.onnx is empty", id="empty"),
        pytest.param(b"hello world", "not an ONNX model, or it is damaged", id="text"),
        pytest.param(MODEL[:-1], "ends 1 bytes after the end", id="cut off"),
        pytest.param(field(1, 10), "0 graphs", id="no graph"),
        pytest.param(MODEL + field(7, b""), "2 graphs", id="two graphs"),
        pytest.param(field(7, b""), "no IR version", id="no IR version"),
        pytest.param(MODEL + b"\x0b", "wire type 3", id="group"),
        pytest.param(MODEL + b"\x00\x00", "field number 0", id="field 0"),
        pytest.param(MODEL + b"\x08" + b"\xff" * 11, "longer than 10 bytes", id="long varint"),
        pytest.param(MODEL + b"\x08", "middle of a field", id="ends in a varint"),
        pytest.param(MODEL + field(14, 3), "wire type 0, not 2", id="metadata as a number"),
        pytest.param(MODEL + field(1, b"ten"), "wire type 2, not 0", id="IR version as text"),
        pytest.param(MODEL + field(14, b"\x0a\x7f"), "after the end", id="entry cut off"),
        pytest.param(
            MODEL + metadata("k", "1") + metadata("k", "2"), "'k' appears twice", id="twice"
        ),
        pytest.param(MODEL + field(8, field(2, 21)), "'' is imported twice", id="opset twice"),
        pytest.param(MODEL + field(14, field(1, b"\xff")), "metadata is not UTF-8", id="not UTF-8"),
        pytest.param(b"PK\x03\x04rest", "a zip file", id="zip"),
        pytest.param(b"\x80\x02}q", "a pickle", id="pickle"),
        pytest.param(b"version https://git-lfs.github.com", "git lfs pull", id="LFS pointer"),
        pytest.param(b"<!DOCTYPE html>", "an error page", id="HTML"),
        pytest.param(b"\x1c\0\0\0ORTM....", "an ORT format model", id="ORT format"),
        pytest.param(b"\x1c\0\0\0TFL3....", "a TensorFlow Lite model", id="TFLite"),
    ],
)
def test_what_is_not_a_model_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        header(content)


def test_more_metadata_than_allowed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_METADATA_BYTES", 100)
    assert len(header(MODEL + metadata("k", "v" * 80)).metadata["k"]) == 80
    with pytest.raises(ArtifactError, match="larger than 100 bytes"):
        header(MODEL + metadata("k", "v" * 60) + metadata("l", "v" * 60))


def test_more_fields_than_allowed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FIELDS", 10)
    with pytest.raises(ArtifactError, match="more than 10 top-level fields"):
        header(MODEL + field(91, 7) * 10)


def test_damage_anywhere_gives_a_header_or_a_clear_error() -> None:
    """Flipped, cut, doubled and dropped bytes: nothing but ArtifactError comes out."""
    original = fixture("one_head").read_bytes()
    generator = random.Random(5)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(3000):
        content = bytearray(original)
        for _ in range(generator.randint(1, 4)):
            start = generator.randrange(len(content))
            end = min(len(content), start + generator.choice((1, 1, 4, 200)))
            change = generator.randrange(4)
            if change == 0:
                content[start] = generator.randrange(256)
            elif change == 1:
                del content[start:end]
            elif change == 2:
                content[start:start] = content[start:end]
            else:
                del content[start + 1 :]
        try:
            header(bytes(content))
            outcomes["read"] += 1
        except ArtifactError:
            outcomes["refused"] += 1
    print(outcomes)
    assert outcomes["refused"] > 1000
    assert outcomes["read"] > 100
