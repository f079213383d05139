"""Imports point one way: cli -> export -> models, runtime; and the runtime stays thin."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOTS = ("models", "export", "runtime", "cli")

HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "rich", "transformers"}


def imports_of(source: str, *, lazy: bool = True) -> Iterator[str]:
    """Full names that `source` imports; without `lazy` only what runs when it is imported.

    Imports below `if TYPE_CHECKING:` never run, and are left out.
    """
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield "." * node.level + (node.module or "")
            else:
                # `from causal_onnx import export` imports a package too.
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
            continue
        elif not lazy and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        pending += ast.iter_child_nodes(node)


def is_below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def refuse_in_models(source: str) -> list[str]:
    others = ("causal_onnx.export", "causal_onnx.runtime", "causal_onnx.cli")
    return [name for name in imports_of(source) if is_below(name, *others)]


def refuse_in_runtime(source: str) -> list[str]:
    allowed = {*sys.stdlib_module_names, "numpy", "onnxruntime"}
    return [
        name
        for name in imports_of(source)
        if name.partition(".")[0] not in allowed and not is_below(name, "causal_onnx.runtime")
    ]


def refuse_in_export(source: str) -> list[str]:
    return [name for name in imports_of(source) if is_below(name, "causal_onnx.cli")]


def refuse_in_analysis(source: str) -> list[str]:
    own = ("causal_onnx.export.analysis", "causal_onnx.runtime")
    return [
        name
        for name in imports_of(source)
        if is_below(name, "torch") or (is_below(name, "causal_onnx") and not is_below(name, *own))
    ]


def refuse_in_cli(source: str) -> list[str]:
    heavy = ("causal_onnx.export", "causal_onnx.models", *HEAVY)
    return [name for name in imports_of(source, lazy=False) if is_below(name, *heavy)]


RULES: dict[str, Callable[[str], list[str]]] = {
    "models/causal_onnx/models": refuse_in_models,
    "runtime/causal_onnx/runtime": refuse_in_runtime,
    "export/causal_onnx/export": refuse_in_export,
    "export/causal_onnx/export/analysis": refuse_in_analysis,
    "cli/causal_onnx/cli": refuse_in_cli,
}


@pytest.mark.parametrize("folder", RULES)
def test_imports_point_one_way(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    refused = {
        str(path.relative_to(ROOT)): found
        for path in files
        if (found := RULES[folder](path.read_text(encoding="utf-8")))
    }
    assert refused == {}


@pytest.mark.parametrize(
    ("rule", "source", "found"),
    [
        (refuse_in_models, "from causal_onnx.runtime import load", ["causal_onnx.runtime.load"]),
        (refuse_in_models, "from causal_onnx import export", ["causal_onnx.export"]),
        (refuse_in_runtime, "def f():\n    import torch", ["torch"]),
        (refuse_in_runtime, "try:\n    from onnx import load\nexcept E: pass", ["onnx.load"]),
        (refuse_in_runtime, "import causal_onnx.models", ["causal_onnx.models"]),
        (refuse_in_runtime, "from ..models import x", ["..models"]),
        (refuse_in_export, "import causal_onnx.cli.main", ["causal_onnx.cli.main"]),
        (refuse_in_analysis, "def f():\n    import torch.nn", ["torch.nn"]),
        (refuse_in_analysis, "import causal_onnx.export.capture", ["causal_onnx.export.capture"]),
        (refuse_in_cli, "class A:\n    import torch", ["torch"]),
        (refuse_in_cli, "from causal_onnx.export import export", ["causal_onnx.export.export"]),
    ],
)
def test_each_rule_refuses_what_it_should(
    rule: Callable[[str], list[str]], source: str, found: list[str]
) -> None:
    assert rule(source) == found


@pytest.mark.parametrize(
    ("rule", "source"),
    [
        (refuse_in_models, "import torch, causal_onnx.models.mask"),
        (refuse_in_runtime, "import json, numpy.typing\nfrom onnxruntime import OrtValue"),
        (refuse_in_export, "from causal_onnx.runtime import load\nimport torch"),
        (refuse_in_analysis, "import onnx_ir, causal_onnx.export.analysis.graph"),
        (refuse_in_cli, "def f():\n    import torch"),
        (refuse_in_cli, "if TYPE_CHECKING:\n    import torch"),
    ],
)
def test_each_rule_allows_what_it_should(rule: Callable[[str], list[str]], source: str) -> None:
    assert rule(source) == []


def test_causal_onnx_is_a_namespace_package() -> None:
    for root in ROOTS:
        assert [item.name for item in (ROOT / root).iterdir() if item.name[0] not in "._"] == [
            "causal_onnx"
        ]
        assert not (ROOT / root / "causal_onnx" / "__init__.py").exists()


def test_every_package_is_typed() -> None:
    for root in ROOTS:
        assert (ROOT / root / "causal_onnx" / root / "py.typed").exists()
