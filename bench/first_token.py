"""One start in this fresh process: `python -m bench.first_token KIND FILE THREADS FOLDER`.

KIND is "bare", "load", "beside", "prepared" or "genai"; FOLDER is where prepared sessions are kept,
or that of the peers' packages. Prints a line of JSON: seconds of processor time since the process
began, the most memory that it held, and a hash of the logits. Then it lives on until its standard
input ends, so that its memory can be looked at beside that of others.
"""

from __future__ import annotations

import sys
import time

__all__ = ["PROMPT", "main"]

PROMPT = 16
"""Tokens."""


def bare(path: str, threads: int, folder: str) -> object:
    """Onnxruntime alone, with all else at its defaults."""
    import numpy as np  # noqa: PLC0415 - the import is measured
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kept.append(session)
    ids = np.arange(PROMPT, dtype=np.int64)[None]
    feeds = {}
    for item in session.get_inputs():
        if item.name == "input_ids":
            feeds[item.name] = ids
        elif item.name == "attention_mask":
            feeds[item.name] = np.ones_like(ids)
        else:
            sizes = [size if isinstance(size, int) else 1 for size in item.shape]
            sizes[2] = 0  # an empty past
            feeds[item.name] = np.zeros(sizes, np.float32)
    feeds["last_only"] = np.ones((), bool)
    return session.run(["logits"], feeds)[0][0, -1]


def ours(path: str, threads: int, folder: str | None) -> object:
    """`load` and one chunk of a stream."""
    import numpy as np  # noqa: PLC0415 - the import is measured

    from causal_onnx.runtime import load  # noqa: PLC0415

    model = load(path, threads=threads, prepared=folder)
    kept.append(model)
    return model.stream()(np.arange(PROMPT)[None], last_only=True)[0, -1]


def genai(path: str, threads: int, folder: str) -> object:
    """onnxruntime-genai with a folder of its builder."""
    sys.path.append(folder)
    import json  # noqa: PLC0415 - the import is measured

    import numpy as np  # noqa: PLC0415
    import onnxruntime_genai  # noqa: PLC0415

    onnxruntime_genai.disable_telemetry_events()
    config = onnxruntime_genai.Config(path)
    options = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": options}}))
    model = onnxruntime_genai.Model(config)
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=PROMPT + 1, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    generator.append_tokens(np.arange(PROMPT, dtype=np.int32))
    kept.extend((generator, model))
    return generator.get_logits()[0, -1]


kept: list[object] = []
"""What must not go before its memory was looked at."""


def main(kind: str, path: str, threads: str, folder: str) -> None:
    """Measure one start."""
    if kind in ("load", "beside", "prepared"):
        logits = ours(path, int(threads), folder if kind == "prepared" else None)
    else:
        logits = {"bare": bare, "genai": genai}[kind](path, int(threads), folder)
    processor_s = time.process_time()
    import json  # noqa: PLC0415 - after the clock
    import zlib  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415

    from bench import resident  # noqa: PLC0415

    found = {
        "processor_s": processor_s,
        "peak_bytes": resident.peak_bytes(),
        "digest": zlib.crc32(np.asarray(logits, np.float32).tobytes()),
    }
    print(json.dumps(found), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
