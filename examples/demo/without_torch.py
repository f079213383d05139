"""Run a causal-onnx command in a process in which importing PyTorch fails.

python -m examples.demo.without_torch generate build/demo/stories --prompt "Once upon a time"
"""

from __future__ import annotations

import sys

from examples.demo.serve import BARRED, bar

if __name__ == "__main__":
    bar(BARRED)
    # After the bar: nothing that the command imports gets past it.
    from causal_onnx.cli.main import main

    sys.exit(main(sys.argv[1:]))
