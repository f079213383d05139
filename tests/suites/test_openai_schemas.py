"""OpenAI's own schemas, and the cases of llm-comply, which brings them."""

from __future__ import annotations

import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.suites.suite import run_suite

CASES = (
    "chat-basic-response",
    "chat-system-prompt",
    "chat-multi-turn",
    "chat-streaming-response",
    "chat-streaming-usage",
    "chat-error-handling",
)
"""Not chat-image-input, because models here read texts; not chat-reasoning-summary, which is for
models of some names alone; not chat-tool-calling, whose call has a text of any length, which no
small model here ends: `CALL` asks for one that it can end."""

MESSAGES = [{"role": "user", "content": "Hi"}]
CALL = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"enum": [1]}}}],
    "tool_choice": "required",
}


def comply(address: str, model: str, cases: tuple[str, ...], folder: Path) -> str:
    return run_suite(
        [
            str(Path(sys.executable).with_name("llm-comply")),
            "--format=openai-chat",
            f"--base-url={address}/v1",
            "--api-key=none",
            f"--model={model}",
            f"--filter={','.join(cases)}",
            "--verbose",
        ],
        folder=folder,
    )


def test_llm_comply_finds_no_failure(talkative: str, tmp_path: Path) -> None:
    printed = comply(talkative, "ending", CASES, tmp_path)
    assert f"All {len(CASES)} tests passed" in printed, printed
    assert "warning" not in printed, printed


@pytest.fixture(scope="module")
def talkative(stories: Path, talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server with a model that ends its answers: at the end of a sentence."""
    from causal_onnx.serve import open_models
    from tests.serve.models import with_template
    from tests.serve.serving import served

    ending = with_template(stories, tmp_path_factory.mktemp("served") / "ending")
    settings = ending / "generation_config.json"
    told = json.loads(settings.read_text()) if settings.is_file() else {}
    from causal_onnx.runtime import load

    dot = load(stories, threads=1).tokenizer.encode(".", add_special_tokens=False)[-1]
    settings.write_text(json.dumps({**told, "eos_token_id": [dot]}))
    with served(open_models([str(ending), str(talker)], threads=1)) as address:
        yield address


SCHEMAS = json.loads((files("llm_comply") / "specs" / "openai_chat.json").read_text())


def check(name: str, answer: Any) -> None:
    """Raise where an answer is not what OpenAI's document says of it."""
    from jsonschema import Draft202012Validator

    reference = {"$ref": f"#/components/schemas/{name}", "components": SCHEMAS["components"]}
    Draft202012Validator(_without_keywords(reference)).validate(answer)


def _without_keywords(schema: Any) -> Any:
    """OpenAPI's `nullable` said as JSON schema says it."""
    if isinstance(schema, list):
        return [_without_keywords(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _without_keywords(item) for name, item in schema.items()}
    if found.pop("nullable", False) is True:
        return {"anyOf": [found, {"type": "null"}]}
    return found


def post(address: str, path: str, body: Any) -> Any:
    answer = httpx.post(f"{address}{path}", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def stream(address: str, path: str, body: Any) -> list[Any]:
    text = httpx.post(f"{address}{path}", json={**body, "stream": True}, timeout=60).text
    lines = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


# Not logprobs together with echo: there the document is wrong, as the first one is null.
@pytest.mark.parametrize("more", [{}, {"logprobs": 2}, {"n": 2, "echo": True}], ids=str)
def test_completions_have_openais_form(talkative: str, more: dict[str, Any]) -> None:
    body = {"model": "ending", "prompt": "Once upon", "max_tokens": 5, **more}
    check("CreateCompletionResponse", post(talkative, "/v1/completions", body))
    for chunk in stream(talkative, "/v1/completions", body):
        assert set(chunk) == {"id", "object", "created", "model", "choices"}


@pytest.mark.parametrize(
    "more", [{}, {"logprobs": True, "top_logprobs": 3}, {"n": 2}, CALL], ids=str
)
def test_chats_have_openais_form(talkative: str, more: dict[str, Any]) -> None:
    body = {"model": "talker", "messages": MESSAGES, "max_tokens": 60, **more}
    check("CreateChatCompletionResponse", post(talkative, "/v1/chat/completions", body))
    for chunk in stream(talkative, "/v1/chat/completions", body):
        check("CreateChatCompletionStreamResponse", chunk)


def test_models_and_errors_have_openais_form(talkative: str) -> None:
    check("ListModelsResponse", httpx.get(f"{talkative}/v1/models").json())
    answer = httpx.post(f"{talkative}/v1/completions", json={"model": "ending", "prompt": 1})
    check("ErrorResponse", answer.json())


def test_an_answer_of_another_form_is_found() -> None:
    from jsonschema import ValidationError

    with pytest.raises(ValidationError, match="is a required property"):
        check("CreateCompletionResponse", {"id": "1", "object": "text_completion"})
