"""The `causal-onnx` command: export, run and inspect proven ONNX files of causal attention."""
