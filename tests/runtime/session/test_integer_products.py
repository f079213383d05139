"""Products of bytes are exact, or made so, or refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import DeviceError
from causal_onnx.runtime.session import integer_products
from causal_onnx.runtime.session.integer_products import exact_product_settings


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    exact_product_settings.cache_clear()
    yield
    exact_product_settings.cache_clear()


SLOWER = {"session.x64quantprecision": "1"}


class Clipping:
    """A processor that adds two products of bytes in 16 bits, as those without VNNI do."""

    def __init__(self, *, helps: bool):
        self.helps = helps
        self.settings: dict[str, str] = {}

    def SessionOptions(self) -> Any:  # noqa: N802 - onnxruntime's name
        self.settings = {}
        return self

    def add_session_config_entry(self, key: str, value: str) -> None:
        self.settings[key] = value

    def InferenceSession(self, *_: Any, **__: Any) -> Any:  # noqa: N802 - onnxruntime's name
        return self

    def run(self, _: None, feed: Mapping[str, Any]) -> list[Any]:
        x = feed["x"].astype(np.int64)
        pairs = x[:, 0::2] * 127 + x[:, 1::2] * 127
        if not (self.helps and self.settings == SLOWER):
            pairs = pairs.clip(-(1 << 15), (1 << 15) - 1)
        whole = pairs.sum(1) - 128 * 127 * x.shape[1]
        return [np.repeat(whole[:, None], integer_products.COLUMNS, 1)]


def on(processor: Clipping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_products, "import_onnxruntime", lambda: processor)


def test_this_processor_is_exact_with_what_it_is_told() -> None:
    assert integer_products._is_exact(exact_product_settings())


def test_where_sums_are_cut_off_the_slower_product_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on(Clipping(helps=True), monkeypatch)
    assert exact_product_settings() == SLOWER


def test_where_that_does_not_help_the_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on(Clipping(helps=False), monkeypatch)
    with pytest.raises(
        DeviceError, match=r"saturates sums at 16 bits .* export with precision='int8'"
    ):
        exact_product_settings()


def test_the_product_asked_for_is_that_of_the_model_file() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(integer_products._model())
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["MatMulInteger"]
