"""Write a bundle: whole or not at all, and only if its model repeats what PyTorch computed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from causal_onnx.runtime.artifact.artifact import Artifact, read_artifact
from causal_onnx.runtime.artifact.drafts import draft_folder, exchange, sync
from causal_onnx.runtime.artifact.folder import MODEL, model_file
from causal_onnx.runtime.artifact.golden import GoldenSet
from causal_onnx.runtime.artifact.graph_parts import GraphParts, read_graph_parts
from causal_onnx.runtime.bundle import tensor_proto
from causal_onnx.runtime.bundle.genai_config import genai_config
from causal_onnx.runtime.bundle.generation_settings import (
    GENERATION_CONFIG,
    generation_settings,
    settings_bytes,
)
from causal_onnx.runtime.bundle.manifest import (
    CONTRACT,
    GOLDENS,
    file_entry,
    files_below,
    goldens_bytes,
    manifest_bytes,
)
from causal_onnx.runtime.bundle.readme import bundle_readme
from causal_onnx.runtime.bundle.replay import replay_streams, stream_plans
from causal_onnx.runtime.bundle.triton_config import triton_config
from causal_onnx.runtime.bundle.weights import BESIDE_FROM_BYTES, write_beside
from causal_onnx.runtime.contract import LAST_ONLY, Contract
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.model import Model, load
from causal_onnx.runtime.request.request import RequestChecker
from causal_onnx.runtime.text.tokenizer import read_tokenizer

__all__ = ["check_bundle_target", "write_bundle"]

TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""What tokenizers of Hugging Face's layout consist of; `tokenizer.json` is enough."""
MORE_TEMPLATES = "additional_chat_templates"
"""A folder of more chat templates, each a .jinja file."""
FEATURES = "preprocessor_config.json"
"""How a model's features are made of sound, for whoever makes them."""
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt")
"""What must go with weights wherever they go."""


