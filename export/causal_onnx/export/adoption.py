"""adopt: a model's folder of a decoder that another exporter wrote, proven and recorded like ours.

No PyTorch takes part, so no parity with it is stated: what the file itself computes is recorded,
and that its cache, its mask and its chunks do what its contract says is tried by running it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, inliner, numpy_helper

from causal_onnx.export.attestation import Progress, attest
from causal_onnx.export.errors import ExportError
from causal_onnx.export.proof.certificate import Certificate
from causal_onnx.runtime.artifact.artifact import Artifact, read_artifact
from causal_onnx.runtime.artifact.drafts import check_target, draft_folder
from causal_onnx.runtime.artifact.folder import MODEL, model_file
from causal_onnx.runtime.artifact.golden import GoldenCase, GoldenSet, relative_error
from causal_onnx.runtime.artifact.graph_parts import read_graph_parts
from causal_onnx.runtime.bundle import write_bundle
from causal_onnx.runtime.bundle.write import check_bundle_target
from causal_onnx.runtime.contract import (
    CERTIFICATE_KEY,
    CONTRACT_KEY,
    FORMAT,
    GOLDEN_KEY,
    SOURCE_KEY,
    ComputedInput,
    Contract,
)
from causal_onnx.runtime.errors import ArtifactError, RunError
from causal_onnx.runtime.model import Model, load

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["Adopted", "adopt", "decoder_file"]

TOLERANCES = {"fp16": 2e-2, "bf16": 5e-2}
"""How closely a call must repeat another that gives the same in exact numbers, relative to the
output's scale; fp32: 1e-3."""

MERGED, WITH_PAST = "decoder_model_merged.onnx", "decoder_with_past_model.onnx"
PREFIX = "causal_onnx/"


@dataclass(frozen=True, kw_only=True)
class Adopted:
    """What was written."""

    source: Path
    """The file of the other exporter."""
    files: tuple[str, ...]
    """Of the folder, relative to it."""
    contract: Contract
    certificate: Certificate
    changes: tuple[str, ...]
    """How the model differs from the file, in words."""


