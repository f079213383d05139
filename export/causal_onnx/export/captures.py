"""The captures of a module, each as far as it is valid, best first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from causal_onnx.export.capture.capture import OLDEST_OPSET, Capture
from causal_onnx.export.capture.guards import Bound
from causal_onnx.export.capture.kept import captures_of
from causal_onnx.export.errors import ExportError, Stage
from causal_onnx.export.graph.bfloat16 import compute_wide
from causal_onnx.export.graph.cleanup import simplify
from causal_onnx.export.outcome import short
from causal_onnx.export.precision.choose import INTEGER_PRODUCTS
from causal_onnx.export.precision.moments import measure_inputs
from causal_onnx.export.precision.rounding import round_weights
from causal_onnx.export.source import probe
from causal_onnx.export.subject import Subject, crops
from causal_onnx.export.torch_patches.user_code import line_of_error

__all__ = ["farthest", "simplified", "valid_captures"]


def valid_captures(
    subject: Subject, errors: list[ExportError]
) -> Iterator[tuple[Capture, Subject]]:
    """Captures, each with the subject as far as it is valid; those valid for less come last.

    Args:
        subject: What is captured.
        errors: Takes what the other ways ended in.
    """
    contract = subject.contract
    assert contract.opset is not None
    lesser: list[tuple[Capture, Subject]] = []
    for attempt in captures_of(
        subject.source,
        subject.specs,
        subject.sizes,
        subject.observed,
        opset=max(contract.opset, OLDEST_OPSET),
        module=subject.module,
    ):
        if isinstance(attempt, ExportError):
            errors.append(attempt)
            continue
        try:
            within, is_less = _within_domain(attempt, subject)
        except ExportError as error:
            errors.append(error.at(Stage.DOMAIN))
            continue
        if is_less:
            lesser.append((attempt, within))
        else:
            yield attempt, within
    yield from sorted(lesser, key=lambda item: -(item[1].contract.max_seq_len or 0))


def _within_domain(capture: Capture, subject: Subject) -> tuple[Subject, bool]:
    """`subject` as far as the guards of `capture` allow, and whether the module itself goes on.

    Guards that are a plain upper bound on the length become the limit of the file.

    Raises:
        ExportError: They allow less in another way, or less than the caller asked for; names the
            guard, and what the module says at the sizes in question.
    """
    contract = subject.contract
    warnings, is_less = list(subject.warnings), False
    bound = capture.domain.bound(least=contract.min_seq_len, top=contract.max_seq_len)
    note = None
    if bound is not None:
        beyond = probe.at_length(subject.source, subject.specs, bound.sizes)
        text = _said_of(bound, beyond, subject.name)
        _refuse_bound(bound, subject, text)
        contract = replace(contract, max_seq_len=bound.largest)
        is_less = beyond.takes is not False
        if is_less:
            note = f"the file takes at most {bound.largest} positions: {text}"
        elif beyond.error is None:
            note = crops(subject.source, bound.largest)
    for axis in contract.free_axes:
        allowed = capture.domain.free_bound(axis.name, axis.largest)
        if allowed is not None:
            raise ExportError(
                f"the captured graph is not valid for {axis.name} of {allowed[0] + 1} "
                f"({allowed[1]}), which {subject.name} itself accepts. Remedy: build masks and "
                f"positions along {axis.name} from the input's shape, without Python branches on it"
            )
    if capture.is_warm:
        note = (
            f"the module grows buffers on demand; they were filled to {contract.max_seq_len} "
            "positions and are stored in the file"
        )
    if note is not None:
        warnings.append(note)
    warnings += [
        f"PyTorch captured the graph for sizes with {text}; some other sizes were compared"
        for text in capture.domain.sampled
    ]
    limit = contract.max_seq_len
    excluded = [s for s in capture.domain.excluded if limit is None or s.past + s.seq < limit]
    within = replace(subject, contract=contract, warnings=tuple(warnings), excluded=tuple(excluded))
    return within, is_less


def _said_of(bound: Bound, beyond: probe.Beyond, module: str) -> str:
    """Where the captured graph ends, and what the module does there, in words."""
    place = beyond.error and line_of_error(beyond.error)
    said = {
        None: f"{module} itself was not called there, because that costs too much",
        True: f"{module} itself accepts that",
        False: f"{module} itself crops that"
        if beyond.error is None
        else f"{module} itself raises {short(beyond.error)}" + (f" at {place}" if place else ""),
    }[beyond.takes]
    where = f"batch {bound.sizes.batch}, seq {bound.sizes.seq}"
    if bound.sizes.past:
        where += f", past {bound.sizes.past}"
    return f"the captured graph is not valid at {where} ({bound.guard}); {said}"


def _refuse_bound(bound: Bound, subject: Subject, text: str) -> None:
    """Raise where the bound can be no limit of the file."""
    if not bound.is_plain or bound.largest < max(2, subject.contract.min_seq_len):
        raise ExportError(
            f"{text}. A file takes any batch and every length up to its limit. Remedy: build "
            "masks and positions from x.shape, without Python branches on the batch or length"
        )
    if subject.options.max_seq_len is not None:
        raise ExportError(
            f"max_seq_len is {subject.contract.max_seq_len}, but {text}. Remedy: ask for at most "
            f"{bound.largest}, or build masks and positions from x.shape, without Python branches "
            "on the length"
        )


def simplified(
    capture: Capture, subject: Subject, folder: Path | None = None
) -> tuple[ir.Model, Subject]:
    """Make the captured graph smaller, in place, and round its weights where they get few bits.

    Args:
        capture: The graph.
        subject: What it was captured from.
        folder: As for `round_weights`.

    Returns:
        The graph as it was captured, with the same weights; and the subject, whose reference holds
        them too.

    Raises:
        ExportError: There is no weight to round.
        OSError: As for `round_weights`.
    """
    contract = subject.contract
    untouched = capture.model.clone()
    simplify(capture.model)
    if contract.precision != "bf16":
        for model in (untouched, capture.model):
            compute_wide(model)  # some modules of fp32 make a bias in bfloat16
    coding = subject.options.coding
    if coding is None:
        return untouched, subject
    reference = subject.reference.fresh()
    carries, smooths = coding.rounding != "nearest", contract.precision == INTEGER_PRODUCTS
    seen = None
    if carries or smooths:
        seen = measure_inputs(
            capture.model,
            reference.fresh(),
            subject.specs,
            contract,
            moments=carries,
            samples=smooths,
        )
    rounded = round_weights(
        capture.model, reference.module, coding, seen, contract.max_seq_len, folder=folder
    )
    if not rounded.axes:
        raise ExportError(
            f"{subject.name} has no weight to store in {coding.grid.bits} bits: "
            f"{'; '.join(rounded.kept) or 'it multiplies by no weight'}"
        )
    # Which weights are rounded is read off the simplified graph.
    return capture.model.clone(), replace(subject, reference=reference, rounded=rounded)


def farthest(errors: Sequence[ExportError]) -> ExportError:
    """The error of the way that came farthest, with what the others said as notes."""
    chosen = max(errors, key=lambda error: error.stage)  # of equals the first
    said = {str(chosen)}
    for other in errors:
        text = str(other)
        if other.stage is not Stage.NOT_TRIED and text not in said:
            chosen.add_note(f"another way of capturing it: {text.splitlines()[0][:300]}")
            said.add(text)
    return chosen
