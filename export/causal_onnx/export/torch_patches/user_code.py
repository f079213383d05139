"""Where in the user's own code something happened."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterable

__all__ = ["line_of_error", "quoted_line", "user_line"]

_LIBRARIES = re.compile(
    r"/(site|dist)-packages/(torch|sympy|onnxscript|onnx_ir)/"
    r"|/causal_onnx/export/([a-z_]+/)*[a-z0-9_]+\.py$|/contextlib\.py$|^<"
)
"""Files that are no place to look for the user's mistake. A folder of the user's own may be called
`torch`; an installed one stands in `site-packages`."""


def user_line() -> str | None:
    """The innermost line of the current call stack that is the user's own."""
    return _innermost(
        (frame.filename, frame.lineno or 0, frame.line or "") for frame in traceback.extract_stack()
    )


def line_of_error(error: BaseException) -> str | None:
    """The innermost line of the user's own that `error`, or what caused it, passed through.

    PyTorch quotes the traced code in the text of its errors; that is nearer than the traceback.
    """
    frames: list[tuple[str, int, str]] = []
    chain: BaseException | None = error
    while chain is not None:
        frames += [
            (frame.filename, frame.lineno or 0, frame.line or "")
            for frame in traceback.extract_tb(chain.__traceback__)
        ]
        chain = chain.__cause__ or chain.__context__
    return _innermost([*frames, *_quoted(str(error))])


def quoted_line(text: str) -> str | None:
    """The innermost line of the user's own in a traceback written down in `text`."""
    return _innermost(_quoted(text))


def _quoted(text: str) -> list[tuple[str, int, str]]:
    found = re.findall(r'File "([^"]+)", line (\d+), in \w+\n\s+(.+)', text)
    return [(name, int(line), code) for name, line, code in found]


def _innermost(frames: Iterable[tuple[str, int, str]]) -> str | None:
    own = [frame for frame in frames if not _LIBRARIES.search(frame[0].replace("\\", "/"))]
    if not own:
        return None
    filename, line, code = own[-1]
    return f"{filename}:{line} ({code.strip()[:80]})"
