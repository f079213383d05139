"""causal_onnx.export"""
