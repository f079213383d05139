"""The clients on bundles with random weights; those whose packages are installed here."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causal_onnx.cli import parser as cli
from causal_onnx.export import adopt, export_checkpoint
from causal_onnx.runtime import Contract, load, verify_bundle
from causal_onnx.runtime.contract import CachePair
from examples.bundles import BLOCK, PREFIX, SERVED, byte_characters
from examples.clients.__main__ import fresh_text, generation_table, main, table
from examples.clients.client import Client, MissingError, Outcome, find_problem, run_client
from examples.clients.fresh import COMMANDS, Fresh, run_every_command
from examples.clients.generation import PROMPT, generate
from examples.clients.languages import CLIENTS, GENERATORS
from tests.runtime.foreign.files import unpack

REAL = Path(__file__).parent.parent / "data" / "real"
# WebGPU in software takes a minute: `make examples` runs it.
QUICK = [client for client in CLIENTS if "WebGPU" not in client.name and not client.prefix]
# In a browser it is the code that runs in Node.
OUTSIDE_BROWSERS = [client for client in QUICK if "browser" not in client.name]


@pytest.fixture
def bundles(bundle_folder: Path) -> list[Path]:
    return [bundle_folder / name for name in (*SERVED, PREFIX + BLOCK)]


def run_or_skip(client: Client, folders: list[Path]) -> Outcome:
    outcome = run_client(client, folders, install=False)
    if outcome.untested:
        pytest.skip(outcome.untested)
    return outcome


@pytest.fixture(scope="module")
def adopted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a decoder of another exporter becomes, with its weights in a second file."""
    place = tmp_path_factory.mktemp("adopted")
    adopt(unpack("genai-llama", place), place / "model")
    assert (place / "model" / "model.onnx.data").is_file()
    return place / "model"


@pytest.fixture(scope="module")
def adaptable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with a cache whose layers adapters may change."""
    place = tmp_path_factory.mktemp("adaptable") / "model"
    export_checkpoint(REAL / "baby105", place, adaptable=["*.q_proj"], effort="quick")
    return place


@pytest.mark.parametrize("client", QUICK, ids=lambda client: client.name)
def test_a_client_repeats_every_folder(
    client: Client,
    bundles: list[Path],
    stories: Path,
    adopted: Path,
    adaptable: Path,
    tmp_path: Path,
) -> None:
    """What modules and a checkpoint become, what was adopted, has no longest sequence, or takes
    adapters, which it is not given; of each kind what is wrong is named."""
    endless = with_contract(
        bundles[0], tmp_path / "endless", lambda contract: contract.update(max_seq_len=None)
    )
    folders = [*bundles[:3], stories, adopted, adaptable, endless]
    outcome = run_or_skip(client, folders)
    print(outcome)
    assert outcome.problems == ()
    assert outcome.passed == len(folders)
    assert outcome.runtime.startswith("onnxruntime")


@pytest.mark.parametrize("client", GENERATORS, ids=lambda client: client.name)
def test_the_text_of_a_checkpoint_is_one_at_the_joint(client: Client, stories: Path) -> None:
    found = generate(client, stories, install=False, count=12)
    if found.untested:
        pytest.skip(found.untested)
    assert (found.problem, found.equal) == ("", 12)
    assert found.text_is_right


@pytest.mark.parametrize(
    "client", [client for client in CLIENTS if client.prefix], ids=lambda client: client.name
)
def test_other_engines_run_the_portable_form(client: Client, bundles: list[Path]) -> None:
    outcome = run_or_skip(client, bundles[3:])
    print(outcome)
    assert outcome.problems == ()


@pytest.mark.parametrize("client", GENERATORS, ids=lambda client: client.name)
def test_other_runtimes_generate_the_same_tokens(client: Client, bundles: list[Path]) -> None:
    found = generate(client, bundles[2], install=False, count=12)
    if found.untested:
        pytest.skip(found.untested)
    print(found)
    assert found.problem == ""
    assert found.equal == 12
    assert found.text_is_right


def test_other_tokens_are_noticed(bundles: list[Path]) -> None:
    prompt = list(PROMPT.encode())
    ids = load(bundles[2] / "model.onnx").generate(prompt, max_new_tokens=12).ids
    text = bytes([*prompt, *ids]).decode("utf-8", "replace")
    said = {"runtime": "r", "ids": list(ids), "text": text, "ms_per_token": 1.0}
    assert not generate(say(json.dumps(said)), bundles[2], install=False, count=12).failed
    other = {**said, "ids": [*ids[:5], ids[5] ^ 1, *ids[6:]]}
    found = generate(say(json.dumps(other)), bundles[2], install=False, count=12)
    assert (found.equal, found.failed) == (5, True)
    for wrong in ({**said, "ids": list(ids[:11])}, {**said, "text": "?"}, {}):
        assert generate(say(json.dumps(wrong)), bundles[2], install=False, count=12).failed
    assert "NO" in generation_table([generate(say("{}"), bundles[2], install=False)])


@pytest.fixture
def wrong(bundles: list[Path], tmp_path: Path) -> Path:
    """A bundle that expects one number of its last streamed output to be larger."""
    folder = tmp_path / "wrong"
    shutil.copytree(bundles[1], folder)
    path = folder / "goldens.json"
    goldens = json.loads(path.read_bytes())
    stored = goldens["cases"][1]["outputs"]["output"]
    values = np.frombuffer(base64.b64decode(stored["data"]), "<f4").copy()
    values[-1] += 1e-3 * np.abs(values).max()
    stored["data"] = base64.b64encode(values.tobytes()).decode()
    path.write_text(json.dumps(goldens))
    return folder


@pytest.mark.parametrize("client", OUTSIDE_BROWSERS, ids=lambda client: client.name)
def test_a_client_notices_a_wrong_output(client: Client, wrong: Path) -> None:
    outcome = run_or_skip(client, [wrong])
    assert outcome.passed == 0
    assert "largest error" in outcome.problems[0]


@pytest.mark.parametrize("client", OUTSIDE_BROWSERS, ids=lambda client: client.name)
def test_a_client_says_in_one_line_that_a_folder_is_none(client: Client, tmp_path: Path) -> None:
    try:
        command = client.prepare(False)
    except MissingError as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [*command, str(tmp_path / "none")], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / "none") in line


def with_contract(bundle: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a bundle with another contract."""
    shutil.copytree(bundle, folder)
    path = folder / "contract.json"
    document = json.loads(path.read_text())
    change(document["contract"])
    path.write_text(json.dumps(document))
    return folder


