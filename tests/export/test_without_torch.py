"""The analysis and `attest` run where PyTorch is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FIXTURES = Path(__file__).resolve().parent.parent / "runtime" / "fixtures"

SCRIPT = """
import sys

class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch is barred")

sys.meta_path.insert(0, Barred())
from causal_onnx.export import attest
import causal_onnx.export.attention.canonical, causal_onnx.export.lower
import causal_onnx.export.cache.derive
print(attest(sys.argv[1]).verdict)
assert "torch" not in sys.modules
"""


def test_attest_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(FIXTURES / "one_head.onnx")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "causal"
