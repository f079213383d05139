"""The operators that a scanned file may have, and what each makes of its inputs."""

from causal_onnx.runtime.scan.rules.table import ALLOWED, CONTRIB, OPSETS, Rule

__all__ = ["ALLOWED", "CONTRIB", "OPSETS", "Rule"]
