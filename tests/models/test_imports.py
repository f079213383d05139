from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import causal_onnx.models

FILES = sorted(Path(causal_onnx.models.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_models_need_torch_and_safetensors_only(path: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    foreign = {
        name
        for name in imported
        if not name.startswith("causal_onnx.models")
        and name.partition(".")[0] not in sys.stdlib_module_names | {"torch"}
        and not (path.name == "checkpoint.py" and name.partition(".")[0] == "safetensors")
    }
    assert foreign == set()
