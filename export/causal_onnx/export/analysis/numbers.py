"""Whole numbers among the constants that position-only values are computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from causal_onnx.export.analysis.elements import VERY_NEGATIVE
from causal_onnx.export.analysis.interpret import Constants

__all__ = ["numbers_behind"]

MAX_VALUES = 400
"""How many values are looked at, from the nearest on."""

LARGEST = 1 << 20
"""Numbers from here on are no lengths."""


def numbers_behind(
    constants: Constants, values: Iterable[ir.Value], *, widths: bool = False
) -> Iterator[int]:
    """The magnitudes of whole numbers that stand alone upstream of `values`, as far as shapes.

    What is far below 0 is a score, not a length; so is what is as far from 0 and only scales a
    value (`-1e4 * (1 - mask)`): a mask that it makes has no turning point there. `widths`: and
    those of stored matrices.
    """
    todo = [(value, True) for value in values]
    done: set[tuple[ir.Value, bool]] = set()
    while todo and len(done) < MAX_VALUES:
        value, scales = todo.pop()
        if (value, scales) in done:
            continue
        done.add((value, scales))
        known = constants.of(value)
        if known is not None:
            if known.size == 1 and known.value.dtype.kind in "iuf":
                number = float(known.value.reshape(-1)[0])
                is_score = known.value.dtype.kind == "f" and (
                    number <= VERY_NEGATIVE or (scales and number >= -VERY_NEGATIVE)
                )
                if number.is_integer() and abs(number) < LARGEST and not is_score:
                    yield abs(int(number))
            elif widths and len(known.shape) > 1 and known.shape[-2] > 1:
                yield known.shape[-1]
            continue
        node = value.producer()
        if node is not None and node.op_type != "Shape":
            scales = scales and node.op_type in ("Mul", "Neg")
            todo.extend((v, scales) for v in node.inputs if v is not None)
