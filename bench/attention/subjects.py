"""The subjects: ours and its peers, each at the setting its users would take.

The factories run in a worker process and import their libraries there, so that a process holds
nothing but its own subject.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.attention.cases import make_input
from bench.make import MODULE_ARTIFACT, make_module, plain_name
from bench.sizes import ModuleSizes
from bench.subject import Subject, bare_session
from bench.worker import Forward, Prepare

__all__ = [
    "OURS_NAME",
    "PLAIN_OPSETS",
    "REFERENCE",
    "SUBJECTS",
    "compiled",
    "eager",
    "ours",
    "plain",
]


REFERENCE = "eager"
OURS_NAME = "ours"

PLAIN_OPSETS = (20, 24)
"""20 is the default of `torch.onnx.export`; 24 has the `Attention` operator, and is the newest
that onnxruntime computes quickly (25 is expanded into primitives there)."""

SUBJECTS = (
    Subject(
        name=REFERENCE,
        title="PyTorch eager",
        about="`scaled_dot_product_attention`, `torch.inference_mode`, `torch.set_num_threads`",
        factory="bench.attention.subjects:eager",
    ),
    Subject(
        name="compile",
        title="torch.compile",
        about="inductor, `fullgraph=True`, `dynamic=False`: compiled anew for each shape, before "
        "the clock starts",
        factory="bench.attention.subjects:compiled",
    ),
    Subject(
        name="plain20",
        title="plain export, opset 20",
        about="`torch.onnx.export(dynamo=True)` at its default opset, both axes dynamic, in a "
        "default onnxruntime session with `intra_op_num_threads` set",
        factory="bench.attention.subjects:plain",
        options={"opset": 20},
    ),
    Subject(
        name="plain24",
        title="plain export, opset 24",
        about="the same at opset 24, where attention is one operator",
        factory="bench.attention.subjects:plain",
        options={"opset": 24},
    ),
    Subject(
        name=OURS_NAME,
        title="causal-onnx",
        about="`export(module, path)`, `load(path, threads=...)`, all else default",
        factory="bench.attention.subjects:ours",
    ),
)


def eager(*, threads: int, folder: str, sizes: dict[str, Any]) -> Prepare:
    """PyTorch as it comes."""
    import torch  # noqa: PLC0415 - only here

    _set_torch_threads(threads)
    module = make_module(ModuleSizes(**sizes))

    def prepare(case: Mapping[str, Any]) -> Forward:
        x = torch.from_numpy(make_input(case, sizes["embed_dim"]))

        def forward() -> Any:
            with torch.inference_mode():
                return module(x)

        return forward

    return prepare


def compiled(*, threads: int, folder: str, sizes: dict[str, Any]) -> Prepare:
    """`torch.compile`, for one shape at a time."""
    import torch  # noqa: PLC0415 - only here

    _set_torch_threads(threads)
    module = make_module(ModuleSizes(**sizes))

    def prepare(case: Mapping[str, Any]) -> Forward:
        torch._dynamo.reset()  # else the guards of all shapes before are tried first
        fast = torch.compile(module, fullgraph=True, dynamic=False)
        x = torch.from_numpy(make_input(case, sizes["embed_dim"]))

        def forward() -> Any:
            with torch.inference_mode():
                return fast(x)

        forward()  # compiles
        return forward

    return prepare


def plain(*, threads: int, folder: str, sizes: dict[str, Any], opset: int) -> Prepare:
    """What PyTorch's own exporter gives, in a session as onnxruntime makes it."""
    session = bare_session(Path(folder) / plain_name(opset), threads)

    def prepare(case: Mapping[str, Any]) -> Forward:
        feeds = {"x": make_input(case, sizes["embed_dim"])}
        return lambda: session.run(None, feeds)[0]

    return prepare


def ours(*, threads: int, folder: str, sizes: dict[str, Any]) -> Prepare:
    """Our file in our runtime."""
    from causal_onnx.runtime import load  # noqa: PLC0415 - only here

    model = load(Path(folder) / MODULE_ARTIFACT, threads=threads)

    def prepare(case: Mapping[str, Any]) -> Forward:
        x = make_input(case, sizes["embed_dim"])
        return lambda: model(x)

    return prepare


def _set_torch_threads(threads: int) -> None:
    import torch  # noqa: PLC0415 - only here

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