@pytest.mark.parametrize("client", QUICK, ids=lambda client: client.name)
def test_a_client_holds_values_to_the_range_of_the_contract(
    client: Client, bundles: list[Path], tmp_path: Path
) -> None:
    folder = with_contract(
        bundles[0],
        tmp_path / "ranged",
        lambda contract: contract["inputs"][0].update(value_range=[1e6, 2e6]),
    )
    (problem,) = run_or_skip(client, [folder]).problems
    assert "values in [1" in problem


RESTRICTED: tuple[tuple[str, Callable[[dict[str, Any]], object]], ...] = (
    ("alibi_of", lambda contract: contract.update(alibi_of="batch")),
    ("alibi_of", lambda contract: contract["inputs"][0].update(alibi_of="batch")),
    ("alibi_of", lambda contract: contract["outputs"][0].update(alibi_of="batch")),
    ("alibi_of", lambda contract: contract["cache"][0].update(alibi_of="batch")),
    ("at least 4096", lambda contract: contract.update(min_seq_len=4096, max_seq_len=4096)),
    ("expected 1 here", lambda contract: contract.update(ragged="single")),
)
"""What a problem says, and the contract that makes it."""


@pytest.mark.parametrize("client", OUTSIDE_BROWSERS, ids=lambda client: client.name)
def test_a_client_refuses_keys_and_calls_that_a_contract_does_not_allow(
    client: Client, bundles: list[Path], tmp_path: Path
) -> None:
    folders = [
        with_contract(bundles[1], tmp_path / str(number), change)
        for number, (_, change) in enumerate(RESTRICTED)
    ]
    problems = run_or_skip(client, folders).problems
    for (expected, _), problem in zip(RESTRICTED, problems, strict=True):
        assert expected in problem


@pytest.mark.parametrize("client", OUTSIDE_BROWSERS, ids=lambda client: client.name)
def test_a_client_refuses_a_newer_format(
    client: Client, bundles: list[Path], tmp_path: Path
) -> None:
    folder = with_contract(bundles[1], tmp_path / "newer", lambda contract: None)
    document = json.loads((folder / "contract.json").read_text())
    (folder / "contract.json").write_text(json.dumps({**document, "format": 2}))
    (problem,) = run_or_skip(client, [folder]).problems
    assert "format" in problem


