"""A model as a folder for every language: contract, golden vectors and settings beside the file."""

from causal_onnx.runtime.bundle.verify import BundleReport, verify_bundle
from causal_onnx.runtime.bundle.write import write_bundle

__all__ = ["BundleReport", "verify_bundle", "write_bundle"]
