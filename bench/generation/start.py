"""One start in this fresh process: `python -m bench.generation.start KIND FILE THREADS OUTPUT`.

KIND is "ours" or "torch". Prints a line of JSON: seconds from before the first import to the first
output, of wall and of processor time, and the most memory that the process held. Nothing but the
subject's own libraries is imported before the clock stops.
"""

from __future__ import annotations

import sys
import time

BATCH_SEQ = (1, 16)


def ours(path: str, threads: int) -> object:
    """Load an artifact and call it once."""
    import numpy as np  # noqa: PLC0415 - the import is measured

    from causal_onnx.runtime import load  # noqa: PLC0415

    model = load(path, threads=threads)
    width = model.contract.inputs[0].axes[-1]
    assert isinstance(width, int)
    return model(np.ones((*BATCH_SEQ, width), np.float32))


def torch(path: str, threads: int) -> object:
    """Read the same weights into the same attention, with nothing but PyTorch, and call it once."""
    import torch  # noqa: PLC0415 - the import is measured
    from torch import nn  # noqa: PLC0415

    torch.set_num_threads(threads)
    stored = torch.load(path, weights_only=True, mmap=True)
    num_heads = stored.pop("num_heads")

    class Attention(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                self.add_module(name, nn.Linear(width, width, bias=False))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                self.get_submodule(name)(x).unflatten(-1, (num_heads, -1)).transpose(1, 2)
                for name in ("q_proj", "k_proj", "v_proj")
            )
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            found: torch.Tensor = self.get_submodule("out_proj")(y.transpose(1, 2).flatten(2))
            return found

    width = stored["q_proj.weight"].shape[1]
    with torch.device("meta"):  # no random weights, which would be thrown away
        module = Attention(width)
    module.load_state_dict(stored, assign=True)
    with torch.inference_mode():
        return module.eval()(torch.ones(*BATCH_SEQ, width))


def main(kind: str, path: str, threads: str, output: str) -> None:
    """Measure one start."""
    started, used = time.perf_counter(), time.process_time()
    found = {"ours": ours, "torch": torch}[kind](path, int(threads))
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    import json  # noqa: PLC0415 - after the clock

    import numpy as np  # noqa: PLC0415

    from bench import resident  # noqa: PLC0415

    peak = resident.peak_bytes()
    np.save(output, np.asarray(found))
    print(json.dumps({"wall_s": seconds, "cpu_s": cpu, "peak_bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
