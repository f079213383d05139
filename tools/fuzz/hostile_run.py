"""Load and call each hostile graph in a process with limits of memory and time, and count.

python -m tools.fuzz --hostile 5000
"""

from __future__ import annotations

import collections
import faulthandler
import json
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
from tools.fuzz.child import answers
from tools.fuzz.hostile import OPERATORS, WIDTH, hostile_model
from tools.fuzz.worker import CPU_SECONDS, MEMORY_BYTES, own_stdout

from causal_onnx.runtime import CausalOnnxError, UnsafeFileError, load

__all__ = ["main", "run_hostile", "table"]

FILES_PER_WORKER = 250
"""Then it is replaced: sessions leave memory behind, and the limit is for one file."""

OUTCOMES = {
    "refused": "refused by the scan",
    "onnxruntime": "passed the scan; refused by onnxruntime while it loaded",
    "run refused": "loaded; the call gave an error of ours",
    "ran": "loaded, and the call gave numbers",
    "memory": "more memory than the limit: a defect",
    "unclear": "another exception: a defect",
    "hang": "over its processor or wall-clock time: a defect",
    "crash": "the process died: a defect",
}
DEFECTS = ("memory", "unclear", "hang", "crash")

_NO_MEMORY = ("bad_alloc", "Failed to allocate memory", "MemoryError", "bad allocation")


def run_hostile(count: int, *, first: int = 0, limit_s: float, trusted: bool) -> int:
    """Load and call the graphs of some seeds, print the figures; 0: nothing was a defect."""
    totals: collections.Counter[str] = collections.Counter()
    passed: collections.Counter[str] = collections.Counter()
    seen: collections.Counter[str] = collections.Counter()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="causal-onnx-hostile-") as folder:
        seeds = range(first, first + count)
        found = answers(
            seeds,
            Path(folder),
            Path(folder),
            files_per_worker=FILES_PER_WORKER,
            limit_s=limit_s,
            trusted=trusted,
            module="tools.fuzz.hostile_run",
        )
        for answer in found:
            outcome = answer["outcome"]
            domain, op = OPERATORS[answer["seed"] % len(OPERATORS)]
            totals[outcome] += 1
            seen[f"{domain}:{op}".lstrip(":")] += 1
            passed[f"{domain}:{op}".lstrip(":")] += outcome != "refused"
            if outcome in DEFECTS:
                said = " ".join(answer["said"].split())[:300]
                print(f"{outcome}: seed {answer['seed']} ({op}): {said}", file=sys.stderr)
            if sum(totals.values()) % 500 == 0:
                print(f"{sum(totals.values())} files: {dict(totals)}", file=sys.stderr, flush=True)
    print(table(totals, seen, passed, time.monotonic() - started))
    return 1 if any(totals[outcome] for outcome in DEFECTS) else 0


def table(
    totals: collections.Counter[str],
    seen: collections.Counter[str],
    passed: collections.Counter[str],
    seconds: float,
) -> str:
    """The figures, and of each operator how many graphs about it passed the scan."""
    count = sum(totals.values())
    lines = [f"{'hostile graphs':16} {count:7,}  {count / seconds:.0f} a second"]
    lines += [f"{name:16} {totals[name]:7,}  {what}" for name, what in OUTCOMES.items()]
    never = [name for name in sorted(seen) if not passed[name]]
    lines.append(f"{len(seen)} operators; never passed the scan: {', '.join(never) or 'none'}")
    lines += [f"  {name:48} {passed[name]:5,} of {seen[name]:5,}" for name in sorted(seen)]
    return "\n".join(lines)


def attempt(content: bytes, *, trusted: bool = False) -> tuple[str, str]:
    """(outcome, what was said) of loading a graph and calling it once."""
    try:
        model = load(content, threads=1, trusted=trusted)
    except UnsafeFileError as error:
        return "refused", str(error)
    except CausalOnnxError as error:
        return _named("onnxruntime", str(error))
    except Exception:
        return _named("unclear", traceback.format_exc())
    try:
        model(np.zeros((1, 2, WIDTH), np.float32))
    except CausalOnnxError as error:
        return _named("run refused", str(error))
    except Exception:
        return _named("unclear", traceback.format_exc())
    return "ran", ""


def _named(outcome: str, said: str) -> tuple[str, str]:
    return ("memory" if any(text in said for text in _NO_MEMORY) else outcome), said


def main(_corpus: str, _scratch: str, *options: str) -> None:
    """Answer requests until the driver closes the pipe."""
    replies = own_stdout()
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (2 * MEMORY_BYTES, 2 * MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        seed = int(line)
        content = hostile_model(seed)
        used = time.process_time()
        resource.setrlimit(resource.RLIMIT_CPU, (int(used) + CPU_SECONDS, resource.RLIM_INFINITY))
        outcome, said = attempt(content, trusted="trusted" in options)
        answer = {"seed": seed, "outcome": outcome, "said": said[-2000:]}
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