def write_bundle(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    replace: bool = False,
    device: str = "cpu",
) -> list[str]:
    """Write a model as a folder for other languages and runtimes.

    Args:
        model: An exported .onnx file, or the folder of one.
        folder: The folder to write. It appears whole or not at all.
        tokenizer: A tokenizer.json, or a folder with one. None: that of `checkpoint`.
        checkpoint: A folder in Hugging Face's layout, whose tokenizer, chat template, generation
            settings and licence are copied, as far as it has them. None: the folder of the
            tokenizer, or else of the model.
        replace: Replace an existing bundle.
        device: The device that replays the golden vectors, as for `load`.

    Returns:
        The files of the bundle, relative to it, sorted.

    Raises:
        FileNotFoundError: There is no such model, tokenizer or checkpoint.
        FileExistsError: `folder` exists, and is neither an empty folder nor a bundle to replace.
        ArtifactError: The model has no contract or no golden vectors, or does not repeat them.
        DeviceError: The device cannot be used.
    """
    path, target = model_file(model), Path(folder)
    artifact = read_artifact(path)
    if artifact.contract is None or artifact.golden is None or not artifact.golden.cases:
        raise ArtifactError(
            f"{artifact.name} carries no {'contract' if artifact.contract is None else 'golden'}"
            f"{'' if artifact.contract is None else ' vectors'}; a bundle is made from a file that "
            "causal-onnx exported"
        )
    check_bundle_target(target, replace)
    beside = _find_beside(
        path,
        tokenizer=None if tokenizer is None else Path(tokenizer),
        checkpoint=Path(model) if checkpoint is None and Path(model).is_dir() else checkpoint,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(target) as draft:
        draft.chmod(0o755)  # so far nobody else may read it
        parts = _copy_model(path, draft)
        # From here on the copy, which is what the hashes are of.
        # One thread: what the model gives goes into the test data, and must be the same again.
        copied = load(draft / MODEL, device=device, threads=1)
        _fill(draft, copied, parts, read_artifact(draft / MODEL), beside)
        files = files_below(draft)[0]
        _move(draft, target)
    return files


def check_bundle_target(target: Path, replace: bool) -> None:
    """Find out whether a bundle may be put at `target`.

    Raises:
        FileExistsError: Something is in the way that is not to be replaced.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise FileExistsError(f"{target} is not a folder; choose another place")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / CONTRACT).is_file() or not (target / MODEL).is_file():
        raise FileExistsError(f"{target} is not empty and not a bundle; choose another folder")
    if not replace:
        raise FileExistsError(f"{target} already holds a bundle; replace=True replaces it")


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """What goes along with the model."""

    files: Mapping[str, Path]
    """By its name in the bundle."""
    settings: Path | None
    """The folder with generation_config.json and config.json, as far as there are any; None: what
    lies there is not known to be of this model."""


def _find_beside(
    model: Path, *, tokenizer: Path | None, checkpoint: str | os.PathLike[str] | None
) -> _Beside:
    files: dict[str, Path] = {}
    if checkpoint is not None:
        place = Path(checkpoint)
        if not place.is_dir():
            raise FileNotFoundError(f"there is no folder {place}")
        along = (*LICENCES, FEATURES)
        files |= {name: place / name for name in along if (place / name).is_file()}
    elif tokenizer is not None:
        place = tokenizer if tokenizer.is_dir() else tokenizer.parent
    else:
        place = model.parent
    main = tokenizer or place
    main = main / TOKENIZER if main.is_dir() else main
    if main.is_file():
        _check_tokenizer(main)
        files[TOKENIZER] = main
    elif tokenizer is not None:
        raise FileNotFoundError(f"there is no tokenizer {main}")
    is_known = main.is_file() or checkpoint is not None
    if is_known:
        others = [main.with_name(name) for name in TOKENIZER_FILES[1:]]
        files |= {path.name: path for path in others if path.is_file()}
        more = main.with_name(MORE_TEMPLATES)
        files |= {f"{MORE_TEMPLATES}/{path.name}": path for path in sorted(more.glob("*.jinja"))}
    return _Beside(files=files, settings=place if is_known else None)


def _check_tokenizer(path: Path) -> None:
    try:
        json.loads(read_tokenizer(path))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a tokenizer: it is not JSON ({error})") from error


def _fill(
    draft: Path, model: Model, parts: GraphParts, artifact: Artifact, beside: _Beside
) -> None:
    """Write everything beside the model."""
    contract, golden = artifact.contract, artifact.golden
    assert contract is not None
    assert golden is not None
    for index, (case, results) in enumerate(
        zip(golden.cases, _replayed(model, golden), strict=True)
    ):
        _write_test_data(draft / f"test_data_set_{index}", contract, parts, case.inputs, results)
    (draft / GOLDENS).write_bytes(goldens_bytes(golden, contract))
    (draft / "config.pbtxt").write_bytes(triton_config(contract))
    for name, file in beside.files.items():
        (draft / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, draft / name)
    settings = generation_settings(contract, beside.settings)
    if settings:
        (draft / GENERATION_CONFIG).write_bytes(settings_bytes(settings))
    for_genai = genai_config(contract, artifact.certificate, settings)
    if for_genai is not None:
        (draft / "genai_config.json").write_bytes(for_genai)
    files = sorted([*files_below(draft)[0], "README.md", CONTRACT])
    (draft / "README.md").write_bytes(bundle_readme(contract, files))
    listed = {name: _entry(draft / name) for name in files if name != CONTRACT}
    (draft / CONTRACT).write_bytes(manifest_bytes(artifact, listed))


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return file_entry(file)


def _copy_model(path: Path, draft: Path) -> GraphParts:
    """Copy the model, and the files that hold its weights; large ones that it holds go beside."""
    with path.open("rb", buffering=0) as file:
        parts = read_graph_parts(file, name=str(path))
    if not parts.data_files and path.stat().st_size >= BESIDE_FROM_BYTES:
        write_beside(path, draft)
        return parts
    shutil.copyfile(path, draft / MODEL)
    for name in parts.data_files:
        if PurePosixPath(name).name != name or "\\" in name or name in (MODEL, "", ".", ".."):
            raise ArtifactError(
                f"{path} keeps weights in {name!r}; a bundle takes plain file names beside the "
                "model, as causal-onnx writes them"
            )
        source = path.with_name(name)
        if source.is_symlink() or not source.is_file():
            raise ArtifactError(f"{path} keeps weights in {name!r}, which must lie beside it")
        shutil.copyfile(source, draft / name)
    return parts


def _replayed(model: Model, golden: GoldenSet) -> list[Mapping[str, Any]]:
    """What the model gives for each golden vector, after it was found to be what PyTorch gave.

    Where the record is whole, it is PyTorch's own.
    """
    results: list[Mapping[str, Any]] = []
    errors = []
    for case in golden.cases:
        got = model.run(**case.inputs)
        errors.append(case.error(got))
        whole = {
            name: kept.reshape(shape)
            for name, (shape, stride, kept) in case.outputs.items()
            if stride == 1
        }
        results.append({**got, **whole})
    streams = replay_streams(model, golden, stream_plans(golden, model.contract))
    worst = max([*errors, *(case.error for case in streams)])
    if not worst <= golden.tolerance:
        raise ArtifactError(
            f"the model does not repeat its golden vectors on {model.device}: largest error "
            f"{worst:.1e}, limit {golden.tolerance:.0e}; see `causal-onnx selftest` and `doctor`"
        )
    return results


def _write_test_data(
    folder: Path,
    contract: Contract,
    parts: GraphParts,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
) -> None:
    """One call in the layout of ONNX's own tests: files numbered in the graph's order."""
    folder.mkdir()
    feeds = RequestChecker(contract, cast=True).check((), inputs).feeds
    dtypes = {spec.name: spec.dtype for spec in (*contract.inputs, *contract.outputs)}
    if contract.last_only is not None:
        # An input that may be left out, and is no part of the contract's; test runners want it.
        feeds, dtypes[LAST_ONLY] = {**feeds, LAST_ONLY: np.zeros((), np.bool_)}, "bool"
    for kind, names, values in (
        ("input", parts.inputs, feeds),
        ("output", parts.outputs, outputs),
    ):
        for index, name in enumerate(names):
            if name in dtypes:
                content = tensor_proto.encode(name, values[name], dtypes[name])
                (folder / f"{kind}_{index}.pb").write_bytes(content)


def _move(draft: Path, target: Path) -> None:
    """Put the finished folder in its place; a bundle that is there goes only then."""
    for name in files_below(draft)[0]:
        sync(draft / name)
    if not target.is_dir() or not any(target.iterdir()):
        draft.replace(target)
    elif not exchange(draft, target):
        # In two steps, then; what a killed process leaves between them is no draft to remove.
        old = draft.with_suffix(".old")
        target.rename(old)
        try:
            draft.replace(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
