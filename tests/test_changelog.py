from __future__ import annotations

import re
from pathlib import Path

from causal_onnx.runtime import __version__
from causal_onnx.runtime.contract import FORMAT

CHANGELOG = (Path(__file__).resolve().parent.parent / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_newest_entry_is_this_version() -> None:
    versions = re.findall(r"^## \[(.+?)\]", CHANGELOG, re.MULTILINE)
    assert versions[0] == __version__


def test_the_artifact_format_has_an_entry() -> None:
    assert f"- Format {FORMAT}:" in CHANGELOG
