"""`/tokenize`, `/detokenize` and `/apply-template`, as the clients of two servers call them."""

from __future__ import annotations

import pytest

from tests.serve.serving import post

IDS = [1, 78, 95, 64, 72, 62]


def test_vllms_clients_get_a_count(address: str) -> None:
    status, found = post(address, "/tokenize", {"model": "stories", "prompt": "Once"})
    assert status == 200
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 256)
    body = {"model": "stories", "tokens": found["tokens"]}
    assert post(address, "/detokenize", body)[1]["prompt"] == "Once"


def test_llama_cpps_clients_get_pieces(address: str) -> None:
    body = {"model": "stories", "content": "Once", "with_pieces": True}
    pieces = post(address, "/tokenize", body)[1]["tokens"]
    assert "".join(piece["piece"] for piece in pieces).strip() == "Once"
    plain = post(address, "/tokenize", {"model": "stories", "content": "Once"})[1]["tokens"]
    special = {"model": "stories", "content": "Once", "add_special": True}
    assert post(address, "/tokenize", special)[1]["tokens"] == [1, *plain]


def test_a_conversation_is_written_as_the_model_reads_it(address: str) -> None:
    body = {"model": "chatty", "messages": [{"role": "developer", "content": "Hi"}]}
    prompt = post(address, "/apply-template", body)[1]["prompt"]
    assert prompt == "<s>system: Hi\nassistant: "
    counted = post(address, "/tokenize", body)[1]
    read = {"model": "chatty", "prompt": prompt, "add_special_tokens": False}
    assert counted["tokens"] == post(address, "/tokenize", read)[1]["tokens"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/detokenize", {"tokens": [105]}, "tokens"),
        ("/detokenize", {"tokens": ["x"]}, "tokens"),
        ("/tokenize", {"content": "x", "parse_special": False}, "parse_special"),
        ("/tokenize", {"prompt": "x", "odd": 1}, "odd"),
        ("/apply-template", {}, "messages"),
    ],
)
def test_what_does_not_fit_is_refused(address: str, path: str, body, param: str) -> None:
    status, found = post(address, path, {"model": "chatty", **body})
    assert (status, found["error"]["param"]) == (400, param)


def test_the_model_must_be_named_where_there_are_several(address: str) -> None:
    status, found = post(address, "/tokenize", {"content": "x"})
    assert (status, found["error"]["param"]) == (400, "model")
