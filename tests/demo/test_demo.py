"""The whole demo, with little of everything."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from causal_onnx.cli.resident import peak_bytes
from causal_onnx.models import tiny_llama_config
from causal_onnx.runtime import load
from examples.demo.__main__ import main
from examples.demo.demo import STORY, STORY_TOKENS, Settings, run_demo
from examples.demo.findings import Findings
from examples.demo.player import Run
from examples.demo.report import render_report
from examples.demo.screen import Screen
from examples.demo.serve import BARRED

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "The <b>&"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Finished:
    findings: Findings
    printed: str
    report: str
    folder: Path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("demo")
    settings = Settings(
        folder=folder,
        context_length=16,
        prompt=PROMPT,
        train_steps=20,
        decoder=tiny_llama_config(),
        max_bytes=80,
        lengths=(4, 9, 40),
        threads=1,
    )
    file = io.StringIO()
    findings = run_demo(settings, Screen(file))
    return Finished(
        findings=findings,
        printed=file.getvalue(),
        report=(folder / "report.html").read_text(encoding="utf-8"),
        folder=folder,
    )


def test_every_export_is_proved_and_shown(demo: Finished) -> None:
    exported = [*demo.findings.modules, demo.findings.decoder]
    assert [item.name for item in exported] == [
        "CausalMechanismV1",
        "MultiHeadAttention",
        "DecoderLM",
    ]
    for item in exported:
        assert item.report.parity.passed
        assert item.report.causality.is_causal
        assert item.report.causality.summary() in demo.printed
        assert item.report.parity.to_table().splitlines()[1] in demo.printed
        assert load(item.report.path).selftest().passed


def test_a_checkpoint_became_a_folder_and_wrote_text_without_pytorch(demo: Finished) -> None:
    road = demo.findings.road
    assert road.verified.passed
    assert {"tokenizer.json", "generation_config.json", "LICENSE"} <= set(road.verified.files)
    found = load(demo.folder / "stories", threads=1).generate(STORY, max_new_tokens=STORY_TOKENS)
    assert road.text == found.text.rstrip("\n")
    assert f"{STORY}{road.text}".splitlines()[0] in demo.printed


def test_the_command_of_the_demo_cannot_import_pytorch(capfd: pytest.CaptureFixture[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "examples.demo.without_torch",
        "export",
        "json:loads",
        "-o",
        "m.onnx",
    ]
    finished = subprocess.run(command, cwd=ROOT, check=False)
    assert finished.returncode == 1
    assert "torch is barred from this process" in capfd.readouterr().err


def test_lengths_beyond_a_modules_limit_are_not_timed(demo: Finished) -> None:
    assert [t.seq for t in demo.findings.modules[0].timings] == [4, 9]
    assert [t.seq for t in demo.findings.decoder.timings] == [4, 9, 40]


def test_every_byte_may_be_fed_to_the_decoder(demo: Finished) -> None:
    assert demo.findings.decoder.report.contract.inputs[0].vocab_size == 256


def test_the_serving_process_could_not_import_pytorch(demo: Finished) -> None:
    served = demo.findings.without_torch
    assert set(served.refused) == set(BARRED)
    assert all(error.startswith("ImportError: ") for error in served.refused.values())
    assert {"numpy", "onnxruntime"} <= set(served.packages)
    assert not {"torch", "onnx", "onnx-ir", "onnxscript"} & set(served.packages)
    assert "torch" in demo.findings.with_torch.packages


def test_both_processes_wrote_the_same_text(demo: Finished) -> None:
    ours, theirs = demo.findings.without_torch, demo.findings.with_torch
    assert ours.text == theirs.text
    assert 80 <= ours.tokens < 84
    assert "the same, byte for byte" in demo.printed


def test_both_processes_were_measured(demo: Finished) -> None:
    for run in (demo.findings.without_torch, demo.findings.with_torch):
        assert run.startup_s > 0
        assert run.tokens_per_s > 0
    # PyTorch alone is larger than the whole process that does without it. This one has PyTorch
    # too, and must not be what is measured.
    ours, theirs = demo.findings.without_torch, demo.findings.with_torch
    assert 20e6 < ours.peak_memory_bytes < theirs.peak_memory_bytes
    assert ours.peak_memory_bytes < (peak_bytes() or 0)


def test_the_summary_has_five_lines_after_the_reports_path(demo: Finished) -> None:
    before, summary = demo.printed.split("== Summary\n")
    assert str(demo.folder / "report.html") in before
    assert len(summary.strip().splitlines()) == 5


class Elements(HTMLParser):
    """Counts elements, and checks that they are nested properly."""

    VOID = ("meta", "input", "br", "col")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def having(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.seen
            if name == tag and all(found.get(key) == value for key, value in attributes.items())
        ]


@pytest.fixture(scope="module")
def page(demo: Finished) -> Elements:
    parser = Elements()
    parser.feed(demo.report)
    parser.close()
    assert not parser.open
    return parser


def test_the_report_holds_a_map_for_every_layer_and_head(page: Elements) -> None:
    for layer in range(2):
        for head in range(4):
            assert len(page.having("g", id=f"cells-{layer}-{head}")) == 1
    assert len(page.having("button")) == 8


def test_the_report_says_that_maps_are_causal(demo: Finished) -> None:
    checks = demo.findings.maps.checks
    assert checks.passed
    assert checks.summary() in demo.report
    assert checks.summary() in demo.printed


def test_the_report_needs_no_network(demo: Finished, page: Elements) -> None:
    assert "://" not in demo.report
    assert not page.having("link") + page.having("img") + page.having("iframe")
    assert not [found for _, found in page.seen if "src" in found]
    hrefs = [found["href"] for _, found in page.seen if "href" in found]
    assert all(href is not None and href.startswith("#") for href in hrefs)
    policies = page.having("meta", **{"http-equiv": "Content-Security-Policy"})
    assert str(policies[0]["content"]).startswith("default-src 'none';")


def test_the_report_escapes_the_prompt(demo: Finished) -> None:
    assert "The &lt;b&gt;&amp;" in demo.report
    assert "The <b>&" not in demo.report


def test_every_table_has_a_caption_and_identifiers_are_unique(page: Elements) -> None:
    assert len(page.having("table")) == len(page.having("caption")) >= 8
    identifiers = [found["id"] for _, found in page.seen if "id" in found]
    assert len(identifiers) == len(set(identifiers))


def test_the_script_finds_what_it_looks_for(demo: Finished, page: Elements) -> None:
    script = (ROOT / "examples" / "demo" / "page.js").read_text(encoding="utf-8")
    wanted = set(re.findall(r'(?:byId|getElementById|mark)\("([a-z-]+)"', script))
    assert wanted
    assert all(page.having("g", id=w) or f'id="{w}"' in demo.report for w in wanted)


def test_texts_that_differ_are_reported(demo: Finished) -> None:
    ours = demo.findings.without_torch
    other = replace(demo.findings, with_torch=replace(ours, text=ours.text[:5] + "\0"))
    assert not other.same_text
    assert other.first_difference() == 5
    assert "The two texts differ from character 5 on." in render_report(other)


def test_figures_survive_their_file(tmp_path: Path, demo: Finished) -> None:
    path = tmp_path / "figures.json"
    path.write_text(json.dumps(asdict(demo.findings.with_torch)), encoding="utf-8")
    assert Run.read(path) == demo.findings.with_torch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "error: train_steps must be at least 1, got 0"),
        (["--prompt", ""], "error: prompt must hold at least one character"),
        (["--threads", "0"], "error: threads must be at least 1, got 0"),
    ],
)
def test_a_wrong_setting_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert capsys.readouterr().err.strip() == message
