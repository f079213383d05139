"""Which sums over the past onnxruntime's `LinearAttention` computes, and how.

For each head, with queries and keys of one width and values of another,

    state[t] = exp(decay[t]) * state[t - 1] + key[t] x value[t]
    out[t] = query[t] state[t]

where the decay is one number for the head, or one for each entry of a key. Here the letters of a
mixture are told apart as axes of heads, keys and values, and the decay of one step is found: that
of two neighbours by themselves, which the trials of `mixture.py` allow.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.elements import Array
from causal_onnx.export.cache.mixture import Decay, Factor, Labels, Mixture, spread
from causal_onnx.export.cache.region import Draw, Region
from causal_onnx.export.cache.spans import BATCH
from causal_onnx.export.errors import NotSupportedError
from causal_onnx.export.graph.facts import Layouts
from causal_onnx.export.graph.onnxruntime_versions import refuse_unknown
from causal_onnx.runtime.contract import CONTRIB

__all__ = ["OPERATOR", "Heads", "StepDecay", "heads_of"]

OPERATOR = "LinearAttention"

_KEEP_SIGN = {
    "Transpose": 1, "Unsqueeze": 1, "Squeeze": 1, "Identity": 1, "Expand": 1, "Reshape": 1,
    "Slice": 1, "Trilu": 1, "Reciprocal": 1, "Mul": 2, "Div": 2,
}  # fmt: skip
"""Operator -> of how many inputs, none of which is negative, it gives no negative number."""


@dataclass(frozen=True)
class StepDecay:
    """A factor of the decay from one position to the next that data decide."""

    value: ir.Value
    """Of the decay's region: the factor, or its logarithm."""
    labels: Labels
    region: Region
    is_logarithm: bool


@dataclass(frozen=True)
class Heads:
    """The axes of a sum as the operator's, each by its letter; and the decay of a step."""

    heads: Labels
    groups: Labels
    """Of queries that share the keys and values of a head."""
    keys: Labels
    values: Labels
    key_factors: tuple[Factor, ...]
    value_factors: tuple[Factor, ...]
    decays: tuple[StepDecay, ...]
    constant: Array | None
    """The logarithm of what positions alone decide of a step's decay; axes: heads, then keys, of
    one entry where it is the same for all. None: one."""

    @property
    def has_decay(self) -> bool:
        """Whether the past fades at all."""
        return bool(self.decays) or self.constant is not None

    @property
    def fading(self) -> Labels:
        """The axes of the decay: the heads, and the keys where their entries fade by themselves."""
        named = {x for decay in self.decays for x in decay.labels}
        sizes = () if self.constant is None else self.constant.shape[len(self.heads) :]
        by_key = bool(named & set(self.keys)) or max(sizes, default=1) > 1
        return self.heads + self.keys if by_key else self.heads


def heads_of(mixture: Mixture, output: ir.Value, layouts: Layouts) -> Heads:
    """The sum as the operator computes it.

    Raises:
        NotSupportedError: It does not, or the onnxruntime that the file is proved with has none.
    """
    refuse_unknown(CONTRIB, OPERATOR)
    read = [*mixture.rows, *mixture.columns, *(x for x in mixture.decays if x.keeps is None)]
    if any(value.dtype != ir.DataType.FLOAT for value in (output, *(x.value for x in read))):
        raise NotSupportedError(f"{OPERATOR} is used for float32 alone")
    made = {x for x in mixture.output if x in mixture.sizes}
    asked = {x for factor in mixture.rows for x in factor.labels if x in mixture.sizes}
    given = {x for factor in mixture.columns for x in factor.labels if x in mixture.sizes}
    fading = set(mixture.shared)
    order = "".join(dict.fromkeys(mixture.kept + "".join(mixture.output)))
    keys = tuple(x for x in order if x in mixture.kept and x not in made)
    values = tuple(x for x in order if x in made and x in given - asked - fading)
    heads = tuple(x for x in order if x in mixture.kept and x not in (*keys, *values))
    groups = tuple(x for x in order if x in made and x not in (*heads, *values))
    key_factors, value_factors = list[Factor](), list[Factor]()
    for factor in mixture.columns:
        is_key = bool(set(factor.labels) & set(keys))
        if is_key and set(factor.labels) & set(values):
            raise NotSupportedError("a factor has axes of keys and of values")
        (key_factors if is_key else value_factors).append(factor)
    parts = (key_factors, value_factors)
    apart = [{x for factor in part for x in factor.labels} & given for part in parts]
    if (apart[0] & apart[1]) - set(heads):
        raise NotSupportedError("keys and values are summed over one axis")
    constant, decays = _step(mixture, heads + keys, layouts)
    return Heads(
        heads, groups, keys, values, tuple(key_factors), tuple(value_factors), decays, constant
    )


