"""The page about checkpoints, and how its rows come about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tools.checkpoints import NAMES, PAGE, Row, judge, look_at, main, save_checkpoint, table

from tests.zoo.huggingface import ARCHITECTURES
from tools import checkpoints

GOOD = Row(
    name="x",
    context="40 of 40",
    ends="2, 5",
    template=True,
    settings=True,
    tokenizer=True,
    cache="all positions",
    verified=True,
    equal=True,
)


def test_what_was_lost_is_seen(tmp_path: Path) -> None:
    llama = next(item for item in ARCHITECTURES if item.name == "llama")
    assert look_at(llama, tmp_path) == replace(GOOD, name="llama")
    folder = tmp_path / "model"
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json"):
        (folder / name).write_text((folder / name).read_text().replace("</s>", "<s>"))
    (folder / "generation_config.json").write_text("{}")
    model = save_checkpoint(replace(llama, config={**llama.config, "rms_norm_eps": 9.0}), tmp_path)
    assert judge("llama", model, folder, None) == replace(
        GOOD,
        name="llama",
        context="no limit; none is stated",
        template=False,
        settings=False,
        verified=False,
        equal=False,
    )


def test_a_class_that_cannot_be_exported_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for row, code in ((GOOD, 0), (replace(GOOD, equal=False), 1)):
        monkeypatch.setattr(checkpoints, "look_at", lambda *_, row=row: row)
        assert main(["llama"]) == code
    assert "| NO" in capsys.readouterr().out


def test_the_page_has_a_row_of_every_class_and_nothing_is_lost() -> None:
    page = PAGE.read_text()
    head = table([]).splitlines()[0]
    rows = page.partition(head)[2].partition("<!-- end")[0].splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(NAMES)
    assert all("| NO" not in row and "|  |" not in row for row in rows)