def adopt(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    contract: Contract | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    undecided_ok: bool = False,
    replace_existing: bool = False,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Adopted:
    """Make a model's folder from a decoder that another exporter wrote.

    The file is attested and run: in chunks, and with sequences of different lengths, it must return
    what one pass over each sequence returns. Its outputs become the golden vectors of the folder.

    Args:
        source: The .onnx file, or a folder with one decoder that has a cache (itself or `onnx/`).
        folder: Where the model's folder goes. It appears whole or not at all.
        contract: What the file takes and returns; None: derived from its names, its sizes and the
            config beside it.
        tokenizer: A tokenizer.json, or a folder with one. None: the one beside the file.
        undecided_ok: Adopt a file whose causality is undecided. The certificate in the folder says
            so.
        replace_existing: Replace an existing folder of a model.
        device: The device that runs the file, as for `load`.
        progress: Called with (stage, done, total), as by `attest`.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: `folder` exists, and is neither an empty folder nor a bundle to replace.
        ArtifactError: causal-onnx wrote the file itself, its layout is not known, or there are
            several files.
        UnsafeFileError: The file holds something that exports do not.
        ExportError: The file is not causal, is not shown to be, or does not do what its contract
            says.
    """
    path, target = decoder_file(Path(source)), Path(folder)
    check_bundle_target(target, replace_existing)  # before minutes of proof
    check_target(target)
    artifact = read_artifact(path)
    if artifact.contract is not None:
        raise ArtifactError(
            f"{path} already carries a contract, so causal-onnx wrote it. Make a folder of it: "
            f"causal-onnx bundle {path} -o {target}"
        )
    outer = artifact.derived_contract if contract is None else contract
    if outer.ragged in ("steps", "single"):
        raise ArtifactError(
            f"{path} takes one position per call after a past, like the files that optimum wrote "
            "before 1.14; readers of a model's folder pass several. The file runs as it is: "
            "load(path). To adopt it, export the model again with a newer optimum"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with draft_folder(target.with_name(f"{target.name}.adopted")) as draft:
        plain, final = draft / f"plain-{MODEL}", draft / MODEL
        _bring_weights(path, draft)
        proto, changes = _cleaned(onnx.load(path, load_external_data=False))
        _write(proto, plain, {CONTRACT_KEY: outer.to_json()})
        inner, moved = computed_inside(proto, outer)
        changes += moved
        _write(proto, final, {CONTRACT_KEY: inner.to_json()})
        certificate = _attested(final, path, undecided_ok=undecided_ok, progress=progress)
        tolerance = TOLERANCES.get(inner.precision, 1e-3)
        goldens = _recorded(load(plain, device=device, threads=1), tolerance)
        plain.unlink()
        _check_cache(load(final, device=device, threads=1), goldens, path, tolerance)
        told = {
            SOURCE_KEY: _source_document(path, artifact, changes),
            GOLDEN_KEY: goldens.to_json(),
            CERTIFICATE_KEY: certificate.to_json(),
        }
        _write(proto, final, {CONTRACT_KEY: inner.to_json(), **told})
        above = path.parent.parent if path.parent.name == "onnx" else path.parent
        files = write_bundle(
            final,
            target,
            tokenizer=tokenizer,
            checkpoint=above,
            replace=replace_existing,
            device=device,
        )
    return Adopted(
        source=path,
        files=tuple(files),
        contract=inner,
        certificate=certificate,
        changes=tuple(changes),
    )


def decoder_file(place: Path) -> Path:
    """The decoder in a folder of another exporter, or the file itself.

    Raises:
        FileNotFoundError: There is nothing at `place`.
        ArtifactError: The folder has no decoder with a cache, or several.
    """
    if not place.is_dir():
        return model_file(place)
    usable, others = [], []
    for path in sorted([*place.glob("*.onnx"), *(place / "onnx").glob("*.onnx")]):
        artifact = read_artifact(path)
        try:
            found = artifact.contract or artifact.derived_contract
        except ArtifactError as error:
            others.append(str(error))
            continue
        if found.cache:
            usable.append(path)
        else:
            others.append(f"{path} has no cache")
    if any(path.name == MERGED for path in usable):
        usable = [path for path in usable if path.name != WITH_PAST]
    if len(usable) > 1:
        raise ArtifactError(
            f"{place} has several decoders; name one: {', '.join(str(path) for path in usable)}"
        )
    if not usable:
        raise ArtifactError(
            f"{place} has no decoder with a cache: {'; '.join(others) or 'it has no .onnx file'}"
        )
    return usable[0]


def computed_inside(proto: onnx.ModelProto, contract: Contract) -> tuple[Contract, list[str]]:
    """Let the graph compute those inputs itself that the runtime would compute; `proto` changes.

    What remains is the interface of our own exports, so that runtimes in other languages need not
    know about positions and flags.

    Returns:
        The contract without these inputs, and what was done, in words.
    """
    if not contract.cache or _opset(proto) < 13:
        return contract, []
    specs = {spec.name: spec for spec in contract.inputs}
    past = contract.cache[0].past
    axis = specs[past].axes.index("past_seq")
    length = f"{PREFIX}past_seq"
    nodes = [
        helper.make_node("Shape", [past], [f"{PREFIX}past_shape"]),
        _constant(f"{PREFIX}axis", np.array([axis])),
        helper.make_node("Gather", [f"{PREFIX}past_shape", f"{PREFIX}axis"], [length]),
    ]
    done = []
    for item in contract.computed:
        spec = specs[item.name]
        if item.rule == "has_past":
            nodes += _has_past(item, length, rank=len(spec.axes))
        elif item.rule == "all_logits":
            nodes.append(_constant(item.name, np.zeros(spec.shape({}), spec.dtype)))
        elif contract.mask is not None and spec.axes == ("batch", "seq"):
            nodes += _positions(item, length, contract.mask, specs[contract.mask].dtype, spec.dtype)
        else:
            continue
        done.append(item)
    if not done:
        return contract, []
    names = {item.name for item in done}
    graph = proto.graph
    kept = [value for value in graph.input if value.name not in names]
    del graph.input[:]
    graph.input.extend(kept)
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *old])
    inner = replace(
        contract,
        inputs=tuple(spec for spec in contract.inputs if spec.name not in names),
        computed=tuple(item for item in contract.computed if item.name not in names),
    )
    return inner, [f"{', '.join(sorted(names))} computed in the graph"]


