from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import causal_onnx.runtime
from tests.runtime.artifacts import fixture

FILES = sorted(Path(causal_onnx.runtime.__file__).parent.rglob("*.py"))

LOADED = """
import sys
before = set(sys.modules)
{work}
import sysconfig
roots = {{sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}}
third_party = set()
for name in set(sys.modules) - before:
    file = getattr(sys.modules[name], "__file__", None) or ""
    if any(file.startswith(root) for root in roots):
        third_party.add(name.partition(".")[0])
print(sorted(third_party))
"""


def test_importing_the_runtime_imports_numpy_and_nothing_else(
    run_python: Callable[..., str],
) -> None:
    loaded = run_python(LOADED.format(work="import causal_onnx.runtime"))
    assert set(ast.literal_eval(loaded)) - {"causal_onnx"} == {"numpy"}


def test_loading_and_running_a_model_imports_numpy_and_onnxruntime_only(
    run_python: Callable[..., str],
) -> None:
    work = (
        "from causal_onnx.runtime import load\n"
        f"assert load({str(fixture('one_head'))!r}).selftest().passed"
    )
    loaded = run_python(LOADED.format(work=work))
    assert set(ast.literal_eval(loaded)) - {"causal_onnx"} == {"numpy", "onnxruntime"}


def test_what_few_need_is_imported_when_it_is_used(run_python: Callable[..., str]) -> None:
    script = (
        "import sys, causal_onnx.runtime as r\n"
        f"r.load({str(fixture('one_head'))!r}).selftest()\n"
        "later = ['hashlib', 'subprocess'] + ['causal_onnx.runtime.' + name for name in\n"
        "    ('bundle', 'generation', 'profile', 'session.trial', 'stream', 'text')]\n"
        "print([name for name in later if name in sys.modules])\n"
        "assert all(hasattr(r, name) for name in r.__all__)\n"
        "print([name for name in later if name in sys.modules])\n"
        "try: r.absent\n"
        "except AttributeError as error: print(error)"
    )
    before, after, absent = run_python(script).splitlines()
    assert before == "[]"
    assert len(ast.literal_eval(after)) == 8
    assert absent == "module 'causal_onnx.runtime' has no attribute 'absent'"


def test_a_diagnosis_imports_neither_torch_nor_onnx(run_python: Callable[..., str]) -> None:
    work = "from causal_onnx.runtime.doctor import diagnose\ndiagnose()"
    loaded = run_python(LOADED.format(work=work))
    assert set(ast.literal_eval(loaded)) - {"causal_onnx"} == {"numpy", "onnxruntime"}


def test_what_importing_costs_is_printed(run_python: Callable[..., str]) -> None:
    """No limit is asserted: time is not a property of the code alone. See with `pytest -s`."""
    script = (
        "import time; a = time.perf_counter(); import numpy, onnxruntime; b = time.perf_counter()\n"
        "import causal_onnx.runtime; c = time.perf_counter()\n"
        "print(f'numpy and onnxruntime {(b - a) * 1e3:.0f} ms, this {(c - b) * 1e3:.1f} ms')"
    )
    line = run_python(script, ORT_DISABLE_TELEMETRY="1")
    print(line)
    assert "this" in line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_imports_more_than_the_runtime_may(path: Path) -> None:
    """Imports within functions too, which the tests above may not reach."""
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            imported.add(node.module or "")
    foreign = {
        name
        for name in imported
        if name.partition(".")[0] not in sys.stdlib_module_names | {"numpy"}
        and not name.startswith("causal_onnx.runtime")
    }
    assert foreign == set()
