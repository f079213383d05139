"""A request of tensors, whichever way it came, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from causal_onnx.serve.engine.sequences import SequenceStep
from causal_onnx.serve.errors import BadRequestError, NotServedError, UnavailableError
from causal_onnx.serve.inference_protocol.datatypes import datatype_of, input_error

if TYPE_CHECKING:
    import numpy.typing as npt

    from causal_onnx.runtime.contract import TensorSpec
    from causal_onnx.serve.registry import ServedModel
    from causal_onnx.serve.service import Service

    Array = npt.NDArray[Any]

__all__ = [
    "VERSION",
    "Parameter",
    "Requested",
    "TensorRequest",
    "Tensors",
    "find_model",
    "infer",
    "input_of",
    "read_parameters",
]

VERSION = "1"
"""Each model has one."""

Parameter = bool | int | float | str

RESERVED = ("classification", "shared_memory_region", "shared_memory_offset")
"""Parameters of tensors that stand for extensions which are not here."""

MOST_PARAMETERS = 64


@dataclass(frozen=True, slots=True)
class Requested:
    """An output that is asked for."""

    name: str
    parameters: Mapping[str, Parameter]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRequest:
    """A request, read and not yet checked against the contract."""

    id: str
    inputs: Mapping[str, Array]
    requested: Sequence[Requested]
    """Empty: all outputs."""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensors:
    """An answer."""

    id: str
    outputs: Sequence[tuple[TensorSpec, Array, Mapping[str, Parameter]]]
    """Each with the parameters by which it was asked for."""
    parameters: Mapping[str, Parameter]


def find_model(service: Service, name: str, version: str | None = None) -> ServedModel:
    """A model of a name and a version.

    Raises:
        NotServedError: There is none.
    """
    served = service.models.find(name)
    if version not in (None, "", VERSION):
        raise NotServedError(
            f"model {name!r} has no version {version!r}; it has {VERSION!r}", param="version"
        )
    return served


def input_of(served: ServedModel, name: object, datatype: object) -> TensorSpec:
    """What the contract says of an input.

    Raises:
        BadRequestError: There is none of that name, or it is of another datatype.
    """
    spec = next((item for item in served.contract.inputs if item.name == name), None)
    if spec is None:
        known = ", ".join(item.name for item in served.contract.inputs)
        raise BadRequestError(f"unknown input {str(name)[:60]!r}; the inputs are {known}")
    if datatype != datatype_of(spec):
        raise input_error(spec.name, f"is {datatype_of(spec)}, got {str(datatype)[:60]!r}")
    return spec


def read_parameters(given: object, *, where: str) -> dict[str, Parameter]:
    """The parameters of a request or of one of its tensors.

    Raises:
        BadRequestError: They are no object of plain values, or stand for what is not here.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping) or len(given) > MOST_PARAMETERS:
        raise BadRequestError(f"{where} must be an object of at most {MOST_PARAMETERS} values")
    for name, value in given.items():
        if type(value) not in (bool, int, float, str):
            raise BadRequestError(
                f"{where}: {name[:60]!r} must be a boolean, a number or a string, got "
                f"{str(value)[:60]!r}"
            )
        if name in RESERVED:
            raise BadRequestError(f"{where}: {name!r} is not supported; leave it out")
    return dict(given)


async def infer(service: Service, served: ServedModel, request: TensorRequest) -> Tensors:
    """Run a request: by itself, or as the next step of its sequence.

    Raises:
        RequestError: It cannot be served.
        ValueError: The inputs are not what the contract allows.
        RunError: onnxruntime failed.
    """
    service.check_open()
    parameters = dict(request.parameters)
    step, timeout_s = _sequence(parameters), _timeout(parameters)
    wanted = _wanted(served, request.requested, without_cache=step is not None)
    if step is None:
        future = served.tensors.submit(request.inputs, adapter=served.adapter)
    elif served.sequences is None:
        raise BadRequestError(
            f"{served.name} keeps no sequences: it has no KV cache, or its requests are shared out "
            "among processes; leave out sequence_id",
            param="sequence_id",
        )
    else:
        future = served.sequences.submit(step, request.inputs, adapter=served.adapter)
    try:
        outputs = await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)
    except TimeoutError:
        raise UnavailableError(
            f"the request was not answered within its timeout of {timeout_s} s"
        ) from None
    except (asyncio.CancelledError, CancelledError):
        if future.cancelled() and not _is_cancelled():
            raise UnavailableError("the model is being unloaded; ask another server") from None
        raise
    return Tensors(
        id=request.id,
        outputs=[(spec, outputs[spec.name], item) for spec, item in wanted],
        parameters={
            name: value for name, value in request.parameters.items() if name not in PRIVATE
        },
    )


PRIVATE = ("binary_data_output", "timeout", "triton_enable_empty_final_response")
"""Parameters that say how to answer, and are not repeated in it."""


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _wanted(
    served: ServedModel, requested: Sequence[Requested], *, without_cache: bool
) -> list[tuple[TensorSpec, Mapping[str, Parameter]]]:
    """The outputs that are asked for, in that order."""
    hidden = served.contract.present_names if without_cache else frozenset()
    known = {spec.name: spec for spec in served.contract.outputs if spec.name not in hidden}
    if not requested:
        return [(spec, {}) for spec in known.values()]
    if len({item.name for item in requested}) < len(requested):
        raise BadRequestError("an output is asked for twice")
    for item in requested:
        if item.name not in known:
            raise BadRequestError(
                f"unknown output {item.name[:60]!r}; the outputs are {', '.join(known)}"
            )
    return [(known[item.name], item.parameters) for item in requested]


def _sequence(parameters: Mapping[str, Parameter]) -> SequenceStep | None:
    """Which sequence a request is a step of, if any."""
    identity = parameters.get("sequence_id", 0)
    flags = [parameters.get(name, False) for name in ("sequence_start", "sequence_end")]
    if type(identity) not in (int, str) or not all(type(flag) is bool for flag in flags):
        raise BadRequestError(
            "sequence_id must be an integer or a string, sequence_start and sequence_end true or "
            "false",
            param="sequence_id",
        )
    if identity in (0, ""):  # a client's way to say that there is none
        if any(flags):
            raise BadRequestError(
                "sequence_start and sequence_end need a sequence_id other than 0",
                param="sequence_id",
            )
        return None
    assert isinstance(identity, int | str)
    if isinstance(identity, str) and len(identity) > 128:
        raise BadRequestError("a sequence_id has at most 128 characters", param="sequence_id")
    return SequenceStep(identity, starts=bool(flags[0]), ends=bool(flags[1]))


def _timeout(parameters: Mapping[str, Parameter]) -> float | None:
    """Seconds that a request may take; it comes in microseconds."""
    if parameters.get("priority", 0) != 0:
        raise BadRequestError(
            "priority is not supported: tensor requests run in the order of their arrival",
            param="priority",
        )
    given = parameters.get("timeout", 0)
    if type(given) is not int or not 0 <= given < 1 << 63:
        raise BadRequestError(
            f"timeout must be an integer of microseconds, got {given!r}", param="timeout"
        )
    return given / 1e6 or None
