"""docs/reference: the schema is that of the contract, and the tables of errors have every error."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from causal_onnx.cli import main as cli
from causal_onnx.runtime import CausalOnnxError, read_artifact, write_bundle
from causal_onnx.runtime import contract as contracts

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
FIXTURES = ROOT / "tests" / "runtime" / "fixtures"
SCHEMA: dict[str, Any] = json.loads((REFERENCE / "contract.schema.json").read_text("utf-8"))
ERRORS = (REFERENCE / "errors.md").read_text(encoding="utf-8")


def problems(document: object, schema: dict[str, Any] = SCHEMA) -> list[str]:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for error in validator.iter_errors(document)]


def manifest(tmp_path: Path) -> dict[str, Any]:
    write_bundle(FIXTURES / "one_head.onnx", tmp_path / "model")
    text = (tmp_path / "model" / "contract.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def test_the_schema_takes_what_a_bundle_holds(tmp_path: Path) -> None:
    assert problems(manifest(tmp_path)) == []


@pytest.mark.parametrize("name", ["cached", "grouped_query", "language", "bfloat16", "seq_first"])
def test_the_schema_takes_the_contract_of_every_kind_of_file(name: str) -> None:
    contract = read_artifact(FIXTURES / f"{name}.onnx").contract
    assert contract is not None
    schema = {"$ref": "#/$defs/contract", "$defs": SCHEMA["$defs"]}
    assert problems(json.loads(contract.to_json()), schema) == []


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda d: d.pop("files"), "'files' is a required property"),
        (lambda d: d.update(format=2), "1 was expected"),
        (lambda d: d["contract"].update(extra=1), "'extra' was unexpected"),
        (lambda d: d["contract"]["inputs"][0].update(dtype="float8"), "'float8' is not one of"),
        (lambda d: d["contract"]["inputs"][0].update(axes=[0]), "0 is not valid under any"),
        (lambda d: d["files"]["model.onnx"].update(sha256="0" * 63), "does not match"),
        (lambda d: d["files"].update({"../x": {}}), "does not match"),
    ],
    ids=["files", "format", "key", "dtype", "axis", "hash", "name"],
)
def test_the_schema_refuses(
    spoil: Callable[[dict[str, Any]], object], complaint: str, tmp_path: Path
) -> None:
    document = manifest(tmp_path)
    spoil(document)
    assert complaint in " ".join(problems(document))


@pytest.mark.parametrize(
    ("part", "properties"),
    [
        (contracts.Contract, SCHEMA["$defs"]["contract"]["properties"]),
        (contracts.TensorSpec, SCHEMA["$defs"]["tensor"]["properties"]),
        (contracts.CachePair, SCHEMA["$defs"]["cache_pair"]["properties"]),
    ],
)
def test_the_schema_has_every_key_of_the_contract(part: type, properties: dict[str, Any]) -> None:
    names = {field.name for field in dataclasses.fields(part)}
    assert set(properties) - {"format"} == names


def test_the_schema_has_every_choice_of_the_contract() -> None:
    tensor = SCHEMA["$defs"]["tensor"]["properties"]
    contract = SCHEMA["$defs"]["contract"]["properties"]
    rules = contract["computed"]["items"]["properties"]["rule"]["enum"]
    assert tensor["dtype"]["enum"] == list(contracts.DTYPES)
    assert tensor["kind"]["enum"] == [*contracts.INPUT_KINDS, None]
    assert contract["ragged"]["enum"] == list(contracts.RAGGED)
    assert rules == list(contracts.COMPUTED_RULES)
    assert contract["format"]["const"] == contracts.FORMAT


@pytest.mark.parametrize("module", ["runtime.errors", "export.errors", "serve.errors"])
def test_the_page_has_every_error(module: str) -> None:
    errors = inspect.getmembers(importlib.import_module(f"causal_onnx.{module}"), inspect.isclass)
    names = [name for name, one in errors if issubclass(one, CausalOnnxError)]
    assert names
    assert [name for name in names if f"| `{name}` |" not in ERRORS] == []


def test_the_page_has_the_status_of_every_error_of_the_server() -> None:
    module = importlib.import_module("causal_onnx.serve.errors")
    written = dict(re.findall(r"^\| (\d+) \| `(\w+)`", ERRORS, re.MULTILINE))
    assert {name: str(getattr(module, name).status) for name in written.values()} == {
        name: status for status, name in written.items()
    }


def test_the_page_has_every_exit_code() -> None:
    codes = {int(code) for code in re.findall(r"\| (\d+) \|$", ERRORS, re.MULTILINE)}
    assert codes == {cli.DONE, cli.FAILED, cli.WRONG_USAGE, 3, cli.INTERRUPTED, cli.TERMINATED}
