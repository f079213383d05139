"""Running a graph on made inputs: in onnxruntime, or where that cannot in onnx's own evaluator."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy.typing as npt
import onnx

from causal_onnx.export.analysis.session import plain_session
from causal_onnx.export.analysis.signature import Sizes

__all__ = ["GraphRunner", "Runnable", "open_evaluator", "open_session"]

Array = npt.NDArray[Any]

Runnable: TypeAlias = str | os.PathLike[str] | bytes
"""A file, or the serialised model."""


@dataclass
class GraphRunner:
    """A graph that can be run."""

    name: str
    """The execution provider, or "the reference evaluator"."""
    outputs: tuple[str, ...]
    _run: Any
    refusal: str = ""
    """The last sizes that it refused, with its message."""

    def __call__(self, feeds: Mapping[str, Array], sizes: Sizes) -> list[Any] | None:
        """The outputs; None where the graph does not run on these inputs, see `refusal`."""
        try:
            return list(self._run(list(self.outputs), dict(feeds)))
        except Exception as error:  # both raise classes of their own, without a common base
            text = (str(error).splitlines() or [type(error).__name__])[0][:200]
            self.refusal = f"seq {sizes.seq}, past {sizes.past_seq}: {text}"
            return None


def open_session(source: Runnable, providers: Sequence[str]) -> tuple[GraphRunner | None, str]:
    """The graph in onnxruntime; None and the reason where that is not possible."""
    given = source if isinstance(source, bytes) else str(Path(source))
    try:
        session = plain_session(given, providers=providers)
    except ImportError:
        return None, "onnxruntime is not installed: pip install 'causal-onnx[attest]'"
    except Exception as error:  # as above
        return None, f"onnxruntime cannot load the graph: {str(error).splitlines()[0]}"
    names = tuple(output.name for output in session.get_outputs())
    return GraphRunner(session.get_providers()[0], names, session.run), ""


def open_evaluator(source: Runnable) -> tuple[GraphRunner | None, str]:
    """The graph in onnx's reference evaluator, for small graphs."""
    from onnx.reference import ReferenceEvaluator  # noqa: PLC0415 - slow to import, seldom needed

    try:
        model = onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source)
        evaluator = ReferenceEvaluator(model)
    except Exception as error:  # as above
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return None, f"the reference evaluator cannot load the graph: {reason}"
    return GraphRunner("the reference evaluator", tuple(evaluator.output_names), evaluator.run), ""