@pytest.mark.parametrize(
    ("file", "start", "middle", "end"),
    [
        ("python_plain/client.py", "_CONTRACT", "_PAIR =", "class"),
        ("node/src/bundle.ts", "contract:", "pair:", "};"),
        ("c/json.h", "CONTRACT_KEYS", "PAIR_KEYS", "#ifdef"),
    ],
)
def test_clients_know_every_key_of_a_contract(file: str, start: str, middle: str, end: str) -> None:
    text = (Path(__file__).parents[2] / "examples" / file).read_text()
    _, first, rest = text.partition(start)
    contract, _, pair = (first + rest).partition(middle)
    known = set(re.findall(r"\w+", contract))
    assert {"format", *(field.name for field in fields(Contract))} <= known
    known = set(re.findall(r"\w+", pair[: pair.index(end)]))
    assert {field.name for field in fields(CachePair)} <= known


@pytest.mark.parametrize("client", OUTSIDE_BROWSERS, ids=lambda client: client.name)
def test_a_client_notices_a_cache_that_is_cut_otherwise(
    client: Client, bundles: list[Path], tmp_path: Path
) -> None:
    """A stream that lacks its last position is not the whole."""
    folder = tmp_path / "short"
    shutil.copytree(bundles[1], folder)
    path = folder / "goldens.json"
    goldens = json.loads(path.read_bytes())
    goldens["cases"][1]["outputs"]["output"]["whole_shape"][1] += 1
    path.write_text(json.dumps(goldens))
    outcome = run_or_skip(client, [folder])
    assert outcome.passed == 0


def test_the_bundles_pass_their_own_check(bundles: list[Path]) -> None:
    for folder in bundles:
        report = verify_bundle(folder)
        assert report.passed, report.findings
    assert (bundles[2] / "tokenizer.json").exists()


def test_the_tokenizers_ids_are_bytes(bundles: list[Path]) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(bundles[2] / "tokenizer.json"))
    text = "Zürich, 5 €\n\t漢"
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(set(byte_characters())) == 256


def say(text: str, code: int = 0) -> Client:
    """A client that says what it is told."""
    script = f"import sys; print({text!r}); sys.exit({code})"
    return Client(name="parrot", prepare=lambda install: [sys.executable, "-c", script])


GOOD = {"cases": 3, "streams": 2, "refused": 3, "repeats": True, "error": 1e-7, "runtime": "r"}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, ""),
        ({"cases": 2}, "cases is 2, expected 3"),
        ({"streams": 0}, "streams is 0, expected 2"),
        ({"refused": 2}, "refused is 2, expected 3"),
        ({"repeats": False}, "repeats is False"),
        ({"error": 2e-5}, "largest error 2e-05, limit 1e-05"),
        ({"error": float("nan")}, "largest error nan"),
    ],
)
def test_what_a_client_says_is_checked(
    changes: dict[str, object], problem: str, bundles: list[Path]
) -> None:
    found = find_problem({**GOOD, **changes}, bundles[1])
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_of_several_folders_each_has_a_line_of_its_own(bundles: list[Path]) -> None:
    lines = "\n".join(json.dumps({**GOOD, "error": error}) for error in (1e-7, 1.0))
    several = replace(say(lines, code=1), takes_several=True)
    (problem,) = run_client(several, bundles[1:3], install=False).problems
    assert problem.startswith(f"{bundles[2].name}: largest error 1.0")
    few = replace(say(json.dumps(GOOD)), takes_several=True)
    (problem,) = run_client(few, bundles[1:3], install=False).problems
    assert problem == f"{bundles[2].name}: it said nothing"


def test_a_client_that_says_nothing_or_fails_has_failed(bundles: list[Path]) -> None:
    assert run_client(say("hello"), bundles[1:2], install=False).failed
    assert not run_client(say(json.dumps(GOOD)), bundles[1:2], install=False).failed
    outcome = run_client(say(json.dumps(GOOD), code=1), bundles[1:2], install=False)
    assert outcome.failed
    assert "exit code 1" in outcome.problems[0]


def test_what_cannot_be_run_is_listed_as_untested() -> None:
    def prepare(install: bool) -> list[str]:
        raise MissingError("cobol is not installed")

    outcome = run_client(Client(name="COBOL", prepare=prepare), [], install=False)
    assert not outcome.failed
    assert "COBOL" in table([outcome])
    assert "untested: cobol is not installed" in table([outcome])


def test_a_fresh_environment_is_for_every_command_of_the_runtime() -> None:
    names = {module.__name__.rpartition(".")[2].replace("_", "-") for module in cli.COMMANDS}
    assert set(COMMANDS) == names - {"export", "attest", "adopt", "chat", "completion", "serve"}
    assert "untested" in fresh_text(run_every_command(Path(), install=False))
    some = Fresh(passed=COMMANDS[:3], problems=("run: no",))
    assert some.failed
    assert f"3 of {len(COMMANDS)}" in fresh_text(some)


def test_unknown_clients_are_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["Algol"])
    assert "there is no client Algol" in capsys.readouterr().err
