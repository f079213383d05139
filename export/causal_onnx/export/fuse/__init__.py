"""Fewer and faster nodes for onnxruntime: each pass recognises something by what it computes."""

from causal_onnx.export.fuse.fuse import fuse

__all__ = ["fuse"]
