"""What a worker may meet, for the tests of the pool."""

from __future__ import annotations

import ctypes
import os
from typing import Any


def run(what: str) -> dict[str, Any]:
    if what == "crash":
        ctypes.string_at(0)
    elif what == "exit":
        os._exit(3)
    elif what == "hang":
        hang_for_good()
    elif what == "memory":
        return {"status": "right", "bytes": len(bytearray(20 << 30))}
    elif what == "error":
        raise KeyError("the name of what is missing")
    elif what == "chatter":
        os.write(1, b"not an answer\n")
    return {"status": "right", "what": what, "process": os.getpid()}


def hang_for_good() -> None:
    while True:
        pass