def _has_past(item: ComputedInput, length: str, *, rank: int) -> list[onnx.NodeProto]:
    zero, flag = f"{PREFIX}zero", item.name if rank == 1 else f"{PREFIX}has_past"
    nodes = [_constant(zero, np.array([0])), helper.make_node("Greater", [length, zero], [flag])]
    return nodes if rank == 1 else [*nodes, helper.make_node("Squeeze", [flag], [item.name])]


def _positions(
    item: ComputedInput, length: str, mask: str, mask_dtype: str, dtype: str
) -> list[onnx.NodeProto]:
    """max(cumsum(mask) - 1, 0) of the new columns, as `computed_inputs` of the runtime has it."""
    one = np.ones((), mask_dtype)
    names = {key: f"{PREFIX}{key}" for key in ("second", "one", "none", "end", "counts")}
    names |= {key: f"{PREFIX}{key}" for key in ("before", "all_positions", "new_positions", "axes")}
    return [
        _constant(names["second"], np.array(1)),
        _constant(names["one"], one),
        _constant(names["none"], np.zeros_like(one)),
        _constant(names["end"], np.array([np.iinfo(np.int64).max])),
        _constant(names["axes"], np.array([1])),
        helper.make_node("CumSum", [mask, names["second"]], [names["counts"]]),
        helper.make_node("Sub", [names["counts"], names["one"]], [names["before"]]),
        helper.make_node("Max", [names["before"], names["none"]], [names["all_positions"]]),
        helper.make_node(
            "Slice",
            [names["all_positions"], length, names["end"], names["axes"]],
            [names["new_positions"]],
        ),
        helper.make_node(
            "Cast",
            [names["new_positions"]],
            [item.name],
            to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)),
        ),
    ]


def _constant(name: str, value: Array) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(value))


def _opset(proto: onnx.ModelProto) -> int:
    found = (item.version for item in proto.opset_import if item.domain in ("", "ai.onnx"))
    return int(max(found, default=0))


