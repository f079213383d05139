"""What `torch.onnx.export` gives by itself, called as well as its documentation allows."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tools.zoo.check import Reference, check_file

from tests.zoo.probes import Sizes, Subject, make_inputs, takes_past

__all__ = ["PLAIN_OPSET", "export_plainly", "quiet", "run_plain"]

PLAIN_OPSET = 20
"""The exporter's own default."""
BATCH, SEQ, PAST = 3, 7, 5
"""Sizes >= 2 and different from each other: at 1 the exporter folds shapes and drops masks."""


def export_plainly(subject: Subject, path: Path, *, opset: int = PLAIN_OPSET) -> None:
    """Export an entry or a mutant without anything of this project.

    Raises:
        Exception: Whatever the exporter raises.
    """
    module = subject.factory().eval()
    config: Any = getattr(module, "config", None)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # a cache object among the outputs is refused
    lengths = getattr(subject, "lengths", None)
    limit = getattr(subject, "limit", None)
    seq = min(SEQ, limit or SEQ) if lengths is None else next(n for n in lengths if n >= SEQ)
    past = PAST if takes_past(subject) else 0
    if limit is not None and past:
        seq = min(seq, limit - past)
    inputs = make_inputs(subject, Sizes(BATCH, seq, past))
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=tuple(dict(axes) or None for axes in subject.axes),
            optimize=True,
            external_data=False,
            verify=False,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=False)


def run_plain(path: Path, reference: Reference) -> dict[str, Any]:
    """Export an entry plainly to `path` and check the file."""
    path.unlink(missing_ok=True)
    try:
        export_plainly(reference.entry, path)
    except Exception as error:  # whatever it raises is its answer
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]
        return {"status": "refused", "reason": reason, "error": type(error).__name__}
    with quiet():
        return check_file(path, reference).to_dict()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's chatter (warnings, prints, log lines) out of the way."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
