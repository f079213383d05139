"""Whether this processor multiplies bytes exactly, asked by a product.

Without the instructions named VNNI, onnxruntime's fast product of unsigned by signed bytes on x86
adds two products in 16 bits, and what does not fit is cut off: 2 x 255 x 127 is twice as much as
fits. Files of the precision "w8a8" use the whole range of both. onnxruntime has a slower product
that adds in 32 bits; it would take it with VNNI too, so it is asked for only where it is needed.
Source: `session.x64quantprecision` in
https://github.com/microsoft/onnxruntime/blob/main/include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from causal_onnx.runtime.artifact.protobuf import field_bytes
from causal_onnx.runtime.errors import DeviceError
from causal_onnx.runtime.session.ort import import_onnxruntime

__all__ = ["PRECISION", "exact_product_settings"]

PRECISION = "w8a8"
"""Of the files that need it."""

WIDTH, COLUMNS = 256, 48
"""Of the product: several of the kernel's steps, along both."""

_SLOWER = {"session.x64quantprecision": "1"}

_UINT8, _INT8, _INT32 = 2, 3, 6
"""ONNX's numbers of these types."""


@functools.cache
def exact_product_settings() -> Mapping[str, str]:
    """What a session of such a file must be told for its products to be exact.

    Raises:
        DeviceError: They are not, whatever it is told.
    """
    for settings in ({}, _SLOWER):
        if _is_exact(settings):
            return settings
    raise DeviceError(
        "onnxruntime saturates sums at 16 bits when it multiplies bytes on this processor, so that "
        f"a file of precision {PRECISION!r} would give wrong numbers here; export with "
        "precision='int8' or 'int4' for it"
    )


def _is_exact(settings: Mapping[str, str]) -> bool:
    """Whether the largest products come out right, for one row and for several."""
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    for key, value in settings.items():
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(_model(), options, providers=["CPUExecutionProvider"])
    return all(
        (session.run(None, {"x": np.full((rows, WIDTH), number, np.uint8)})[0] == expected).all()
        for rows in (1, 2, 7)
        for number, expected in ((255, 127 * 127 * WIDTH), (1, -127 * 127 * WIDTH))
    )


def _model() -> bytes:
    """The ONNX model y = (x - 128) w, all of w 127; encoded by hand, without the package onnx."""

    def tensor(name: str, dtype: int, dims: tuple[int, ...], raw: bytes) -> bytes:
        sizes = b"".join(field_bytes(1, size) for size in dims)
        return sizes + field_bytes(2, dtype) + field_bytes(8, name) + field_bytes(9, raw)

    def described(name: str, dtype: int, width: int) -> bytes:
        dims = [field_bytes(2, "rows"), field_bytes(1, width)]
        shape = b"".join(field_bytes(1, dim) for dim in dims)
        kind = field_bytes(1, field_bytes(1, dtype) + field_bytes(2, shape))
        return field_bytes(1, name) + field_bytes(2, kind)

    names = b"".join(field_bytes(1, name) for name in ("x", "w", "z"))
    node = names + field_bytes(2, "y") + field_bytes(4, "MatMulInteger")
    parts: list[tuple[int, Any]] = [
        (1, node),
        (2, "g"),
        (5, tensor("w", _INT8, (WIDTH, COLUMNS), bytes([127]) * (WIDTH * COLUMNS))),
        (5, tensor("z", _UINT8, (), bytes([128]))),
        (11, described("x", _UINT8, WIDTH)),
        (12, described("y", _INT32, COLUMNS)),
    ]
    graph = b"".join(field_bytes(number, value) for number, value in parts)
    opset = field_bytes(1, "") + field_bytes(2, 20)
    return field_bytes(1, 10) + field_bytes(7, graph) + field_bytes(8, opset)
