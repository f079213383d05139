"""Imports point one way: cli -> export -> models, runtime; serve -> runtime, which stays thin."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from causal_onnx import export

ROOT = Path(__file__).resolve().parent.parent
ROOTS = ("models", "export", "runtime", "serve", "cli")

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
    others = tuple(f"causal_onnx.{root}" for root in ROOTS if root != "models")
    return [name for name in imports_of(source) if is_below(name, *others)]


def refuse_in_runtime(source: str) -> list[str]:
    allowed = {*sys.stdlib_module_names, "numpy", "onnxruntime"}
    return [
        name
        for name in imports_of(source)
        if name.partition(".")[0] not in allowed and not is_below(name, "causal_onnx.runtime")
    ]


def refuse_in_export(source: str) -> list[str]:
    above = ("causal_onnx.cli", "causal_onnx.serve")
    return [name for name in imports_of(source) if is_below(name, *above)]


def refuse_in_serve(source: str) -> list[str]:
    """What needs PyTorch, or stands above; its own libraries are those of its extras."""
    allowed = {*sys.stdlib_module_names, "numpy", "starlette", "uvicorn", "ray"}
    own = ("causal_onnx.runtime", "causal_onnx.serve")
    return [
        name
        for name in imports_of(source)
        if name.partition(".")[0] not in allowed and not is_below(name, *own)
    ]


def refuse_in_cli(source: str) -> list[str]:
    heavy = ("causal_onnx.export", "causal_onnx.models", "causal_onnx.serve", *HEAVY)
    return [name for name in imports_of(source, lazy=False) if is_below(name, *heavy)]


RULES: dict[str, Callable[[str], list[str]]] = {
    "models/causal_onnx/models": refuse_in_models,
    "runtime/causal_onnx/runtime": refuse_in_runtime,
    "export/causal_onnx/export": refuse_in_export,
    "serve/causal_onnx/serve": refuse_in_serve,
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
        (refuse_in_export, "from causal_onnx.serve import Engine", ["causal_onnx.serve.Engine"]),
        (refuse_in_serve, "def f():\n    import torch", ["torch"]),
        (refuse_in_serve, "import causal_onnx.cli.main", ["causal_onnx.cli.main"]),
        (refuse_in_cli, "from causal_onnx.serve import Engine", ["causal_onnx.serve.Engine"]),
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
        (refuse_in_serve, "import numpy\nfrom starlette.routing import Route"),
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


ORDER = {
    "runtime": """
        errors later json_text contract artifact request scan session stream text generation profile
        model bundle triton __init__ doctor trial_child
    """,
    "export": """
        analysis proof report errors outcome graph attention attestation adoption passes cache lower
        torch_patches source capture precision write arguments subject captures forms check
        folder best_form pipeline checkpoint __init__
    """,
    "serve": """
        errors keys options engine tracing registry service web operate requests openai
        inference_protocol openapi page app ray server __init__
    """,
}
"""The folders and files of each root. An import points to the same entry or to one before it."""

WITHOUT_TORCH = (
    *(
        "analysis",
        "proof",
        "graph",
        "attention",
        "attestation",
        "adoption",
        "passes",
        "cache",
        "lower",
    ),
)
"""Steps of the export that run where PyTorch is not installed."""


def entries(root: str) -> dict[str, list[Path]]:
    """The files of each entry of a root's first level."""
    base = ROOT / root / "causal_onnx" / root
    found: dict[str, list[Path]] = {}
    for path in sorted(base.rglob("*.py")):
        found.setdefault(path.relative_to(base).parts[0].removesuffix(".py"), []).append(path)
    return found


def own_imports(source: str, root: str) -> Iterator[str]:
    """The first-level entries of `root` that a file imports, for type checking included."""
    package = f"causal_onnx.{root}"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            known = entries(root)
            yield from (a.name if a.name in known else "__init__" for a in node.names)
        elif isinstance(node, ast.ImportFrom) and is_below(node.module or "", package):
            yield str(node.module).split(".")[2]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[2] for a in node.names if is_below(a.name, package))


def against_the_order(order: list[str], entry: str, source: str, root: str) -> list[str]:
    """What a file of `entry` imports from further right than itself."""
    return [name for name in own_imports(source, root) if order.index(name) > order.index(entry)]


@pytest.mark.parametrize("root", ORDER)
def test_the_written_order_names_every_folder(root: str) -> None:
    assert sorted(ORDER[root].split()) == sorted(entries(root))


@pytest.mark.parametrize("root", ORDER)
def test_imports_point_down_the_written_order(root: str) -> None:
    order = ORDER[root].split()
    refused = {
        str(path.relative_to(ROOT)): found
        for entry, paths in entries(root).items()
        for path in paths
        if (found := against_the_order(order, entry, path.read_text(encoding="utf-8"), root))
    }
    assert refused == {}


def test_an_import_against_the_order_is_found_even_for_type_checking() -> None:
    source = "if TYPE_CHECKING:\n    from causal_onnx.runtime.model import Model"
    assert against_the_order(ORDER["runtime"].split(), "stream", source, "runtime") == ["model"]


def test_only_what_runs_on_ray_imports_it() -> None:
    importing = {
        path.parent.name
        for path in (ROOT / "serve").rglob("*.py")
        if any(is_below(name, "ray") for name in imports_of(path.read_text(encoding="utf-8")))
    }
    assert importing == {"ray"}


def test_no_file_has_the_name_of_a_public_function() -> None:
    # Names are loaded when they are first used, so importing the file would hide the function.
    assert set(export.__all__) & set(entries("export")) == set()


def private_names_taken(source: str) -> list[str]:
    """Names with a leading underscore that a file takes from another module of ours."""
    tree = ast.parse(source)
    modules, taken = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_below(node.module or "", "causal_onnx"):
            taken += [a.name for a in node.names if a.name[0] == "_" and a.name[:2] != "__"]
            modules |= {a.asname or a.name for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            is_private = node.attr[0] == "_" and node.attr[:2] != "__"
            if is_private and node.value.id in modules and node.value.id.islower():
                taken.append(f"{node.value.id}.{node.attr}")
    return taken


@pytest.mark.parametrize("root", ROOTS)
def test_nobody_takes_the_private_names_of_another_module(root: str) -> None:
    refused = {
        str(path.relative_to(ROOT)): found
        for path in sorted((ROOT / root).rglob("*.py"))
        if (found := private_names_taken(path.read_text(encoding="utf-8")))
    }
    assert refused == {}


@pytest.mark.parametrize(
    "source",
    ["from causal_onnx.export.cache import _lengths", "from causal_onnx.export import a\na._b()"],
)
def test_a_private_name_taken_from_another_module_is_found(source: str) -> None:
    assert private_names_taken(source)


@pytest.mark.parametrize("entry", WITHOUT_TORCH)
def test_steps_that_need_no_torch_import_none(entry: str) -> None:
    files = entries("export")[entry]
    sources = [path.read_text(encoding="utf-8") for path in files]
    needing = ("torch", "causal_onnx.models")
    assert [name for x in sources for name in imports_of(x) if is_below(name, *needing)] == []


def test_the_page_on_the_architecture_has_the_same_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    words = page.partition("## The order of the folders")[2].split()
    for order in ORDER.values():
        names = order.split()
        start = words.index(names[0], words.index(names[1]) - 1)
        assert words[start : start + len(names)] == names
