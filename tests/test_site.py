"""The documentation's site: it builds without a warning, and its tutorials do what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_readme import commands_of, complaint

pytest.importorskip("torch", reason="the tutorials export")

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def run(*command: str, folder: Path = ROOT) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PATH": path}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder))
    return folder


def test_every_page_is_built(site: Path) -> None:
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in PAGES}
    assert pages | {"reference/cli.html", "benchmarks.html", "changelog.html"} <= built


def test_the_page_of_the_zoo_has_every_module_and_refusal(site: Path) -> None:
    page = (site / "zoo.html").read_text(encoding="utf-8")
    assert page.count("<code>mask_") > 10
    assert 'id="every-refusal-with-its-reason"' in page


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://[^"]+"', page) == []
    assert 'data-md-component="source"' not in page  # the theme's script asks the forge about it


def test_links_that_leave_the_site_go_to_the_repository(site: Path) -> None:
    page = (site / "benchmarks.html").read_text(encoding="utf-8")
    assert 'href="certificate.html' in page or 'href="generation.html' in page
    assert 'src="results.svg"' in page
    assert (site / "results.svg").exists()


def test_the_reference_has_every_command_and_public_name(site: Path) -> None:
    from causal_onnx import export, models, runtime, serve
    from causal_onnx.cli.parser import COMMANDS

    cli = (site / "reference/cli.html").read_text(encoding="utf-8")
    names = [one.__name__.rpartition(".")[2].replace("_", "-") for one in COMMANDS]
    assert [name for name in names if f'id="{name}"' not in cli] == []
    for package in (export, models, runtime, serve):
        page = site / f"reference/{package.__name__.rpartition('.')[2]}.html"
        text = page.read_text(encoding="utf-8")
        public = set(package.__all__) - {"__version__"}
        # A function in a module of its own name has the name twice.
        ids = {n: (f'id="{package.__name__}.{n}"', f'.{n}.{n}"') for n in public}
        assert [n for n, known in ids.items() if not any(one in text for one in known)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_the_docs_are_understood(page: Path) -> None:
    commands = commands_of(page.read_text(encoding="utf-8"))
    assert [complaint(command) for command in commands if complaint(command)] == []


def files_of(text: str) -> dict[str, str]:
    """The files that a tutorial has its reader write, by name."""
    return dict(re.findall(r'```python title="([^"]+)"\n(.*?)```', text, re.DOTALL))


def follow(page: Path, folder: Path) -> str:
    """Write the tutorial's files, then run its commands and scripts in their order.

    What waits for a person or serves is left out; tests/serve/test_page.py follows that.
    """
    printed = ""
    text = page.read_text(encoding="utf-8")
    for name, content in files_of(text).items():
        (folder / name).write_text(content, encoding="utf-8")
    for title, shell in re.findall(r'```python title="([^"]+)"|```sh\n(.*?)```', text, re.DOTALL):
        for command in commands_of(f"```sh\n{shell}```") if shell else [f"python {title}"]:
            if not command.startswith(("causal-onnx chat", "causal-onnx serve", "curl ", "pip ")):
                printed += run(*shlex.split(command), folder=folder)
    return printed


def missing_from(printed: str, page: Path) -> list[str]:
    """The lines of output that a page shows and its commands did not print; figures may differ."""

    def shape(text: str) -> str:
        return " ".join(re.sub(r"\d[\d.]*(e-\d+)?", "0", text).split())

    blocks = re.findall(r"```text\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if shape(line) not in shape(printed)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [["start/module", "how-to/long-context"], ["start/gpt", "how-to/padding"]],
    ids=lambda names: "-".join(names).replace("/", "."),
)
def test_pages_do_what_they_say(names: list[str], tmp_path: Path) -> None:
    for name in names:
        page = ROOT / f"docs/{name}.md"
        assert missing_from(follow(page, tmp_path), page) == []


@pytest.mark.slow
def test_what_the_first_tutorial_breaks_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "docs/start/module.md").read_text(encoding="utf-8")
    source = files_of(text)["attention.py"]
    assert "diagonal=1" in source
    (tmp_path / "attention.py").write_text(source.replace("diagonal=1", "diagonal=2"))
    command = ["export", "attention.py:make_model", "-o", "a.onnx", "--example", "2,6,16"]
    done = subprocess.run(
        [sys.executable, "-m", "causal_onnx.cli", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "attention.py" in done.stderr
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.slow
def test_the_tutorial_of_a_checkpoint_does_what_it_says(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    checkpoint, page = ROOT / "tests/data/real/baby105", ROOT / "docs/start/checkpoint.md"
    (tmp_path / "checkpoint").symlink_to(checkpoint, target_is_directory=True)
    printed = follow(page, tmp_path)
    assert missing_from(printed, page) == []
    assert ", there was a little girl" in printed
