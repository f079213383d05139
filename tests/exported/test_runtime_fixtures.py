"""The runtime's fixtures are made with onnx, which its own tests do without; so this is here."""

from __future__ import annotations

import pytest
from onnx import checker, load_from_string

from tests.runtime.make_fixtures import FOLDER, fixtures

FILES = dict(fixtures())


@pytest.mark.parametrize("name", FILES)
def test_a_fixture_is_what_its_script_writes(name: str) -> None:
    assert (FOLDER / name).read_bytes() == FILES[name], "run: python -m tests.runtime.make_fixtures"


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".onnx")])
def test_a_fixture_is_valid_onnx(name: str) -> None:
    if name == "external.onnx":  # by path, so that its data is found
        checker.check_model(str(FOLDER / name))
    else:
        checker.check_model(load_from_string(FILES[name]))


def test_no_other_fixture_lies_there() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(FILES)
