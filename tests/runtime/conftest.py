from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Run a script in a fresh interpreter with an empty home; give what it printed."""

    def run(script: str, *arguments: str, **environment: str) -> str:
        kept = {
            key: os.environ[key]
            for key in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT")
            if key in os.environ
        }
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env={**kept, "HOME": str(home), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
