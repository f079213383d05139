"""`causal-onnx serve` where its extra is not installed; the rest is in tests/serve."""

from __future__ import annotations

import sys

import pytest

from causal_onnx.cli.main import main


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_serving_says_what_to_install(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = {"starlette", "uvicorn"} - {package}
    for name in other:
        monkeypatch.setitem(sys.modules, name, sys)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", "model/"]) == 1
    said = capsys.readouterr().err
    assert f"serving needs the package {package}: pip install 'causal-onnx[serve]'" in said
