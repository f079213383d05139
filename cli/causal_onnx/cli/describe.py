"""Say in words what a file tells about itself; shared by `inspect` and `report`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from causal_onnx.runtime.contract import describe_all

if TYPE_CHECKING:
    from causal_onnx.cli.certificate import CacheFinding, StoredCertificate
    from causal_onnx.runtime import Artifact, Contract

__all__ = [
    "cache_table",
    "contract_pairs",
    "file_pairs",
    "file_rows",
    "parity_summary",
    "parity_table",
    "size_text",
    "source_pairs",
]

Pairs = list[tuple[str, str]]


def file_pairs(artifact: Artifact) -> Pairs:
    """Size, versions and writer of the file."""
    header = artifact.header
    opsets = ", ".join(
        f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(header.opsets.items())
    )
    return [
        ("size", size_text(header.size_bytes)),
        ("opset", opsets or "not stated"),
        ("IR version", str(header.ir_version)),
        ("written by", header.producer or "not stated"),
    ]


def file_rows(sizes: Mapping[str, int]) -> list[list[str]]:
    """Rows of a table, name and size, of the files in a model's folder, in their order.

    Args:
        sizes: Size in bytes by name; files in folders inside are counted, not named, as golden
            vectors are dozens of them.
    """
    inside = {name: size for name, size in sizes.items() if "/" in name}
    rows = [[name, size_text(size)] for name, size in sizes.items() if name not in inside]
    folders = sorted({name.partition("/")[0] for name in inside})
    if folders:
        named = folders[0] if len(folders) == 1 else f"{folders[0]} to {folders[-1]}"
        count = "one file" if len(inside) == 1 else f"{len(inside)} files"
        rows.append([f"{named}: {count}", size_text(sum(inside.values()))])
    return rows


def contract_pairs(contract: Contract) -> Pairs:
    """What the model takes and gives, one line each."""
    batch = "may be left out" if contract.unbatched else "must be given"
    has_batch = any(spec.axis_of("batch") is not None for spec in contract.inputs)
    return [
        *(("input", text) for text in describe_all(contract.inputs)),
        *(("output", text) for text in describe_all(contract.outputs)),
        ("seq", _lengths_text(contract)),
        ("batch axis", batch if has_batch else "none"),
        ("KV cache", _cache_text(contract)),
        *_adapter_pairs(contract),
        ("form", contract.form),
        ("precision", contract.precision),
        *_token_pairs(contract),
    ]


def _adapter_pairs(contract: Contract) -> Pairs:
    if not contract.adapters:
        return []
    count = len(contract.adapters)
    return [("adapters", f"of {count} layer{'s' * (count > 1)}, by row; may be left out")]


def _token_pairs(contract: Contract) -> Pairs:
    named = (
        ("ends a text", contract.eos_token_ids),
        ("begins a text", (contract.bos_token_id,)),
        ("pads with", (contract.pad_token_id,)),
    )
    return [
        (what, ", ".join(str(token) for token in ids if token is not None))
        for what, ids in named
        if ids not in ((), (None,))
    ]


_READ_ALONE = {
    "packed_steps": " (a stream then reads longer chunks of each by itself)",
    "none": " (a stream then reads each by itself)",
    "steps": " (a stream then reads each by itself, with one position per call after a past)",
    "single": " (a stream then reads each by itself, with one position per call)",
}
"""By `Contract.ragged`."""


def _cache_text(contract: Contract) -> str:
    if not contract.cache:
        return "none"
    sequences = (
        "sequences of a call may differ in length"
        if contract.mask
        else "sequences of a call must be equally long"
    )
    sequences += _READ_ALONE.get(contract.ragged, "")
    once = [pair for pair in contract.cache if pair.computed_from]
    bounds = [pair for pair in contract.cache if pair.bounded is not None and pair not in once]
    kept = (
        f"; {len(bounds)} of {len(contract.cache)} hold the last positions only" if bounds else ""
    )
    if once:
        read = ", ".join(spec.name for spec in contract.inputs if spec.name in contract.once_names)
        kept += f"; {len(once)} of {len(contract.cache)} are computed once, from {read}"
    computed = [item.name for item in contract.computed]
    names = ["past inputs", *(["the mask"] if contract.mask else []), *computed]
    left_out = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"yes; {sequences}{kept}; {left_out} may be left out"


def _lengths_text(contract: Contract) -> str:
    least, most = contract.min_seq_len, contract.max_seq_len
    if most is None:
        return f"{least} and longer, no limit is known"
    return f"{most} only" if least == most else f"{least} to {most}"


def source_pairs(source: dict[str, Any]) -> Pairs:
    """What was exported, as the file tells it."""
    return [(key.replace("_", " "), _value_text(value)) for key, value in source.items()]


def _value_text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


def parity_summary(certificate: StoredCertificate) -> str:
    """The verdict on equality with PyTorch, on one line."""
    if certificate.is_equal is None:
        return "not stated"
    compared = sum(not case.refused for case in certificate.shapes)
    verdict = "equal to PyTorch" if certificate.is_equal else "NOT equal to PyTorch"
    measured = certificate.max_error
    largest = "" if measured is None else f"largest error {measured:.1e} of the output's scale, "
    unit = " of the output's scale" if measured is None else ""
    return f"{verdict} at {compared} shapes: {largest}limit {certificate.tolerance:.0e}{unit}"


def parity_table(certificate: StoredCertificate) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: one row per length, one column per batch size, cells the result."""
    batches = list(dict.fromkeys(case.batch for case in certificate.shapes))
    # Of several calls of one shape (with and without padding, say) the worst is shown.
    worst = sorted(certificate.shapes, key=lambda case: (not case.passed, case.error or 0.0))
    cells = {(case.seq, case.batch): case for case in worst}
    headers = ["seq", *("no batch" if b is None else f"batch {b}" for b in batches)]
    rows = []
    for seq in sorted({case.seq for case in certificate.shapes}):
        row = [str(seq)]
        for batch in batches:
            case = cells.get((seq, batch))
            if case is None:
                row.append("-")
            elif case.refused:
                row.append("refused")
            else:
                text = "equal" if case.passed else "differs"
                text = text if case.error is None else f"{case.error:.1e}"
                row.append(f"{text}{'' if case.passed else ' !'}")
        rows.append(row)
    return headers, rows


def cache_table(finding: CacheFinding) -> tuple[list[str], list[list[str]]]:
    """Headers and rows: per way of feeding how often it was tried and the largest error."""
    feedings = list(dict.fromkeys(case.feeding for case in finding.cases))
    rows = []
    for feeding in feedings:
        cases = [case for case in finding.cases if case.feeding == feeding]
        passed = all(case.passed for case in cases)
        worst = max((case.error for case in cases if case.error is not None), default=None)
        error = f"within {finding.tolerance:.0e}" if worst is None else f"{worst:.1e}"
        rows.append([feeding, "passed" if passed else "FAILED", str(len(cases)), error])
    return ["fed as", "result", "times", "error"], rows


def size_text(size_bytes: int) -> str:
    """A size in the unit that leaves few digits; the exact number where that is small."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.2f} {unit}"
    return f"{size_bytes} bytes"
