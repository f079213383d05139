"""Folders of models that are served in tests."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["with_template", "write_talker"]

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if tools %}{{ 'tools: ' + tools | map(attribute='function.name') | join(' ') + '\n' }}"
    "{% endif %}{% if add_generation_prompt %}assistant: {% endif %}"
)


def with_template(model: Path, folder: Path) -> Path:
    """A copy with a chat template, and no manifest that this would contradict."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("contract.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


def write_talker(folder: Path) -> Path:
    """A model of random weights that can write every byte, and so JSON too."""
    from tests.runtime.artifacts import fixture
    from tests.runtime.language import write_tokenizer

    folder.mkdir()
    shutil.copy(fixture("language"), folder / "model.onnx")
    write_tokenizer(folder, end=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder
