"""Serve a trained model without PyTorch, and let OpenAI's own client use it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from openai import OpenAI

from causal_onnx.runtime import load, verify_bundle
from examples.demo.demo import STORY, STORY_TOKENS
from examples.demo.road import ROOT, make_folder
from examples.demo.screen import Screen
from examples.serving.maps import export_maps

__all__ = ["Served", "run_serve_demo", "served"]

STORIES, MAPS = "stories", "maps"

BEGINNINGS = (
    "Once upon a time",
    "One day, a boy",
    "Lily had a red ball",
    "The dog was sad",
    "Tom and his mom",
    "In the park",
    "There was a big tree",
    "The little bird",
)
TOKENS_EACH = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """What the client found."""

    text: str
    """What was streamed."""
    is_as_in_process: bool
    """Whether `Model.generate` writes the same."""
    are_as_alone: bool
    """Whether eight at once became what each became alone."""
    cached_tokens: int
    """Of a prompt that begins like one before."""


def run_serve_demo(
    folder: Path, screen: Screen, *, port: int = 0, stays: bool = False, maps: bool = True
) -> Served:
    """Export what is not there yet, serve it, and use it.

    Args:
        folder: The models' folders are in it, and the server's log.
        screen: Prints what happens.
        port: Of the server; 0: a free one.
        stays: Whether to serve on until Ctrl+C.
        maps: Whether to serve the model a second time, so that the page draws what it attends to.

    Raises:
        RuntimeError: The server does not start, or does not end in order.
    """
    places = _make_folders(folder, screen, maps=maps)
    screen.section("Serve it, in a process that cannot import PyTorch")
    command = [f"{place.name}={place}" for place in places]
    screen.line(f"  $ causal-onnx serve {' '.join(command)}", style="bold")
    with served(places, folder / "serve.log", port=port) as (address, lines):
        screen.block("\n".join(lines), indent=4)
        with OpenAI(base_url=f"{address}/v1", api_key="none") as client:
            found = _use(client, folder / STORIES, screen)
        if stays:
            screen.section(f"The page: {address}/")
            screen.line("  Ctrl+C ends it.")
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    screen.fact("ended", "by SIGTERM, in order", passed=True)
    return found


def _make_folders(folder: Path, screen: Screen, *, maps: bool) -> list[Path]:
    screen.section("A trained model, exported")
    stories = folder / STORIES
    if not _is_there(stories):
        with screen.step("export the checkpoint, and prove it causal") as update:
            make_folder(stories, update)
    screen.fact("folder", f"{stories}, verified", passed=True)
    if not maps:
        return [stories]
    if not _is_there(folder / MAPS):
        with screen.step("export it again, with its attention weights, for the page's map"):
            export_maps(folder / MAPS)
    screen.fact("folder", f"{folder / MAPS}, verified", passed=True)
    return [stories, folder / MAPS]


def _is_there(folder: Path) -> bool:
    return folder.is_dir() and verify_bundle(folder).passed


@contextlib.contextmanager
def served(places: Sequence[Path], log: Path, *, port: int = 0) -> Iterator[tuple[str, list[str]]]:
    """The address of a server that runs as a process of its own, and what it said.

    Raises:
        RuntimeError: It does not start, or does not end in order.
    """
    command = [sys.executable, "-m", "examples.demo.without_torch", "serve"]
    command += [f"{place.name}={place.resolve()}" for place in places]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        lines = _lines_until_it_listens(process.stdout)
        if not lines:
            raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
        yield lines[-2].split()[-1], lines
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=150)
        if code != 0:
            raise RuntimeError(f"the server ended with exit code {code}; see {log}")
    finally:
        process.kill()
        process.communicate()


def _lines_until_it_listens(output: IO[str]) -> list[str]:
    """What it says of its models and address; nothing where it ended before."""
    lines = []
    for line in output:
        lines.append(line.rstrip("\n"))
        if line.startswith("try: "):
            return lines
    return []


def _use(client: OpenAI, folder: Path, screen: Screen) -> Served:
    screen.section("OpenAI's own client")
    screen.fact("models", ", ".join(model.id for model in client.models.list()))
    screen.write(f"    {STORY}", style="bold")
    began, first, pieces = time.monotonic(), 0.0, []
    for piece in _stream(client, STORY, STORY_TOKENS):
        first = first or time.monotonic()
        screen.write(piece)
        pieces.append(piece)
    text, ended = "".join(pieces), time.monotonic()
    screen.line()
    screen.fact(
        "streamed",
        f"{len(pieces)} pieces, the first after {1000 * (first - began):.0f} ms, "
        f"{(len(pieces) - 1) / (ended - first):.0f} a second",
    )
    in_process = str(load(folder).generate(STORY, max_new_tokens=STORY_TOKENS).text)
    is_same = text == in_process
    screen.fact("text", "what Model.generate writes, byte for byte", passed=is_same)
    are_same = _compare_company(client, screen)
    cached = _cached_tokens(client, STORY + text)
    screen.fact("cache", f"{cached} tokens of a prompt that was seen before were not read again")
    return Served(text=text, is_as_in_process=is_same, are_as_alone=are_same, cached_tokens=cached)


def _stream(client: OpenAI, prompt: str, count: int) -> Iterator[str]:
    for event in client.completions.create(
        model=STORIES, prompt=prompt, max_tokens=count, stream=True
    ):
        if event.choices[0].text:
            yield event.choices[0].text


def _compare_company(client: OpenAI, screen: Screen) -> bool:
    """Continue eight beginnings one after another, then at once."""

    def whole(beginning: str) -> str:
        return "".join(_stream(client, beginning, TOKENS_EACH))

    began = time.monotonic()
    alone = [whole(beginning) for beginning in BEGINNINGS]
    middle = time.monotonic()
    with ThreadPoolExecutor(len(BEGINNINGS)) as pool:
        together = list(pool.map(whole, BEGINNINGS))
    ended = time.monotonic()
    screen.fact(
        "at once",
        f"{len(BEGINNINGS)} stories in {ended - middle:.2f} s, one after another in "
        f"{middle - began:.2f} s: {(middle - began) / (ended - middle):.1f} times as fast",
    )
    screen.fact("texts", "each the same as alone", passed=alone == together)
    return alone == together


def _cached_tokens(client: OpenAI, prompt: str) -> int:
    used = 0
    for _ in range(2):
        answer = client.completions.create(model=STORIES, prompt=prompt, max_tokens=1)
        details = answer.usage.prompt_tokens_details if answer.usage else None
        used = (details.cached_tokens if details else None) or 0
    return used
