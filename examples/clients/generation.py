"""Continue one prompt with other runtimes, and compare with this one's greedy tokens."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from causal_onnx.runtime import load
from examples.clients.client import Client, MissingError, clean_environment, json_lines

__all__ = ["Generated", "generate"]

PROMPT = "The value of the first"
COUNT = 40
"""Ids that are added."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """What came of one runtime."""

    name: str
    runtime: str = ""
    equal: int = 0
    """Ids from the first on that are those of causal-onnx."""
    count: int = COUNT
    text_is_right: bool = False
    """It decoded prompt and continuation to the one text that they are."""
    ms_per_token: float = 0.0
    untested: str = ""
    problem: str = ""

    @property
    def failed(self) -> bool:
        return not self.untested and not (self.equal == self.count and self.text_is_right)


def generate(client: Client, bundle: Path, *, install: bool, count: int = COUNT) -> Generated:
    """Have the client add `count` ids to `PROMPT`, greedily.

    Args:
        client: Its command takes a bundle, a JSON list of ids and a number.
        bundle: Of a language model, with its tokenizer.
        install: Fetch what is missing.
        count: How many ids are added.
    """
    model = load(bundle)
    tokenizer = model.tokenizer
    assert tokenizer is not None
    prompt = tokenizer.encode(PROMPT)
    try:
        command = [*client.prepare(install), str(bundle), json.dumps(prompt), str(count)]
    except MissingError as error:
        return Generated(name=client.name, count=count, untested=str(error))
    done = subprocess.run(
        command,
        env=clean_environment(client.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    said = (json_lines(done.stdout) or [{}])[-1]
    if done.returncode or "ids" not in said:
        return Generated(name=client.name, count=count, problem=done.stderr.strip()[-500:])
    expected = model.generate(prompt, max_new_tokens=count).ids
    pairs = list(zip(said["ids"], expected, strict=False))
    equal = next((i for i, (got, want) in enumerate(pairs) if got != want), len(pairs))
    text = tokenizer.decode([*prompt, *expected])
    return Generated(
        name=client.name,
        runtime=str(said["runtime"]),
        equal=equal if len(said["ids"]) == count else 0,
        count=count,
        text_is_right=said["text"] == text,
        ms_per_token=float(said["ms_per_token"]),
    )
