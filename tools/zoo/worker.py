"""The process that runs tasks; it may crash, hang or run out of memory without harm to the rest.

`python -m tools.zoo.worker package.module:function`. Requests and answers are lines of JSON; the
function gets a request's arguments by name and gives what to answer.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any, TextIO

__all__ = ["main"]

MEMORY_BYTES = 8 << 30
"""What a worker may allocate: a limit of its own, so that one task cannot bring the machine down.
The largest entry of the zoo needs a tenth of it."""


def main(function: str) -> None:
    """Answer requests until the driver closes the pipe."""
    replies = _own_stdout()
    faulthandler.enable()  # a crash leaves its Python stack in the log
    faulthandler.register(signal.SIGUSR1)  # so does a hang: the driver asks for it
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    run = _load(function)
    for line in sys.stdin:
        try:
            answer = run(**json.loads(line))
        except MemoryError:
            answer = {"status": "memory", "reason": f"needed more than {MEMORY_BYTES >> 30} GiB"}
        except Exception as error:  # a defect in what is run, or in the runner; the page tells
            traceback.print_exc()
            text = " ".join(str(error).split())
            answer = {"status": "error", "reason": f"{type(error).__name__}: {text}"[:400]}
        print(json.dumps(answer), file=replies, flush=True)


def _load(function: str) -> Callable[..., dict[str, Any]]:
    module, _, name = function.partition(":")
    loaded: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), name)
    return loaded


def _own_stdout() -> TextIO:
    """Keep the pipe for answers; what libraries print goes to stderr."""
    private = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(private, "w")


if __name__ == "__main__":
    main(sys.argv[1])
