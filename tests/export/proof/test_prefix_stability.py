"""Values that change for early positions as the sequence grows."""

from __future__ import annotations

import pytest

from causal_onnx.export.attestation import attest
from tests.export.analysis.graphs import build
from tests.export.analysis.rule_cases import attend

LENGTH = "n1 = Shape <start = 1, end = 2> (x) n0 = Squeeze(n1) n = Cast <to = 1> (n0)"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (LENGTH + " y = Div(x, n)", ("n",)),
        ("y = Relu(x)", ()),
        (attend("c = LessOrEqual(j, i) m = Where(c, s, lowest)"), ()),
    ],
    ids=["divided_by_the_length", "plain", "causal_mask"],
)
def test_length_dependent_values_are_named(body: str, found: tuple[str, ...]) -> None:
    certificate = attest(build(body))
    assert certificate.verdict == "causal"
    assert certificate.length_dependent == found
    assert certificate.prefix_stable is (not found)


def test_a_bias_that_shifts_whole_rows_is_harmless() -> None:
    mask = (
        "d = Sub(j, n) f = Cast <to = 1> (d) r = Constant <value_float = 0.25> () e = Mul(f, r) "
        "c = LessOrEqual(j, i) b = Where(c, e, lowest) m = Add(s, b)"
    )
    certificate = attest(build(attend(mask)))
    assert certificate.length_dependent == ()
    assert certificate.prefix_stable
