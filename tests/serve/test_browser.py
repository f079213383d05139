"""The page at `/`: what it may do, what it shows, and how a person uses it in headless Chromium."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from causal_onnx.runtime import load
from causal_onnx.runtime.contract import Contract, TensorSpec
from causal_onnx.serve import Registry, ServeOptions, open_models
from causal_onnx.serve.page.attention import NoAttentionError, attention_outputs
from tests.runtime.artifacts import fixture
from tests.serve.serving import held, served
from tests.serve.test_operate import key_of

CHECK = Path(__file__).with_name("browser") / "check_page.mjs"


@pytest.fixture(scope="module")
def address(stories: Path, talker: Path, maps: Path) -> Iterator[str]:
    models = registry(stories, talker, maps, fixture("language"), fixture("small"))
    with served(models) as found:
        yield found


def registry(*places: Path) -> Registry:
    return open_models([str(place) for place in places], threads=1)


def use(address: str, what: str, screenshots: Path, *key: str) -> dict[str, Any]:
    """What a person finds who does `what`; nobody complains, and nothing comes from elsewhere."""
    from examples.clients.client import MissingError
    from examples.clients.languages import need_browser

    try:
        need_browser(install=False)
    except MissingError as error:
        pytest.skip(str(error))
    command = ["node", str(CHECK), address, what, str(screenshots), *key]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(json.loads(done.stdout))
    assert (found["complaints"], found["foreign"], found["stored"]) == ([], [], 0)
    return found


def check_looks(found: dict[str, Any], screenshots: Path) -> None:
    assert found["unnamed"] == []
    assert found["fitsPhone"]
    assert min(found["contrast"], found["contrastInTheDark"]) >= 4.5
    pictures = {path.name for path in screenshots.iterdir()}
    assert pictures == {"desktop.png", "phone.png", "dark.png"}


@pytest.mark.slow
def test_a_person_chats(address: str, talker: Path, tmp_path: Path) -> None:
    found = use(address, "chat", tmp_path)
    asked = {"role": "user", "content": "hello <b>there</b>"}
    body = {"model": "talker", "messages": [asked], "max_tokens": 12, "seed": 7}
    answer = httpx.post(f"{address}/v1/chat/completions", json=body).json()
    reply = answer["choices"][0]["message"]["content"]
    assert found["title"] == "Chat"
    assert found["said"] == ["hello <b>there</b>", reply]
    assert f"{answer['usage']['prompt_tokens']} tokens read, " in found["figures"]
    assert "12 written" in found["figures"]
    assert found["models"] == ["stories", "talker", "maps", "language", "small"]
    assert found["note"].startswith("No map of talker: its file returns no attention weights")
    assert (found["focus"], found["left"]) == ("text", 0)
    check_looks(found, tmp_path)


@pytest.mark.slow
def test_a_person_stops_a_text_and_what_is_written_stays(stories: Path, tmp_path: Path) -> None:
    models = registry(stories)
    engine = models["stories"].engine
    # Behind its first token the engine waits, until the page has gone.
    with served(models) as address, held(engine) as may_go:
        found = use(address, "stop", tmp_path)
        may_go.set()
    assert found["running"]
    assert (found["written"], found["status"]) == (",", "")
    assert engine.record.finished == {"interrupted": 1}


@pytest.mark.slow
def test_a_person_continues_a_text_and_its_map_grows(
    address: str, stories: Path, tmp_path: Path
) -> None:
    found = use(address, "completion", tmp_path)
    expected = load(stories, threads=1).generate("Once upon a time", max_new_tokens=40)
    assert (found["title"], found["given"]) == ("Text", "Once upon a time")
    assert found["written"] == str(expected.text)
    for drawn in (found["typed"], found["grown"]):
        assert drawn["above"] == "0"
        assert drawn["pixels"]["above"] == 0
        assert drawn["pixels"]["coloursBelow"] > 5
    assert "drawn by another model of this server" in found["note"]
    assert "gives" in found["readings"][0]
    assert "“i” (16) cannot see “m” (17)" in found["readings"][3]
    assert (found["head"], found["headChangesMap"]) == ("Layer 1, head 3", True)
    assert (found["counted"], found["running"]) == (40, "0")
    check_looks(found, tmp_path)


@pytest.mark.slow
def test_models_of_ids_and_of_tensors_have_what_they_take(address: str, tmp_path: Path) -> None:
    found = use(address, "ids", tmp_path)
    ids = load(fixture("language"), threads=1).generate([5, 3], max_new_tokens=5).ids
    assert found["refused"] == "x is no token id: ids are whole numbers"
    assert found["written"] == "".join(f" {token}" for token in ids)
    assert found["tensors"].startswith("This model takes tensors")
    assert found["formIsHidden"]


@pytest.mark.slow
def test_what_the_server_refuses_is_said_and_can_be_sent_again(
    address: str, tmp_path: Path
) -> None:
    found = use(address, "refusal", tmp_path)
    assert found["status"] == "temperature must be a number from 0 to 100, got 2000"
    assert (found["text"], found["messages"]) == ("hello", 0)


@pytest.mark.slow
def test_the_page_asks_for_the_key_and_keeps_it_nowhere(talker: Path, tmp_path: Path) -> None:
    options = ServeOptions(keys=(key_of("alice"),))
    with served(registry(talker), options) as address:
        found = use(address, "refusal", tmp_path, "alice")
        assert httpx.get(address).status_code == 200
        assert httpx.get(f"{address}/page/models").status_code == 401
    assert found["focusOfKey"] == "key"
    assert found["status"].startswith("temperature must be")


def policy_of(answer: httpx.Response) -> dict[str, str]:
    parts = answer.headers["content-security-policy"].split("; ")
    return {name: rest for name, _, rest in (part.partition(" ") for part in parts)}


def test_a_browser_lets_the_page_run_this_script_and_ask_this_server_alone(address: str) -> None:
    answer = httpx.get(address)
    policy = policy_of(answer)
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_names_no_other_place(address: str) -> None:
    text = httpx.get(address).text
    assert re.findall(r"https?://[^\s\"'<]+", text) == []
    assert re.findall(r"<[^>]*\s(?:on\w+|style)=", text) == []


def test_a_server_without_a_page_has_none() -> None:
    with served(registry(fixture("small")), ServeOptions(page=False)) as address:
        statuses = [httpx.get(address + path).status_code for path in ("/", "/page/models")]
    assert statuses == [404, 404]


def test_what_says_how_the_server_is_uses_nothing_of_a_keys_limits() -> None:
    keys = (key_of("few", requests_per_minute=1),)
    with served(registry(fixture("language")), ServeOptions(keys=keys)) as address:
        headers = {"Authorization": "Bearer few"}
        paths = ["/metrics", "/page/models"] * 2 + ["/v1/models"] * 2
        found = [httpx.get(address + path, headers=headers).status_code for path in paths]
    assert found == [200] * 5 + [429]


IDS = TensorSpec(name="input_ids", dtype="int64", axes=("batch", "seq"), vocab_size=9)
LOGITS = TensorSpec(name="logits", dtype="float32", axes=("batch", "seq", 9))
VECTORS = TensorSpec(name="x", dtype="float32", axes=("batch", "seq", 4))


def contract_of(*outputs: TensorSpec, ids: TensorSpec = IDS) -> Contract:
    return Contract(inputs=(ids,), outputs=(LOGITS, *outputs))


def weights(*axes: str | int, name: str = "w", dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, axes=axes)


@pytest.mark.parametrize(
    ("outputs", "layers", "heads"),
    [
        ([weights(5, "batch", 8, "seq", "seq")], 5, 8),
        ([weights("batch", 8, "seq", "seq", name=f"a{i}") for i in range(3)], 3, 8),
        ([weights("batch", "seq", "seq")], 1, 1),
        ([weights("batch", 4, "seq", "total_seq")], 1, 4),
    ],
)
def test_attention_weights_are_found_by_their_axes(outputs, layers: int, heads: int) -> None:
    found = attention_outputs(contract_of(*outputs))
    assert (found.layers, found.heads) == (layers, heads)
    assert found.names == tuple(spec.name for spec in outputs)


@pytest.mark.parametrize(
    ("contract", "why"),
    [
        (contract_of(), "its file returns no attention weights"),
        (contract_of(weights("batch", 8, "seq", 16)), "returns no attention weights"),
        (
            contract_of(
                weights("batch", 8, "seq", "seq"), weights("batch", "seq", "seq", name="b")
            ),
            "different numbers of heads",
        ),
        (contract_of(weights("batch", 8, "seq", "seq", dtype="float16")), "are float16"),
        (
            contract_of(ids=VECTORS),
            "needs inputs other than token ids",
        ),
    ],
)
def test_a_model_without_a_map_says_why(contract: Contract, why: str) -> None:
    with pytest.raises(NoAttentionError, match=why):
        attention_outputs(contract)
