from __future__ import annotations

from pathlib import Path

import pytest

from causal_onnx.runtime.json_text import MAX_DEPTH, depth_of, read_json, read_json_file


def test_json_is_read_as_it_is() -> None:
    text = '{"a": [1, -2, 0.5, 18446744073709551615, true, null, "x,[{"]}'
    assert read_json(text) == read_json(text.encode()) == {
        "a": [1, -2, 0.5, (1 << 64) - 1, True, None, "x,[{"]
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested more than 64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 deep"),
        ("[" + "1," * (1 << 20) + "1]", "holds more than 1048576 values"),
        ('{"eos_token_id": 1e400}', "the number 1e400 is not finite"),
        (f"[{2**64}]", "the number 18446744073709551616 takes more than 64 bits"),
        (f"[{'9' * 5000}]", "takes more than 64 bits"),
        ("[NaN]", "NaN is no number of JSON's"),
        ("[-Infinity]", "-Infinity is no number"),
        ("{", "Expecting property name"),
        (b"\xff", "can't decode"),
    ],
    ids=range(10),
)
def test_what_no_file_of_ours_holds_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_json(text)


def test_as_deep_as_allowed_is_read() -> None:
    assert depth_of(read_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)) == MAX_DEPTH


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    assert read_json_file(path) == [1, 2]
    with pytest.raises(ValueError, match="longer than 5 bytes"):
        read_json_file(path, max_bytes=5)


def test_a_configuration_may_state_hugging_faces_number_for_no_limit(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer_config.json"
    path.write_text(f'{{"model_max_length": {int(1e30)}, "vocab_size": 7}}')
    assert read_json_file(path) == {"model_max_length": 1e30, "vocab_size": 7}
    path.write_text(f"[{'9' * 5000}]")
    with pytest.raises(ValueError, match="is not finite"):
        read_json_file(path)


def test_a_list_that_holds_itself_has_a_depth() -> None:
    endless: list[object] = []
    endless.append(endless)
    assert depth_of(endless) > MAX_DEPTH


def test_limits_hold_for_the_metadata_of_a_model() -> None:
    from causal_onnx.runtime import ArtifactError
    from causal_onnx.runtime.contract import read_document

    with pytest.raises(ArtifactError, match="contract in the metadata is not JSON: it is nested"):
        read_document('{"format": 1, "a": ' + "[" * 100 + "]" * 100 + "}", what="contract")
