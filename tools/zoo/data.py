"""docs/zoo.json.gz: the tables and lists behind the page's figures, as data.

The site makes sections of them again while it is built, without the zoo, which needs PyTorch. As
text they are as long as a book and change with every run, so the repository keeps them compressed.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["pack", "split", "unpack"]


def split(page: str) -> tuple[str, str]:
    """The page's figures, which stay a page in the repository, and the sections behind them."""
    head, mark, rest = page.partition("\n## ")
    return f"{head.rstrip()}\n", f"{mark.lstrip()}{rest}"


def pack(sections: str) -> bytes:
    """The sections as a list of tables and runs of lines; equal sections give equal bytes."""
    text = json.dumps(list(_blocks(sections)), ensure_ascii=False)
    return gzip.compress(text.encode(), mtime=0)


def unpack(content: bytes) -> str:
    """The sections that were packed."""
    lines: list[str] = []
    for block in json.loads(gzip.decompress(content)):
        if "lines" in block:
            lines += block["lines"]
            continue
        lines += [_row(block["header"]), f"|{'---|' * len(block['header'])}"]
        lines += map(_row, block["rows"])
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _blocks(sections: str) -> Iterator[dict[str, Any]]:
    """Runs of lines that are a table, and of those that are none."""
    run: list[str] = []
    for line in [*sections.rstrip("\n").split("\n"), None]:
        if run and (line is None or line.startswith("|") != run[0].startswith("|")):
            yield _table(run) if run[0].startswith("|") else {"lines": run}
            run = []
        if line is not None:
            run.append(line)


def _table(lines: Sequence[str]) -> dict[str, Any]:
    header, _, *rows = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in lines]
    return {"header": header, "rows": rows}
