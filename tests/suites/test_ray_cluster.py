"""Ray Serve and Ray Data on a cluster of several nodes, all of them in this machine."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("ray", reason="run by make suites")

import ray
from ray import serve
from ray.cluster_utils import Cluster

from causal_onnx.runtime import load
from causal_onnx.serve.ray import OnnxLM, RayOptions, build_app
from tests.serve.models import write_adapter
from tests.suites.conftest import ROOT
from tests.suites.suite import free_ports

TOKENS = 160
STARTS = ("Once upon a time", "Tom had a dog", "The sun was", "She said", "A cat and a bird", "He")
STORE_BYTES = 100 << 20
PATIENCE_S = 180.0
RAY_SECTION = (ROOT / "docs" / "serving.md").read_text().split("\n## Ray\n")[1].split("\n## ")[0]


@dataclass
class Machines:
    """A cluster: a node that stays, with the ingress, and others that hold engines."""

    cluster: Any
    address: str
    nodes: list[Any]

    def add_node(self) -> None:
        node = self.cluster.add_node(
            num_cpus=2, resources={"engine": 1}, object_store_memory=STORE_BYTES
        )
        self.nodes.append(node)

    def lose_node(self) -> None:
        self.cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def complete(self, prompt: str, **more: Any) -> dict[str, Any]:
        asked = {"model": "stories", "prompt": prompt, "max_tokens": TOKENS, **more}
        answer = httpx.post(f"{self.address}/v1/completions", json=asked, timeout=600)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def text(self, prompt: str) -> str:
        return str(self.complete(prompt)["choices"][0]["text"])

    def stream(self, prompt: str, first: Callable[[], None] = lambda: None) -> str:
        """The text of a stream, which must be whole; `first` is called when it has begun."""
        asked = {"model": "stories", "prompt": prompt, "max_tokens": TOKENS, "stream": True}
        texts: list[str] = []
        with httpx.stream(
            "POST", f"{self.address}/v1/completions", json=asked, timeout=600
        ) as answer:
            assert answer.status_code == 200
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    return "".join(texts)
                if line.startswith("data: "):
                    data = json.loads(line[6:])
                    texts += [choice["text"] for choice in data["choices"]]
                    if len(texts) == 1:
                        first()
        raise AssertionError(f"the stream of {prompt!r} ended within: {texts}")


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    (port,) = free_ports(1)
    head = {"num_cpus": 2, "resources": {"stays": 1}, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        found = Machines(cluster, f"http://127.0.0.1:{port}", [])
        for _ in range(2):
            found.add_node()
        ray.init(address=cluster.address, log_to_driver=False)
        serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
        yield found
        serve.shutdown()
    finally:
        ray.shutdown()
        cluster.shutdown()


def deploy(
    stories: Path,
    *,
    names: tuple[str, ...] = ("stories",),
    adapters: dict[str, Path] | None = None,
    **options: Any,
) -> None:
    """Serve under these names, one replica a node, and wait until it runs."""
    serve.run(
        build_app(
            [f"{name}={stories}" for name in names],
            RayOptions(
                replica_resources={"num_cpus": 1, "resources": {"engine": 1}},
                ingress_resources={"resources": {"stays": 0.1}},
                **options,
            ),
            threads=1,
            adapters=adapters,
        )
    )


def running_replicas() -> int:
    """How many replicas hold engines now."""
    found = serve.status().applications["default"].deployments["models"]
    return int(found.replica_states.get("RUNNING", 0))


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < until, serve.status()
        time.sleep(0.1)


@pytest.fixture
def two(machines: Machines, stories: Path) -> Machines:
    """The cluster with two nodes that hold an engine each."""
    while len(machines.nodes) < 2:
        machines.add_node()
    deploy(stories, min_replicas=2, max_replicas=2)
    wait_for(lambda: running_replicas() == 2)
    return machines


@pytest.fixture(scope="module")
def adapter(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of random weights, which changes what is written."""
    return write_adapter(stories, tmp_path_factory.mktemp("adapters") / "odd.npz")


@pytest.fixture(scope="module")
def expected(stories: Path) -> dict[str, str]:
    """What the model writes behind each start, in this process."""
    model = load(stories, threads=1)
    return {start: model.generate(start, max_new_tokens=TOKENS).text for start in STARTS}


def test_a_node_that_is_lost_under_load_loses_no_request(
    two: Machines, expected: dict[str, str]
) -> None:
    begun: list[None] = []
    with ThreadPoolExecutor(32) as pool:
        streams = [
            pool.submit(two.stream, start, lambda: begun.append(None)) for start in STARTS * 3
        ]
        whole = [pool.submit(two.text, start) for start in STARTS * 2]
        wait_for(lambda: len(begun) >= len(STARTS))
        assert not all(item.done() for item in streams)
        two.lose_node()
        assert [item.result() for item in streams] == [expected[start] for start in STARTS * 3]
        assert [item.result() for item in whole] == [expected[start] for start in STARTS * 2]


def test_prompts_that_begin_alike_find_their_beginning_read(two: Machines) -> None:
    told = "There was a little girl who had a big red ball, and she played with it all day long"
    beginnings = [f"{start}. {told} in the garden." for start in STARTS]
    for beginning in beginnings:
        two.complete(beginning, max_tokens=1)
    read = [
        two.complete(f"{beginning} and", max_tokens=1)["usage"]["prompt_tokens_details"]
        for beginning in beginnings
    ]
    assert min(found["cached_tokens"] for found in read) > 0


