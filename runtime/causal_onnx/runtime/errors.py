"""The errors that causal-onnx raises on purpose.

Wrong arguments raise `ValueError` or `TypeError`; these are for what a caller handles differently.
"""

__all__ = ["ArtifactError", "CausalOnnxError", "DeviceError", "RunError", "UnsafeFileError"]


class CausalOnnxError(Exception):
    """Base of every error that causal-onnx raises on purpose."""


class ArtifactError(CausalOnnxError):
    """The file is not a model of this project, is damaged, or is of a newer format."""


class UnsafeFileError(ArtifactError):
    """The file holds something that exports do not, or exceeds a limit; see docs/safety.md."""


class DeviceError(CausalOnnxError):
    """The requested device cannot be used."""


class RunError(CausalOnnxError):
    """onnxruntime failed while running a request that the contract allows."""