def _cleaned(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Without what the scan of files refuses and a graph does not need; what was done, in words."""
    changes = []
    if proto.functions:
        count = len(proto.functions)
        changes.append(
            "one local function inlined" if count == 1 else f"{count} local functions inlined"
        )
        proto = inliner.inline_local_functions(proto)
    keys = sorted(item.key for item in proto.metadata_props)
    if keys:
        changes.append(f"metadata left out: {', '.join(keys)}")
    return proto, changes


def _write(proto: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    del proto.metadata_props[:]
    helper.set_model_props(proto, dict(sorted(metadata.items())))
    path.write_bytes(proto.SerializeToString(deterministic=True))


def _bring_weights(path: Path, draft: Path) -> None:
    """Copy the files that hold the weights, through links, as a Hugging Face cache has them."""
    with path.open("rb", buffering=0) as file:
        names = read_graph_parts(file, name=str(path)).data_files
    for name in names:
        if Path(name).name != name or name in ("", ".", "..", MODEL):
            raise ArtifactError(
                f"{path} keeps weights in {name!r}; expected a plain file name beside the model"
            )
        held = path.with_name(name)
        if not held.is_file():
            raise ArtifactError(f"{path} keeps weights in {name!r}, which must lie beside it")
        shutil.copyfile(held, draft / name)


def _attested(
    final: Path, path: Path, *, undecided_ok: bool, progress: Progress | None
) -> Certificate:
    found = attest(final, progress=progress)
    at = "" if found.offence is None else f', at {found.offence.op_type} "{found.offence.node}"'
    if found.verdict == "not_causal":
        raise ExportError(f"{path} is not causal{at}: {found.reason}; nothing was written")
    if not found.is_causal and not undecided_ok:
        raise ExportError(
            f"{path} is not shown to be causal{at}: {found.reason}; nothing was written. Look at "
            "it with `causal-onnx attest`; undecided_ok=True (--undecided-ok) adopts it anyway, "
            "and the certificate will say so"
        )
    # No times: equal files give equal folders.
    return replace(found, static_seconds=0.0, dynamic=replace(found.dynamic, seconds=0.0))


def _recorded(model: Model, tolerance: float) -> GoldenSet:
    """What the file gives for one position, one row of five and two rows of three."""
    contract, generator = model.contract, np.random.default_rng(7)
    taken = [spec for spec in contract.inputs if spec.name not in contract.optional_names]
    given = [spec.name for spec in contract.outputs if spec.name not in contract.present_names]
    vocab = taken[0].vocab_size
    if len(taken) != 1 or vocab is None or taken[0].axes != ("batch", "seq"):
        raise ArtifactError(
            "adopting needs a decoder of one input of ids (batch, seq), got "
            + ", ".join(spec.describe() for spec in taken)
        )
    ids = taken[0]
    cases = []
    longest = contract.max_seq_len or 5
    for shape in dict.fromkeys([(1, 1), (1, min(5, longest)), (2, min(3, longest))]):
        inputs = {ids.name: generator.integers(vocab, size=shape).astype(ids.dtype)}
        outputs = model.run(**inputs)
        cases.append(GoldenCase.record(inputs, {name: outputs[name] for name in given}))
    return GoldenSet(cases=cases, tolerance=tolerance)


def _check_cache(model: Model, goldens: GoldenSet, path: Path, tolerance: float) -> None:
    """Compare chunks, and rows of different lengths, with one pass over each row alone.

    Raises:
        ExportError: They differ, so that the contract is not that of the file.
    """
    contract = model.contract
    replayed = [case.error(model.run(**case.inputs)) for case in goldens.cases]
    _refuse_difference(path, "the graph that computes its inputs itself", replayed, tolerance)
    ids = next(spec for spec in contract.inputs if spec.vocab_size is not None)
    generator = np.random.default_rng(11)
    longest = min(9, contract.max_seq_len or 9)
    lengths = [longest, max(1, longest // 2), max(1, longest - 2)] if contract.mask else [longest]
    rows = [generator.integers(ids.vocab_size or 1, size=n).astype(ids.dtype) for n in lengths]
    alone = [model.run(row[None]) for row in rows]
    halves = [[n - n // 2 for n in lengths], [n // 2 for n in lengths]]
    steps = [[int(start < n // 2) for n in lengths] for start in range(longest // 2)]
    for what, plan in (
        ("whole rows", [lengths]),
        ("halves of rows", halves),
        ("halves and single steps", [halves[0], *steps]),
    ):
        try:
            found = _in_chunks(model, rows, [counts for counts in plan if any(counts)])
        except RunError as error:
            raise ExportError(
                f"{path} does not do what its contract says: {what} of different lengths: {error}"
            ) from error
        errors = [
            relative_error(got[name], whole[name][0])
            for got, whole in zip(found, alone, strict=True)
            for name in got
        ]
        _refuse_difference(path, f"{what} of different lengths", errors, tolerance)


def _in_chunks(
    model: Model, rows: Sequence[Array], plan: Sequence[Sequence[int]]
) -> list[dict[str, Array]]:
    """The outputs of each row, read together; a chunk of the plan says how many of each row."""
    stream = model.stream(batch=len(rows))
    found: list[dict[str, list[Array]]] = [{} for _ in rows]
    done = [0] * len(rows)
    for counts in plan:
        size = max(counts)
        chunk = np.zeros((len(rows), size), rows[0].dtype)
        for row, count in enumerate(counts):
            chunk[row, :count] = rows[row][done[row] : done[row] + count]
            done[row] += count
        uneven = len(set(counts)) > 1
        for name, value in stream.run(chunk, lengths=counts if uneven else None).items():
            for row, count in enumerate(counts):
                found[row].setdefault(name, []).append(value[row, :count])
    return [{name: np.concatenate(parts) for name, parts in row.items()} for row in found]


def _refuse_difference(path: Path, what: str, errors: Sequence[float], tolerance: float) -> None:
    worst = max(errors)
    if not worst <= tolerance:
        raise ExportError(
            f"{path} does not do what its contract says: {what} and one pass differ "
            f"(error {worst:.1e}, limit {tolerance:.0e}); nothing was written. Check the contract "
            "with `causal-onnx inspect`, or pass your own: contract="
        )


def _source_document(path: Path, artifact: Artifact, changes: Sequence[str]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    told = {
        "origin": "adopted: another exporter wrote the graph, and it was not compared with PyTorch",
        "written_by": artifact.header.producer or "not stated",
        "file": path.name,
        "file_sha256": digest.hexdigest(),
        "changes": list(changes),
        "onnx": onnx.__version__,
    }
    return json.dumps({"format": FORMAT, **told}, sort_keys=True, separators=(",", ":"))
