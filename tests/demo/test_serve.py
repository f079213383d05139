from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from examples.demo.serve import try_imports

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_barred_package_and_what_is_below_it_cannot_be_imported() -> None:
    finished = run_python(
        "from examples.demo.serve import bar, try_imports\n"
        "bar(['xml', 'wsgiref.util'])\n"
        "print(try_imports(['xml', 'xml.dom', 'wsgiref.util']))\n"
        "import xmlrpc, wsgiref\n"
    )
    assert finished.returncode == 0, finished.stderr
    assert "ImportError: xml is barred" in finished.stdout


def test_barring_comes_too_late_for_what_is_imported() -> None:
    finished = run_python("import xml\nfrom examples.demo.serve import bar\nbar(['xml'])")
    assert "imported before it could be barred: xml" in finished.stderr


def test_a_package_that_can_be_imported_after_all_is_reported() -> None:
    with pytest.raises(RuntimeError, match="json was to be barred from this process"):
        try_imports(["json"])
