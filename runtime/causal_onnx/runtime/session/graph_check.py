"""Compare a contract with the inputs and outputs that a graph really has."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from causal_onnx.runtime.contract import LAST_ONLY, Contract, TensorSpec
from causal_onnx.runtime.errors import ArtifactError

__all__ = ["check_signature"]

# onnxruntime's names of element types; the others are the same in numpy.
_NAMES = {"float": "float32", "double": "float64"}


def check_signature(session: Any, contract: Contract, *, name: str) -> None:
    """Check that the graph of `session` has what `contract` promises.

    The contract must name every input, since the graph needs them all; it may leave out outputs.
    An axis that the graph fixes must be fixed in the contract, at the same size.

    Raises:
        ArtifactError: They differ; the message names the tensor and both sides.
    """
    try:
        _check(session, contract, name)
    except UnicodeDecodeError as error:  # onnxruntime hands over the bytes that the file has
        raise ArtifactError(
            f"{name} has a name of an input, an output or an axis that is no UTF-8: {error}"
        ) from error


def _check(session: Any, contract: Contract, name: str) -> None:
    for kind, specs, nodes in (
        ("input", contract.inputs, session.get_inputs()),
        ("output", contract.outputs, session.get_outputs()),
    ):
        real = {node.name: node for node in nodes}
        promised = {spec.name for spec in specs}
        missing = [spec.name for spec in specs if spec.name not in real]
        unnamed = [key for key in real if key not in promised] if kind == "input" else []
        if missing or unnamed:
            raise ArtifactError(
                f"the contract does not fit {name}: its {kind}s are "
                f"{', '.join(spec.name for spec in specs)}, those of the graph are "
                f"{', '.join(real)}"
            )
        for spec in specs:
            start = f"the contract does not fit {name}: {kind}"
            _check_tensor(_with_fixed_seq(spec, contract), real[spec.name], start)
    if contract.last_only is not None:
        _check_last_only(session, name)


def _check_last_only(session: Any, name: str) -> None:
    """An input with a default is none of `get_inputs`, since it may be left out."""
    found = {node.name: node.type for node in session.get_overridable_initializers()}
    if found.get(LAST_ONLY) != "tensor(bool)":
        raise ArtifactError(
            f"the contract does not fit {name}: it says that there is an input {LAST_ONLY!r}, "
            f"bool, with a default, but those of the graph are {', '.join(found) or 'none'}"
        )


def _with_fixed_seq(spec: TensorSpec, contract: Contract) -> TensorSpec:
    """`spec` as the graph declares it: a contract of one length only has that number there."""
    if contract.ragged == "single":
        fixed = 1
    elif contract.min_seq_len == contract.max_seq_len:
        fixed = contract.min_seq_len
    else:
        return spec
    return replace(spec, axes=tuple(fixed if axis == "seq" else axis for axis in spec.axes))


def _check_tensor(spec: TensorSpec, node: Any, start: str) -> None:
    dtype = node.type.removeprefix("tensor(").removesuffix(")")
    dtype = _NAMES.get(dtype, dtype)
    shape = list(node.shape)
    graph = f"{dtype} ({', '.join('?' if size is None else str(size) for size in shape)})"
    if dtype != spec.dtype:
        raise ArtifactError(f"{start} {spec.describe()}, but the graph has {graph}: dtype differs")
    # onnxruntime gives [] for a scalar and for a tensor of unknown rank alike.
    if shape and len(shape) != len(spec.axes):
        raise ArtifactError(f"{start} {spec.describe()}, but the graph has {graph}: rank differs")
    for position, (axis, size) in enumerate(zip(spec.axes, shape, strict=False)):
        if isinstance(size, int) and size != axis:
            raise ArtifactError(
                f"{start} {spec.describe()}, but the graph has {graph}: axis {position} differs"
            )