def test_a_replica_that_is_taken_away_finishes_what_it_has(
    two: Machines, stories: Path, expected: dict[str, str]
) -> None:
    begun: list[None] = []
    with ThreadPoolExecutor(16) as pool:
        streams = [pool.submit(two.stream, start, lambda: begun.append(None)) for start in STARTS]
        wait_for(lambda: len(begun) == len(STARTS))
        deploy(stories, min_replicas=1, max_replicas=1)
        assert [item.result() for item in streams] == list(expected.values())
    wait_for(lambda: running_replicas() == 1)
    assert two.text(STARTS[0]) == expected[STARTS[0]]


def test_a_replica_is_added_where_requests_wait(
    two: Machines, stories: Path, expected: dict[str, str]
) -> None:
    deploy(stories, min_replicas=1, max_replicas=1)
    wait_for(lambda: running_replicas() == 1)
    deploy(stories, min_replicas=1, max_replicas=2, target_requests=1)
    ends: list[None] = []

    def ask_on() -> None:
        while not ends:
            assert two.text(STARTS[0]) == expected[STARTS[0]]

    with ThreadPoolExecutor(6) as pool:
        asking = [pool.submit(ask_on) for _ in range(6)]
        try:
            wait_for(lambda: running_replicas() == 2)
        finally:
            ends.append(None)
        for item in asking:
            item.result()


def test_models_that_are_loaded_when_they_are_asked_for_give_way_to_others(
    two: Machines, stories: Path, expected: dict[str, str]
) -> None:
    names = ("first", "second", "third")
    deploy(stories, names=names, min_replicas=1, max_replicas=1, models_per_replica=1)
    for name in (*names, "first"):
        found = two.complete(STARTS[1], model=name)
        assert (found["model"], found["choices"][0]["text"]) == (name, expected[STARTS[1]])


@pytest.mark.parametrize("lazily", [{}, {"models_per_replica": 1}], ids=["held", "asked_for"])
def test_an_adapter_is_served_beside_its_model(
    two: Machines, stories: Path, expected: dict[str, str], adapter: Path, lazily: dict[str, int]
) -> None:
    deploy(stories, adapters={"odd": adapter}, min_replicas=1, max_replicas=1, **lazily)
    model = load(stories, threads=1, adapters={"odd": adapter})
    changed = model.generate(STARTS[0], max_new_tokens=TOKENS, adapter="odd").text
    with ThreadPoolExecutor(2) as pool:
        plain, odd = pool.map(lambda name: two.complete(STARTS[0], model=name), ("stories", "odd"))
    assert plain["choices"][0]["text"] == expected[STARTS[0]] != changed
    assert (odd["model"], odd["choices"][0]["text"]) == ("odd", changed)


def test_a_column_is_written_with_an_adapter(stories: Path, adapter: Path, tmp_path: Path) -> None:
    model = load(stories, threads=1, adapters={"odd": adapter})
    batch, options = {"prompt": np.array([STARTS[0]])}, {"max_new_tokens": TOKENS, "threads": 1}
    plain, odd = (
        OnnxLM(str(stories), done=str(tmp_path), adapter=path, **options)(batch)["text"][0]
        for path in (None, str(adapter))
    )
    assert odd == model.generate(STARTS[0], max_new_tokens=TOKENS, adapter="odd").text != plain


@pytest.mark.parametrize(
    ("path", "asked", "status", "message"),
    [
        ("/v1/completions", {"model": "none", "prompt": "x"}, 404, "no model 'none'"),
        ("/v1/completions", {"model": "stories", "prompt": "x", "odd": 1}, 400, "odd"),
        ("/v1/completions", [], 400, "must be a JSON object"),
        ("/v2/repository/models/stories/unload", {}, 400, "loaded and unloaded by Ray"),
        (
            "/v2/models/stories/infer",
            {"inputs": [], "parameters": {"sequence_id": 3, "sequence_start": True}},
            400,
            "keeps no sequences",
        ),
    ],
)
def test_errors_are_those_without_ray(
    two: Machines, path: str, asked: Any, status: int, message: str
) -> None:
    answer = httpx.post(f"{two.address}{path}", json=asked, timeout=600)
    assert (answer.status_code, message in answer.text) == (status, True), answer.text


def test_a_column_of_prompts_becomes_texts_and_a_second_run_takes_what_is_done(
    machines: Machines, stories: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    block = re.findall(r"```python\n(.*?)```", RAY_SECTION, re.DOTALL)[-1]
    for written, here in {
        '"model/"': repr(str(stories)),
        '"max_new_tokens": 64': f'"max_new_tokens": {TOKENS}',
        '"done/"': repr(str(tmp_path / "done")),
        '"prompts.parquet"': repr(str(tmp_path / "prompts.parquet")),
        '"texts/"': repr(str(tmp_path / "texts")),
    }.items():
        assert written in block
        block = block.replace(written, here)
    prompts = ray.data.from_items([{"prompt": start} for start in STARTS]).to_pandas()
    prompts.to_parquet(tmp_path / "prompts.parquet")
    for _ in range(2):
        exec(block, {})
        rows = ray.data.read_parquet(str(tmp_path / "texts")).take_all()
        assert {row["prompt"]: row["text"] for row in rows} == expected
    files = [path.read_text().splitlines() for path in (tmp_path / "done").iterdir()]
    assert sorted(map(len, files)) == [0, len(STARTS)]
