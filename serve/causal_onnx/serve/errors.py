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
    """A request is not served; each protocol writes it in its own form."""

    status = 500
    retry_after_s: int | None = None

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        """Say why.

        Args:
            message: What is wrong with which value, what was expected, what to do.
            param: The field of the request.
            code: A word for programs, where the protocol has one.
        """
        super().__init__(message)
        self.param, self.code = param, code


class BadRequestError(RequestError):
    """It asks for what cannot be done, or cannot be read."""

    status = 400


class ForbiddenKeyError(RequestError):
    """It has no key, or none that is known."""

    status = 401


class NotServedError(RequestError):
    """There is no such model or path here."""

    status = 404


class TooLargeError(RequestError):
    """It is larger than this server takes."""

    status = 413


class BusyError(RequestError):
    """There is no room in the queue, or a limit of the client's is reached: it may come again."""

    status = 429
    retry_after_s = 1


class UnavailableError(RequestError):
    """The server ends, or the model failed."""

    status = 503
    retry_after_s = 5


def no_such_model(name: str, known: Iterable[str]) -> NotServedError:
    """What a request is told that names a model which is none of `known`."""
    return NotServedError(
        f"there is no model {name!r} here; there are {', '.join(known) or 'none'}",
        param="model",
        code="model_not_found",
    )
