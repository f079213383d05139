"""What the ingress, the router and the replicas of Ray are made of, without a cluster."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ray", reason="run by make suites")

from causal_onnx.runtime import load
from causal_onnx.serve import create_app
from causal_onnx.serve.ray import OnnxLM, RayOptions, app, build_app
from causal_onnx.serve.ray.forwarded import ForwardedRequest, forward
from causal_onnx.serve.ray.ingress import Resumed
from causal_onnx.serve.ray.replica import answer_parts
from causal_onnx.serve.ray.router import Beginnings, ranked
from tests.runtime.artifacts import fixture

NAMES = {f"replica{place}": 0 for place in range(5)}


def asked(path: str, body: object, *, headers: tuple = ()) -> ForwardedRequest:
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ForwardedRequest(method="POST", path=path, query=b"", headers=headers, body=text)


def test_a_prefix_has_one_order_of_replicas_and_prefixes_spread() -> None:
    firsts = Counter(ranked(f"prefix {i}", NAMES, imbalance=8)[0] for i in range(500))
    assert ranked("a", NAMES, imbalance=8) == ranked(
        "a", dict(reversed(NAMES.items())), imbalance=8
    )
    assert min(firsts[name] for name in NAMES) > 60


def test_a_replica_that_goes_changes_no_other_prefix() -> None:
    left = {name: 0 for name in NAMES if name != "replica2"}
    for i in range(100):
        before = ranked(str(i), NAMES, imbalance=8)
        assert ranked(str(i), left, imbalance=8) == [name for name in before if name != "replica2"]


def test_a_busy_replica_is_asked_last() -> None:
    first, second, *_ = ranked("a", NAMES, imbalance=8)
    assert ranked("a", {**NAMES, first: 7}, imbalance=8)[0] == first
    busy = ranked("a", {**NAMES, first: 8}, imbalance=8)
    assert (busy[0], busy[-1]) == (second, first)


def test_whoever_has_read_most_of_a_prompt_is_asked_first_unless_busy() -> None:
    others = [name for name in NAMES if name not in ("replica3", "replica1")]
    read = {"replica3": 1, "replica1": 2}
    found = ranked("a", NAMES, imbalance=8, read=read)
    assert found[:2] == ["replica1", "replica3"]
    assert found[2:] == [name for name in ranked("a", NAMES, imbalance=8) if name in others]
    busy = ranked("a", {**NAMES, "replica1": 8}, imbalance=8, read=read)
    assert (busy[0], busy[-1]) == ("replica3", "replica1")


def test_a_conversation_that_grows_is_known_again() -> None:
    beginnings, turn = Beginnings(), "x" * 100
    beginnings.note(turn, "a")
    beginnings.note(turn + "y" * 100, "b")
    assert beginnings.read("x" * 63) == {}
    assert beginnings.read(turn) == {"a": 1, "b": 1}
    assert beginnings.read(turn + "y" * 300) == {"a": 1, "b": 3}
    assert beginnings.read("z" + turn) == {}


def test_the_beginnings_used_last_are_kept() -> None:
    beginnings = Beginnings(most=2)
    for text in "abac":
        beginnings.note(text * 64, text)
    assert [bool(beginnings.read(text * 64)) for text in "abc"] == [True, False, True]


def test_without_a_prefix_the_least_busy_is_asked_first() -> None:
    loads = {"a": 3, "b": 1, "c": 2}
    assert ranked(None, loads, imbalance=8) == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("path", "body", "prefix"),
    [
        ("/v1/completions", {"prompt": "abcdefgh"}, "abcd"),
        ("/v1/completions", {"prompt": ["abcdefgh", "x"]}, "abcd"),
        ("/v1/completions", {"prompt": [1, 2, 3]}, "[1]"),
        ("/v1/completions", {"prompt": [[1, 2, 3], [4]]}, "[1]"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, '[{"r'),
        ("/v2/models/m/generate", {"text_input": "xyz"}, "xyz"),
        ("/v1/completions", {"prompt": {}}, None),
        ("/v1/completions", b"{", None),
    ],
)
def test_the_beginning_of_a_prompt_is_found(path: str, body: object, prefix: str | None) -> None:
    assert forward(asked(path, body), prefix_characters=4).prefix == prefix


@pytest.mark.parametrize("body", [b'{"model": "m", "prompt": "x"}', b' {"seed":null,"n":1} \n'])
def test_a_seed_is_drawn_and_the_rest_stays_as_it_was(body: bytes) -> None:
    found = forward(asked("/v1/completions", body), prefix_characters=4).body
    data = json.loads(found)
    assert isinstance(data.pop("seed"), int)
    assert found.startswith(body.rstrip()[:-1])


def test_a_seed_that_is_null_among_parameters_is_drawn_there() -> None:
    given = {"text_input": "x", "parameters": {"seed": None, "max_tokens": 3}}
    found = forward(asked("/v2/models/m/generate", given), prefix_characters=4).body
    data = json.loads(found)
    assert isinstance(data["parameters"].pop("seed"), int)
    assert data == {"text_input": "x", "parameters": {"max_tokens": 3}}


@pytest.mark.parametrize(
    "body", [b'{"seed": 7}', b"{}", b"[]", b'{"parameters": {"seed": 3}}', b'{"x": 1e999}']
)
def test_what_has_a_seed_or_cannot_be_read_is_passed_on_as_it_is(body: bytes) -> None:
    assert forward(asked("/v1/completions", body), prefix_characters=4).body == body


def test_the_model_of_a_path_counts() -> None:
    request = asked("/v2/models/first/infer", {"model": "second"})
    assert forward(request, prefix_characters=4).model == "first"
    assert forward(asked("/v1/completions", {"model": "second"}), prefix_characters=4).model == (
        "second"
    )


def events(identity: str, *tokens: tuple[int, str]) -> list[bytes]:
    return [
        b"data: %b\n\n"
        % json.dumps({"id": identity, "choices": [{"index": index, "text": text}]}).encode()
        for index, text in tokens
    ]


def test_a_stream_goes_on_behind_what_was_passed_on_whatever_the_turns() -> None:
    resumed = Resumed()
    first = list(resumed.pass_on(events("one", (0, "a"), (1, "x"), (0, "b"))))
    resumed.begin_anew()
    again = [(1, "x"), (1, "y"), (0, "a"), (0, "b"), (0, "c")]
    rest = list(resumed.pass_on([b": ping\n\n", *events("two", *again), b"data: [DONE]\n\n"]))
    assert [json.loads(item[6:])["choices"][0]["text"] for item in first] == ["a", "x", "b"]
    assert [json.loads(item[6:])["choices"][0]["text"] for item in rest[1:-1]] == ["y", "c"]
    assert {json.loads(item[6:])["id"] for item in rest[1:-1]} == {"one"}
    assert (rest[0], rest[-1]) == (b": ping\n\n", b"data: [DONE]\n\n")


def test_a_stream_that_is_lost_twice_goes_on() -> None:
    resumed = Resumed()
    whole = [(0, text) for text in "abcdef"]
    found = list(resumed.pass_on(events("one", *whole[:2])))
    for count in (1, 4, 6):
        resumed.begin_anew()
        found += resumed.pass_on(events("two", *whole[:count]))
    assert "".join(json.loads(item[6:])["choices"][0]["text"] for item in found) == "abcdef"


def parts_of(request: ForwardedRequest) -> list:
    async def collect() -> list:
        application = create_app({"language": load(fixture("language"), threads=1)})
        try:
            return [part async for part in answer_parts(application, request, group_s=0.01)]
        finally:
            await asyncio.to_thread(application.state.service.models.close)

    return asyncio.run(collect())


def test_an_answer_comes_in_parts_and_each_token_is_an_event() -> None:
    body = {"model": "language", "prompt": [5, 3], "max_tokens": 9, "stream": True}
    head, *rest = parts_of(asked("/v1/completions", body))
    found = [event for part in (head, *rest) for event in part.bodies]
    assert head.status == 200
    assert {part.status for part in rest} <= {None}
    ids = [json.loads(event[6:])["choices"][0]["token_ids"] for event in found[:-1]]
    assert [len(item) for item in ids] == [1] * 9
    assert found[-1] == b"data: [DONE]\n\n"


def test_an_error_comes_in_its_protocol() -> None:
    (part,) = parts_of(asked("/v2/models/none/generate", {"text_input": "x"}))
    assert part.status == 404
    assert "no model 'none'" in json.loads(b"".join(part.bodies))["error"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"models": "a", "odd": "1"}, "'odd' is not known"),
        ({"models": "a", "max_replicas": "x"}, "max_replicas must be a whole number"),
        ({}, "need names of their own"),
        ({"models": "a/m,b/m"}, "need names of their own"),
    ],
)
def test_wrong_arguments_are_refused(args: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        app(args)


def test_fewer_replicas_at_most_than_at_least_are_refused() -> None:
    with pytest.raises(ValueError, match="max_replicas"):
        build_app(["m"], RayOptions(min_replicas=2, max_replicas=1))


PROMPTS = {"prompt": np.array([[5, 3], [7, 1]])}


def written(
    folder: Path, batch: dict[str, np.ndarray] = PROMPTS, **options: object
) -> list[list[int]]:
    lm = OnnxLM(str(fixture("language")), max_new_tokens=5, done=str(folder), threads=1, **options)
    return [list(ids) for ids in lm(batch)["text"]]


def lines_in(folder: Path) -> list[str]:
    return [line for path in sorted(folder.iterdir()) for line in path.open()]


def test_a_batch_has_the_tokens_of_prompts_alone(tmp_path: Path) -> None:
    model = load(fixture("language"), threads=1)
    expected = [list(model.generate(ids, max_new_tokens=5).ids) for ids in ([5, 3], [7, 1])]
    assert written(tmp_path) == expected


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = written(tmp_path)
    more = {"prompt": np.array([[7, 1], [9, 9], [5, 3]])}
    second = written(tmp_path, more)
    assert [second[2], second[0]] == first
    assert len(lines_in(tmp_path)) == 3


def test_a_line_that_was_not_written_to_its_end_is_done_again(tmp_path: Path) -> None:
    first = written(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:-5])
    assert written(tmp_path) == first
    assert len(lines_in(tmp_path)) == 3


def test_other_options_are_done_anew(tmp_path: Path) -> None:
    written(tmp_path)
    written(tmp_path, seed=1)
    assert len(lines_in(tmp_path)) == 4
