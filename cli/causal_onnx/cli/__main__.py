"""`python -m causal_onnx.cli` is the same as `causal-onnx`."""

import sys

from causal_onnx.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
