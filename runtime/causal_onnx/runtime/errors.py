"""The errors that causal-onnx raises on purpose.

Wrong arguments raise `ValueError` or `TypeError`; these are for what a caller handles differently.
"""

__all__ = ["ArtifactError", "CausalOnnxError", "DeviceError", "RunError", "UnsafeFileError"]


class CausalOnnxError(Exception):
    """Base of every error that causal-onnx raises on purpose."""


class ArtifactError(CausalOnnxError):
    """The file is not ours, damaged, or of a newer format."""


class UnsafeFileError(ArtifactError):
    """The file holds what exports do not, or more than the limits; see docs/safety.md."""


class DeviceError(CausalOnnxError):
    """The device asked for cannot be used."""


class RunError(CausalOnnxError):
    """onnxruntime failed while running a request that the contract allows."""
