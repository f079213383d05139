"""Serve models on a Ray cluster, and run them over Ray Data; needs the extra `ray`."""

from causal_onnx.runtime.text.extras import import_extra

import_extra("ray", extra="ray", purpose="causal_onnx.serve.ray")

from causal_onnx.serve.ray.application import RayOptions, app, build_app  # noqa: E402
from causal_onnx.serve.ray.data import OnnxLM  # noqa: E402
from causal_onnx.serve.ray.ingress import Ingress  # noqa: E402
from causal_onnx.serve.ray.replica import ModelReplica  # noqa: E402
from causal_onnx.serve.ray.router import PrefixRouter  # noqa: E402

__all__ = ["Ingress", "ModelReplica", "OnnxLM", "PrefixRouter", "RayOptions", "app", "build_app"]
