"""Where a model's time goes: onnxruntime's own profile, read together with the file's graph."""

from causal_onnx.runtime.profile.costs import GroupCost, NodeCost, Profile
from causal_onnx.runtime.profile.profiler import profile, profile_all

__all__ = ["GroupCost", "NodeCost", "Profile", "profile", "profile_all"]
