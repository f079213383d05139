"""causal_onnx.models"""
