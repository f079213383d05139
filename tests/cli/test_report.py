from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from causal_onnx.cli.main import main
from causal_onnx.cli.mask_picture import mask_picture
from tests.cli.onnx_file import make_certificate, make_contract, make_golden, write_model


class Page(HTMLParser):
    """Collects what a page says, and notes tags that do not close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [f"{k}={v}" for k, v in attrs if k in ("src", "href") or k.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def render(path: Path, *arguments: str, code: int = 0) -> Page:
    output = path.with_suffix(".html")
    assert main(["report", str(path), "-o", str(output), "--lengths", "1,4", *arguments]) == code
    return Page(output.read_text(encoding="utf-8"))


def test_the_page_holds_the_proof(tmp_path: Path) -> None:
    page = render(write_model(tmp_path / "m.onnx"))
    assert page.open == []
    assert "✓ Causal" in page.text
    assert "random chunks" in page.text
    assert "causal (Attention, 4 heads over 2 of 8) x 2" in page.text
    assert "✓ Equal to PyTorch" in page.text
    assert "✓ Self-test passed here" in page.text
    assert "x: float32 (batch, seq, 3)" in page.text
    assert page.tags.count("circle") == 2  # one point per length


def test_the_page_has_a_program_that_runs_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    render(write_model(tmp_path / "m.onnx"))
    page = (tmp_path / "m.html").read_text(encoding="utf-8")
    program = re.findall(r"<pre><code>(.*?)</code></pre>", page, re.DOTALL)[0]
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(html.unescape(program), {})
    assert capsys.readouterr().out == "y (1, 3, 3)\n"


@pytest.mark.parametrize(
    ("text", "seen", "caption"),
    [
        ("causal (Attention, 4 heads) x 2", 78, "causal"),
        ("causal window 2", 23, "causal window 2"),
        ("causal window 4096 (Attention)", 42, "drawn with 4 positions in place of 4096"),
        ("causal chunk 4", 30, "causal chunk 4"),
        ("prefix 3", 81, "prefix 3"),
        ("full", 144, "full"),
    ],
)
def test_a_mask_pattern_is_drawn(text: str, seen: int, caption: str) -> None:
    picture = mask_picture(text)
    assert picture is not None
    assert picture.count('class="seen"') == seen
    assert caption in picture


@pytest.mark.parametrize("text", ["other", "other, never a later key", "causally", "<causal>"])
def test_a_pattern_without_a_shape_is_not_drawn(text: str) -> None:
    assert mask_picture(text) is None


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = render(write_model(tmp_path / "m.onnx"))
    assert page.links == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert "url(" not in (tmp_path / "m.html").read_text(encoding="utf-8")


def test_everything_from_the_file_is_escaped(tmp_path: Path) -> None:
    evil = "</style></pre><script>alert('1')</script>\"<img src=x onerror=alert(1)>"
    certificate = make_certificate(scope=evil, reason=evil)
    certificate["cores"][0]["footprint"] = evil
    certificate["assumptions"][0]["text"] = evil
    certificate["cache"]["cases"][0]["feeding"] = evil
    certificate["causality"]["summary"] = evil
    certificate["parity"]["cases"][0]["note"] = evil
    certificate["parity"]["skipped"] = [evil]
    page = render(write_model(tmp_path / "m.onnx", source={evil: evil}, certificate=certificate))
    assert page.open == []
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.text.count(evil) >= 10


def test_a_failing_file_fails_the_command_and_says_so_on_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offence = {"op_type": "ReduceMean", "node": "mean", "module": "block.0", "line": ""}
    certificate = make_certificate(verdict="not_causal", offence=offence)
    certificate["causality"] |= {"is_causal": False, "summary": "NOT causal: at length 7"}
    certificate["causality"]["cases"][1] |= {"passed": False, "past_error": 0.5}
    certificate["parity"]["passed"] = False
    certificate["cache"] |= {"passed": False, "summary": "cache: steps are off"}
    certificate["cache"]["cases"][0] |= {"passed": False, "error": 0.125}
    certificate["parity"]["cases"][0] |= {"passed": False, "error": 0.25}
    golden = make_golden(wrong_by=0.01)
    path = write_model(tmp_path / "m.onnx", certificate=certificate, golden=golden)
    page = render(path, code=1)
    assert "✗ Not causal" in page.text
    assert "✗ Not equal to PyTorch" in page.text
    assert "2.5e-01 !" in page.text
    assert 'ReduceMean "mean" (block.0)' in page.text
    assert "✗ FAILED" in page.text
    assert "✗ Self-test failed here" in page.text
    assert re.search(
        'error: .*ReduceMean "mean".*NOT causal: at length 7; .*not equal to its source; '
        ".*cache: steps are off; the self-test failed here",
        capsys.readouterr().err,
    )


def test_what_a_file_does_not_say_is_shown_as_unknown(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", certificate={}, source={})
    page = render(path)
    assert "? Causality not stated" in page.text
    assert "? Equality not stated" in page.text
    assert "The file does not say." in page.text


def test_text_without_an_output_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(write_model(tmp_path / "m.onnx")), "--lengths", "1,4,16"]) == 0
    out = capsys.readouterr().out
    assert "recorded by the exporter: causality" in out
    assert re.search(r"^ *17 +refused +-$", out, re.MULTILINE)
    assert re.search(r"^ *16 +[\d.]+ +[\d.]+ +[\d,]+ +\d+$", out, re.MULTILINE)


def test_json_holds_timings_and_selftest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "m.onnx")
    assert main(["report", str(path), "--lengths", "1,16", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [timing["seq"] for timing in said["timings"]] == [1, 16]
    assert said["selftest"]["passed"] is True


def test_default_lengths_end_at_the_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_model(tmp_path / "m.onnx", contract=make_contract(max_seq_len=5))
    assert main(["report", str(path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [timing["seq"] for timing in said["timings"]] == [1, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lengths", "17"], 1, "takes lengths from 1 to 16, asked to time 17"),
        (["--lengths", "0"], 2, "--lengths takes positive numbers"),
        (["--lengths", "a"], 2, "--lengths takes positive numbers"),
        (["-o", "report.pdf"], 2, "-o takes an .html file"),
    ],
)
def test_wrong_requests_are_named(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["report", str(write_model(tmp_path / "m.onnx")), *arguments]) == code
    assert message in capsys.readouterr().err


def test_a_foreign_file_cannot_be_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(write_model(tmp_path / "m.onnx", foreign=True))]) == 1
    assert "carries no contract" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verdict", "perturbed", "shown"),
    [
        ("causal", True, "✓ Causal"),
        ("causal", False, "✗ Not causal"),
        ("not_causal", True, "✗ Not causal"),
        ("undecided", False, "✗ Not causal"),
        ("undecided", True, "? Causality undecided"),
        ("causal", None, "✓ Causal"),
        (None, True, "✓ Causal"),
        (None, None, "? Causality not stated"),
    ],
)
def test_proof_and_perturbation_give_one_verdict(
    verdict: str | None, perturbed: bool | None, shown: str, tmp_path: Path
) -> None:
    certificate = make_certificate(verdict=verdict)
    if perturbed is None:
        del certificate["causality"]
    else:
        certificate["causality"]["is_causal"] = perturbed
    path = write_model(tmp_path / "m.onnx", certificate=certificate)
    assert shown in render(path, code=1 if "✗" in shown else 0).text
