"""Run exported causal attention on numpy and onnxruntime; needs nothing else."""

__version__ = "0.1.0"