def _step(
    mixture: Mixture, axes: Labels, layouts: Layouts
) -> tuple[Array | None, tuple[StepDecay, ...]]:
    """The decay of one step: the logarithm of what is constant of it, and the other factors."""
    total: Array = np.ones((1,) * len(axes))
    found = []
    for decay in mixture.decays:
        if decay.region is not None and layouts.is_tainted(decay.value):
            found.append(_by_data(decay, decay.region, layouts))
        else:
            total = total * _constant(decay, axes)
    if not found and (total == 1).all():
        return None, ()
    with np.errstate(divide="ignore"):  # the past is gone where it is 0, and so the operator does
        logarithm = np.log(total).astype(np.float32)
    return (None if (total == 1).all() else logarithm), tuple(found)


def _constant(decay: Decay, axes: Labels) -> Array:
    """Of two neighbours, in float64, with one axis for each letter."""
    if decay.region is None:
        assert decay.value.const_value is not None
        array = decay.value.const_value.numpy()
    else:
        # It reads the shapes of what it is given, and no numbers.
        array = decay.region.evaluate(2, decay.region.samples(2, 0, Draw()))
    whole = spread(array, decay.labels, "b" + "".join(axes) + "ij")
    if (whole != whole[:1]).any():
        raise NotSupportedError("a decay differs from row to row of the batch")
    step: Array = whole[0, ..., -1, 0]
    if decay.keeps is not None:
        return np.asarray(step == decay.keeps, np.float64)
    if not (step >= 0).all():
        raise NotSupportedError("a decay has no logarithm")
    return step.astype(np.float64)


def _by_data(decay: Decay, region: Region, layouts: Layouts) -> StepDecay:
    if region.free or "b" not in decay.labels:
        raise NotSupportedError("a decay is made of more than its positions")
    for node in region.shapes:
        source = node.inputs[0]
        axes = () if source is None else layouts.axes(source)
        if node.op_type != "Shape" or not all(a.is_fixed or a.is_seq or a == BATCH for a in axes):
            raise NotSupportedError("a decay's shape has positions merged with other axes")
    last = decay.value.producer()
    if last is not None and last in region.nodes and (last.op_type, last.domain) == ("Exp", ""):
        assert last.inputs[0] is not None
        return StepDecay(last.inputs[0], decay.labels, region, is_logarithm=True)
    if not _is_never_negative(decay.value, region, layouts):
        raise NotSupportedError("a decay may be negative, and then has no logarithm")
    return StepDecay(decay.value, decay.labels, region, is_logarithm=False)


def _is_never_negative(value: ir.Value | None, region: Region, layouts: Layouts) -> bool:
    known = layouts.constant(value)
    if known is not None:
        return bool((known.value >= 0).all())
    node = None if value is None else value.producer()
    if node is None or node not in region.nodes or node.domain:
        return False
    if node.op_type == "Exp":
        return True
    places = slice(1, None) if node.op_type == "Where" else slice(_KEEP_SIGN.get(node.op_type, 0))
    inputs = node.inputs[places]
    return bool(inputs) and all(_is_never_negative(x, region, layouts) for x in inputs)
