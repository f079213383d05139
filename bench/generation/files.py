"""Which files a run needs, and where those of earlier runs lie.

The proofs of an export of 135M parameters take minutes, so files stay: the peers' as long as the
sizes, what is built and the versions of the tools are the same, ours as long as the sources are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.client import ROOT, worker_environment
from bench.generation.cases import PEERLESS, options_of
from bench.generation.eager import MODEL
from bench.generation.ours import ours_name
from bench.make import MODULE_ARTIFACT, MODULE_WEIGHTS, job
from bench.peers import PEERS, REQUIREMENTS, Builder, install_peers, run_quietly
from bench.sizes import ModelSizes, ModuleSizes

__all__ = ["BUILDER", "Files", "gguf_name", "make_files", "make_gguf", "source_digest"]

SOURCES = ("export", "models", "runtime")
DONE = ".done"
"""In a folder whose files are all there."""

INT4 = ("accuracy_level=4", "block_size=32")
"""What our own int4 files have; both are the builder's defaults for the CPU. A precision that names
other blocks has those."""


BUILDER = {"genai": (), "tuned": ("prune_lm_head=true",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Files:
    """Where everything lies."""

    peers: Path
    """The saved model, and a folder for each graph of the builder."""
    ours: Path
    """Our files of the same model, by precision."""
    tiny: Path
    """Our file of the small model."""
    module: Path
    """The attention module's folder."""

    @property
    def artifact(self) -> Path:
        """Our file of the attention module."""
        return self.module / MODULE_ARTIFACT

    @property
    def weights(self) -> Path:
        """Its weights for PyTorch."""
        return self.module / MODULE_WEIGHTS


def make_files(
    folder: Path,
    sizes: ModelSizes,
    tiny: ModelSizes,
    module: ModuleSizes,
    *,
    precisions: Sequence[str],
    note: Callable[[str], None],
    provider: str = "cpu",
    requirements: Path = REQUIREMENTS,
    packages: Path = PEERS,
    builder: Sequence[str] = ("tuned",),
) -> Files:
    """Make what is missing.

    Args:
        folder: Where all of it goes.
        sizes: The language model.
        tiny: The one that shows what Python does.
        module: The attention module.
        precisions: Of the language model.
        note: Told what is being made.
        provider: The builder's `-e`.
        requirements: The peers.
        packages: Where they are installed.
        builder: The graphs of the builder: "genai", as it makes them, and "tuned".

    Raises:
        RuntimeError: Something could not be made; carries what was said last.
    """
    install_peers(requirements, packages)
    build = Builder(provider=provider, packages=packages)
    key = _digest(
        json.dumps([asdict(sizes), provider, INT4]),
        requirements.read_text(encoding="utf-8"),
        version("transformers"),
    )
    peers = folder / f"{sizes.name}-{provider}-{key}"
    saved = peers / MODEL
    _once(saved, note, lambda: job("model", folder=str(saved), sizes=asdict(sizes)))
    for precision in precisions:
        if precision in PEERLESS:
            continue
        name, _, size = precision.partition("-")
        quantised = INT4 if name == "int4" else ()
        if size:
            quantised = (*quantised[:1], f"block_size={size}")
        for runtime in builder:
            built, extra = peers / f"{runtime}-{precision}", (*quantised, *BUILDER[runtime])
            _once(built, note, partial(build, saved, built, name, extra))
    own = folder / f"ours-{source_digest()}"
    _forget_older(folder, own)
    ours = own / f"{sizes.name}-{provider}-{options_of('fp32', provider)['target']}"
    ours.mkdir(parents=True, exist_ok=True)
    for precision in precisions:
        options = options_of(precision, provider)
        _artifact(saved, ours / ours_name(precision), sizes, options, note)
    small = folder / f"{tiny.name}-{_digest(json.dumps(asdict(tiny)))}" / MODEL
    _once(small, note, lambda: job("model", folder=str(small), sizes=asdict(tiny)))
    _artifact(small, own / f"{tiny.name}.onnx", tiny, {}, note)
    attention = own / f"attention-{module.embed_dim}-{module.num_heads}"
    _once(attention, note, lambda: job("attention", folder=str(attention), sizes=asdict(module)))
    return Files(peers=peers, ours=ours, tiny=own / f"{tiny.name}.onnx", module=attention)


def gguf_name(kind: str) -> str:
    """Of a file in the peers' folder."""
    return f"gguf-{kind}/model.gguf"


def make_gguf(peers: Path, kind: str, note: Callable[[str], None]) -> None:
    """Write the saved model as GGUF, unless it is there.

    Args:
        peers: The peers' folder.
        kind: Of the file.
        note: Told what is being made.

    Raises:
        RuntimeError: It could not be written; carries what was said last.
    """
    path = peers / gguf_name(kind)
    command = [sys.executable, "-m", "bench.gguf_file", str((peers / MODEL).resolve())]
    command += [str(path.resolve()), "--type", kind]
    _once(path.parent, note, lambda: run_quietly(command, worker_environment(1)))


def source_digest(root: Path = ROOT) -> str:
    """Of everything that decides what our files hold: a hash of the packages' Python files."""
    digest = hashlib.sha256()
    for path in sorted(p for part in SOURCES for p in (root / part).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _artifact(
    model: Path,
    path: Path,
    sizes: ModelSizes,
    options: Mapping[str, Any],
    note: Callable[[str], None],
) -> None:
    """Export; the file appears whole or not at all."""
    if path.is_file():
        return
    note(f"exporting {sizes.name} {' '.join(map(str, options.values()))}")
    job(
        "artifact",
        model=str(model),
        path=str(path),
        max_seq_len=sizes.max_seq_len,
        options=dict(options),
    )


def _once(folder: Path, note: Callable[[str], None], fill: Callable[[], object]) -> None:
    """Fill a folder, unless it is full already."""
    if (folder / DONE).exists():
        return
    note(f"making {folder.parent.name}/{folder.name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    fill()
    (folder / DONE).touch()


def _forget_older(folder: Path, own: Path) -> None:
    """Half a gigabyte each, of sources that are gone."""
    for older in folder.glob("ours-*"):
        # Logs of the processes are called after the subjects, which begin so too.
        if older.is_dir() and older != own:
            shutil.rmtree(older)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
