"""What goes wrong with a request, and what a client is told by a status of HTTP."""

from __future__ import annotations

from collections.abc import Iterable

from causal_onnx.runtime.errors import CausalOnnxError

__all__ = [
    "BadRequestError",
    "BusyError",
    "ForbiddenKeyError",
    "NotServedError",
    "RequestError",
    "TooLargeError",
    "UnavailableError",
    "no_such_model",
]


class RequestError(CausalOnnxError):
    """Raised if a request cannot be served; each protocol writes it in its own form."""

    status = 500
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """Take the message and what programs read of it.

        Args:
            message: It says what is wrong with which value, what was expected, and what to do.
            param: The field of the request that is wrong; None: no single one.
            code: A word for programs, if the protocol has one.
        """
        super().__init__(message)
        self.param, self.code = param, code


class BadRequestError(RequestError):
    """The request cannot be read, or asks for what cannot be done (HTTP 400)."""

    status = 400


class ForbiddenKeyError(RequestError):
    """The request has no key, or an unknown one (HTTP 401)."""

    status = 401


class NotServedError(RequestError):
    """The server has no such model or path (HTTP 404)."""

    status = 404


class TooLargeError(RequestError):
    """The request is larger than this server accepts (HTTP 413)."""

    status = 413


class BusyError(RequestError):
    """The queue is full, or a limit of the key is reached; retry later (HTTP 429)."""

    status = 429
    retry_after_s = 1


class UnavailableError(RequestError):
    """The server is shutting down, or the model failed (HTTP 503)."""

    status = 503
    retry_after_s = 5


def no_such_model(name: str, known: Iterable[str]) -> NotServedError:
    """Returns the error for a request that names a model which is none of `known`."""
    return NotServedError(
        f"there is no model {name!r} here; served: {', '.join(known) or 'none'}",
        param="model",
        code="model_not_found",
    )
