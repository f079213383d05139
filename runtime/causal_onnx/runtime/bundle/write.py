"""Write a bundle: whole or not at all, and only if its model repeats what PyTorch computed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from causal_onnx.runtime.artifact.artifact import Artifact, read_artifact
from causal_onnx.runtime.artifact.drafts import draft_folder, exchange, sync
from causal_onnx.runtime.artifact.golden import GoldenSet
from causal_onnx.runtime.artifact.graph_parts import GraphParts, read_graph_parts
from causal_onnx.runtime.bundle import tensor_proto
from causal_onnx.runtime.bundle.genai_config import genai_config
from causal_onnx.runtime.bundle.manifest import (
    CONTRACT,
    GOLDENS,
    MODEL,
    file_entry,
    files_below,
    goldens_bytes,
    manifest_bytes,
)
from causal_onnx.runtime.bundle.readme import bundle_readme
from causal_onnx.runtime.bundle.replay import replay_streams, stream_plans
from causal_onnx.runtime.bundle.triton_config import triton_config
from causal_onnx.runtime.contract import LAST_ONLY, Contract
from causal_onnx.runtime.errors import ArtifactError
from causal_onnx.runtime.json_text import read_json_file
from causal_onnx.runtime.model import Model, load
from causal_onnx.runtime.request.request import RequestChecker
from causal_onnx.runtime.text.tokenizer import read_tokenizer, token_ids

__all__ = ["write_bundle"]

TOKENIZER = "tokenizer.json"
TOKENIZER_FILES = (
    TOKENIZER,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
"""What tokenizers of Hugging Face's layout consist of; `tokenizer.json` is enough."""
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_bundle(
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    replace: bool = False,
    device: str = "cpu",
) -> list[str]:
    """Write a model as a folder for other languages and runtimes.

    Args:
        model: An exported .onnx file.
        folder: Where the bundle goes. It appears whole or not at all.
        tokenizer: A tokenizer.json, or a folder with one. None: the one beside the model, if there
            is one.
        replace: Put the new bundle in the place of a bundle that is there.
        device: Where the golden vectors are replayed, as for `load`.

    Returns:
        The files of the bundle, relative to it, sorted.

    Raises:
        FileNotFoundError: There is no such model or tokenizer.
        FileExistsError: `folder` exists, and is not an empty folder or a bundle to replace.
        ArtifactError: The model carries no contract or no golden vectors, or does not repeat them.
        DeviceError: The device cannot be used.
    """
    path, target = Path(model), Path(folder)
    artifact = read_artifact(path)
    if artifact.contract is None or artifact.golden is None or not artifact.golden.cases:
        raise ArtifactError(
            f"{artifact.name} carries no {'contract' if artifact.contract is None else 'golden'}"
            f"{'' if artifact.contract is None else ' vectors'}; a bundle is made of a file that "
            "causal-onnx exported"
        )
    _check_target(target, replace)
    texts = _tokenizer_files(path, tokenizer)
    target.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(target) as draft:
        draft.chmod(0o755)  # so far nobody else may read it
        parts = _copy_model(path, draft)
        # From here on the copy, which is what the hashes are of.
        # One thread: what the model gives goes into the test data, and must be the same again.
        copied = load(draft / MODEL, device=device, threads=1)
        _fill(draft, copied, parts, read_artifact(draft / MODEL), texts)
        files = files_below(draft)[0]
        _move(draft, target)
    return files


def _check_target(target: Path, replace: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise FileExistsError(f"{target} is in the way: it is not a folder")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / CONTRACT).is_file() or not (target / MODEL).is_file():
        raise FileExistsError(f"{target} is not empty, and not a bundle: choose another folder")
    if not replace:
        raise FileExistsError(f"{target} holds a bundle already; replace=True replaces it")


def _tokenizer_files(model: Path, tokenizer: str | os.PathLike[str] | None) -> list[Path]:
    """The files of the tokenizer that exist."""
    given = model.parent if tokenizer is None else Path(tokenizer)
    main = given / TOKENIZER if given.is_dir() else given
    if not main.is_file():
        if tokenizer is None:
            return []
        raise FileNotFoundError(f"there is no tokenizer {main}")
    try:
        json.loads(read_tokenizer(main))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{main} is no tokenizer: it is not JSON ({error})") from error
    others = [main.with_name(name) for name in TOKENIZER_FILES[1:]]
    return [main, *(path for path in others if path.is_file())]


def _fill(
    draft: Path, model: Model, parts: GraphParts, artifact: Artifact, tokenizer: list[Path]
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
    for file in tokenizer:
        name = TOKENIZER if file == tokenizer[0] else file.name
        shutil.copyfile(file, draft / name)
    settings = genai_config(contract, artifact.certificate, _special_tokens(tokenizer))
    if settings is not None:
        (draft / "genai_config.json").write_bytes(settings)
    files = sorted([*files_below(draft)[0], "README.md", CONTRACT])
    (draft / "README.md").write_bytes(bundle_readme(contract, files))
    listed = {name: _entry(draft / name) for name in files if name != CONTRACT}
    (draft / CONTRACT).write_bytes(manifest_bytes(artifact, listed))


def _entry(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return file_entry(file)


def _copy_model(path: Path, draft: Path) -> GraphParts:
    """Copy the model, and the files that hold its weights, if there are any."""
    shutil.copyfile(path, draft / MODEL)
    with (draft / MODEL).open("rb", buffering=0) as file:
        parts = read_graph_parts(file, name=str(path))
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


def _special_tokens(tokenizer: list[Path]) -> dict[str, int | Sequence[int]]:
    """Ids of special tokens, from the configuration files beside the tokenizer."""
    found: dict[str, int | Sequence[int]] = {}
    if not tokenizer:
        return found
    for name in ("config.json", "generation_config.json"):
        path = tokenizer[0].with_name(name)
        if not path.is_file():
            continue
        try:
            document = read_json_file(path)
        except ValueError as error:
            raise ArtifactError(f"{path} is not JSON: {error}") from error
        for key in SPECIAL:
            value: Any = document.get(key) if isinstance(document, dict) else None
            if value is None or (value == -1 and key != "eos_token_id"):  # both say: there is none
                continue
            ids = token_ids(value, f"{key} in {path}")
            # Some models have several ends of text.
            if key == "eos_token_id" or isinstance(value, int):
                found[key] = list(ids) if isinstance(value, list) else value
    return found


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
