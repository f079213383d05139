"""What MkDocs calls while it builds the site: pages made from other files, and links to the rest.

The pages under docs/ are read in the repository too, so their links are those of the repository; a
link that leaves docs/ goes to the page made from that file, or else to the file in the repository.
"""

from __future__ import annotations

import argparse
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File
from tools.zoo.data import unpack

from causal_onnx.cli.parser import build_parser

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent.parent

COPIED = {
    "benchmarks.md": "bench/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
}
"""Page -> the file in the repository that it is."""

LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from other files, and the pictures that they show."""
    for page, source in COPIED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
        for image in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text):
            path = ROOT / posixpath.join(posixpath.dirname(source), image)
            files.append(File.generated(config, posixpath.basename(image), abs_src_path=str(path)))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to where they lead on the site; the zoo's page gets its tables."""
    place = page.file.src_uri
    if place == "zoo.md":
        markdown = f"{markdown}\n{unpack((ROOT / 'docs' / 'zoo.json.gz').read_bytes())}"
    origin = COPIED.get(place, f"docs/{place}")
    return LINK.sub(lambda found: _link(found, origin, place, files, config), markdown)


def _link(found: re.Match[str], origin: str, place: str, files: Files, config: MkDocsConfig) -> str:
    label, target, anchor = found[1], found[2], found[3] or ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    pages = {source: page for page, source in COPIED.items()}
    if path.startswith("docs/"):
        page = path.removeprefix("docs/")
    elif label.startswith("!"):
        page = posixpath.basename(path)
    else:
        page = pages.get(path, "")
    if page and (files.get_file_from_path(page) is not None or path.startswith("docs/")):
        # A page that is not there is left to MkDocs, which names it.
        return f"{label}({posixpath.relpath(page, posixpath.dirname(place) or '.')}{anchor})"
    if not (ROOT / path).exists():
        return found[0]
    return f"{label}({config.repo_url}/blob/main/{path}{anchor})"


def command_line() -> str:
    """The reference of the command line: each command's help, as the parser prints it."""
    parser = build_parser()
    (group,) = (one for one in parser._actions if isinstance(one, argparse._SubParsersAction))
    parts = [
        "# The command line",
        "Every command takes `--help`. Those with `--json` print one JSON document, also for an "
        "error. [Errors and exit codes](errors.md) has both in one table.",
    ]
    for name, command in group.choices.items():
        command.formatter_class = _Plain
        parts.append(f"## {name}\n\n```text\n{command.format_help().strip()}\n```")
    return "\n\n".join(parts) + "\n"


class _Plain(argparse.RawDescriptionHelpFormatter):
    """Of one width and without colours, whatever terminal the site is built in."""

    def __init__(self, prog: str, **_: object) -> None:
        super().__init__(prog, width=96)
