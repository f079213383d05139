"""What each extra is enough for, and that every message names one that brings what is missing."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from causal_onnx.runtime import write_bundle
from tests.cli.onnx_file import random_input, write_model
from tests.runtime.artifacts import fixture
from tests.runtime.language import write_tokenizer

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path
    for root in (
        "runtime",
        "export",
        "models",
        "serve",
        "cli",
        "examples",
        "bench",
        "docs",
        "README.md",
    )
    for path in ([ROOT / root] if (ROOT / root).is_file() else (ROOT / root).rglob("*"))
    if path.suffix in (".py", ".md") and "node_modules" not in path.parts
)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BROUGHT = {
    extra: {Requirement(text).name.replace("-", "_") for text in texts}
    for extra, texts in PROJECT["optional-dependencies"].items()
}
"""Extra -> modules that it installs; each bears the name of its package, but for `PACKAGES`."""
PACKAGES = {"grpc": "grpcio", "google": "protobuf", "opentelemetry": "opentelemetry_sdk"}
"""Module -> its package, where that has another name."""

BARRED = """
import sys
from importlib.machinery import PathFinder

barred = set(sys.argv.pop(1).split(","))

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] not in barred:
            return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
from causal_onnx.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def all_extras() -> set[str]:
    return {name for names in BROUGHT.values() for name in names}


def without(*extras: str) -> set[str]:
    """The modules that these extras do not install."""
    installed = {name for extra in extras for name in BROUGHT[extra]}
    return {*all_extras(), "torch", "peft"} - installed


def run_barred(
    barred: set[str], *arguments: str | Path, given: str = ""
) -> subprocess.CompletedProcess[str]:
    """The command where these modules cannot be imported."""
    return subprocess.run(
        [sys.executable, "-c", BARRED, ",".join(sorted(barred)), *map(str, arguments)],
        input=given,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def named_extras(text: str) -> Iterator[str]:
    """Those in a text; what is filled in later, in braces, is not known yet."""
    for names in re.findall(r"causal-onnx\[([^\]{}]*)\]", text):
        yield from (name.strip() for name in names.split(","))


def test_every_extra_that_is_named_exists() -> None:
    for path in SOURCES:
        named = set(named_extras(path.read_text()))
        # `doctor` explains the form.
        assert named <= BROUGHT.keys() | ({"name"} if path.name == "doctor.py" else set()), path


def test_an_extra_that_does_not_exist_would_be_seen() -> None:
    assert list(named_extras("pip install 'causal-onnx[cpu, warp]'")) == ["cpu", "warp"]


def imports_of_extras() -> Iterator[tuple[Path, str, str]]:
    """File, module and extra of each call of `import_extra`."""
    for path in SOURCES:
        if path.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "import_extra":
                extra = next(word.value for word in node.keywords if word.arg == "extra")
                yield path, ast.literal_eval(node.args[0]), ast.literal_eval(extra)


def test_an_import_of_an_extra_names_the_one_that_brings_it() -> None:
    found = list(imports_of_extras())
    assert len(found) >= 6
    for path, module, extra in found:
        top = module.partition(".")[0]
        assert PACKAGES.get(top, top) in BROUGHT[extra], path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a model without text."""
    write_bundle(write_model(tmp_path / "m.onnx"), tmp_path / "model")
    np.save(tmp_path / "x.npy", random_input())
    return tmp_path / "model"


@pytest.fixture
def talker(tmp_path: Path) -> Path:
    """The folder of a language model with all that a chat needs."""
    folder = tmp_path / "talker"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(fixture("language").read_bytes())
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    return folder


@pytest.mark.slow
def test_the_thin_extras_run_all_but_what_reads_graphs(
    model: Path, talker: Path, tmp_path: Path
) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text("{}")
    commands = [
        ["inspect", model],
        ["selftest", model],
        ["run", model, tmp_path / "x.npy", "-o", tmp_path / "y.npy"],
        ["report", model, "-o", tmp_path / "r.html"],
        ["bundle", model, "-o", tmp_path / "again"],
        ["verify-bundle", model],
        ["bench", model, "--lengths", "2"],
        ["profile", model, "--seq", "2"],
        ["doctor"],
        ["generate", talker, "--prompt", "a", "--max-new-tokens", "3", "--json-schema", schema],
        ["chat", talker, "--max-new-tokens", "3"],
    ]
    for command in commands:
        done = run_barred(without("cpu", "text"), *command, given="hello\n")
        assert done.returncode == 0, (command, done.stderr)


@pytest.mark.parametrize(
    ("missing", "command", "extra"),
    [
        ("torch", ["export", "json:loads", "-o", "m.onnx"], "export"),
        ("onnx", ["attest", "{model}"], "attest"),
        ("onnx_ir", ["attest", "{model}"], "attest"),
        ("onnx", ["adopt", "{model}", "-o", "a"], "attest"),
        ("tokenizers", ["generate", "{talker}", "--prompt", "a"], "text"),
        (
            "llguidance",
            ["generate", "{talker}", "--prompt", "a", "--json-schema", "{schema}"],
            "text",
        ),
        ("tokenizers", ["chat", "{talker}"], "text"),
        ("jinja2", ["chat", "{talker}"], "text"),
        ("onnxruntime", ["run", "{model}", "-o", "y.npy"], "cpu"),
    ],
)
def test_what_is_missing_is_named_with_the_extra_that_brings_it(
    missing: str, command: list[str], extra: str, model: Path, talker: Path
) -> None:
    places = {"model": model, "talker": talker, "schema": talker / "schema.json"}
    places["schema"].write_text("{}")
    done = run_barred({missing}, *(text.format(**places) for text in command), given="a\n")
    assert done.returncode in (1, 3), done.stderr
    assert f"'causal-onnx[{extra}]'" in done.stderr
    assert missing in BROUGHT[extra]
    assert "Traceback" not in done.stderr


def test_a_checkpoint_without_transformers_names_its_extra(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    done = run_barred({"transformers"}, "export", tmp_path, "-o", tmp_path / "m.onnx")
    assert done.returncode == 1
    assert "needs the package transformers: pip install 'causal-onnx[hf]'" in done.stderr


@pytest.mark.slow
def test_attesting_and_adopting_need_the_extra_attest_alone(model: Path, tmp_path: Path) -> None:
    from tests.runtime.foreign.files import unpack

    assert run_barred(without("attest"), "attest", model).returncode == 0
    done = run_barred(
        without("attest"), "adopt", unpack("genai-llama", tmp_path), "-o", tmp_path / "adopted"
    )
    assert done.returncode == 0, done.stderr
