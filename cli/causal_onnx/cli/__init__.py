"""causal_onnx.cli"""
