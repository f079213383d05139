"""Which models there are, and which of them are served: Triton's repository extension."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from causal_onnx.runtime.errors import CausalOnnxError
from causal_onnx.serve.errors import BadRequestError, RequestError
from causal_onnx.serve.inference_protocol.tensors import VERSION
from causal_onnx.serve.service import Service

__all__ = ["index", "load_model", "unload_model"]

log = logging.getLogger(__name__)


def index(service: Service, *, only_ready: bool) -> list[dict[str, str]]:
    """All models that are served or may be; with `only_ready` those that are served."""
    models = service.models
    names = list(models)
    if models.source is not None and not only_ready:
        names += [name for name in models.source.names() if name not in models]
    found = []
    for name in names:
        served = models.get(name)
        is_ready = served is not None and served.is_open
        if is_ready or not only_ready:
            state = "READY" if is_ready else "UNAVAILABLE"
            reason = "" if is_ready else "not loaded" if served is None else "it has failed"
            found.append({"name": name, "version": VERSION, "state": state, "reason": reason})
    return found


async def load_model(service: Service, name: str, parameters: Mapping[str, Any]) -> None:
    """Load a model, or load it anew.

    Raises:
        NotServedError: It was not given to the server, nor lies in its repository.
        BadRequestError: It cannot be loaded, or by these parameters.
    """
    service.check_open()
    for left in parameters:
        raise BadRequestError(
            f"parameters: {left[:60]!r} is not supported: a model is loaded as it is",
            param="parameters",
        )
    try:
        await asyncio.to_thread(service.models.load, name, drain_s=service.options.drain_s)
    except RequestError:
        raise
    except (CausalOnnxError, OSError, ValueError) as error:
        log.warning("model %s cannot be loaded: %s", name, error)
        raise BadRequestError(f"{name} cannot be loaded: {error}") from error
    log.info("model %s was loaded", name)


async def unload_model(service: Service, name: str, parameters: Mapping[str, Any]) -> None:
    """Serve a model no more, once what it is doing is done.

    Raises:
        NotServedError: It is not served.
        BadRequestError: There is a parameter that is not known.
    """
    for left in parameters:
        if left != "unload_dependents":  # none depends on another
            raise BadRequestError(f"parameters: {left[:60]!r} is not supported; leave it out")
    await asyncio.to_thread(service.models.remove, name, drain_s=service.options.drain_s)
    log.info("model %s was unloaded", name)
