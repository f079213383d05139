"""Proof of causality from an ONNX graph; needs numpy, onnx and onnx-ir, no PyTorch."""
