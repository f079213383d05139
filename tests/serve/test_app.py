"""The application by itself, as another ASGI server runs it."""

from __future__ import annotations

import asyncio

import pytest

from causal_onnx.runtime import load
from causal_onnx.serve import Registry, ServedModel, UnavailableError, create_app
from causal_onnx.serve.registry import split_name
from tests.runtime.artifacts import fixture


def test_the_engines_of_given_models_end_with_the_application() -> None:
    app = create_app({"language": load(fixture("language"), threads=1)})
    engine = app.state.service.models["language"].engine

    async def live() -> None:
        async with app.router.lifespan_context(app):
            await engine.submit([5, 3], max_new_tokens=3).wait()

    asyncio.run(live())
    with pytest.raises(UnavailableError, match="shutting down"):
        engine.submit([5, 3])


def test_a_model_is_taken_up_and_taken_away_while_others_are_served() -> None:
    models = Registry()
    model = load(fixture("small"), threads=1)
    for name in ("one", "two"):
        models.add(ServedModel.of(name, model))
    with pytest.raises(ValueError, match="two models are called 'one'"):
        models.add(ServedModel.of("one", model))
    models.remove("one")
    assert list(models) == ["two"]
    models.close()


@pytest.mark.parametrize("name", ["", "a/b", "ä", "-a", "a" * 129])
def test_a_name_that_cannot_stand_in_a_path_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a model"):
        ServedModel.of(name, load(fixture("small"), threads=1))


@pytest.mark.parametrize(
    ("text", "name", "path"),
    [
        ("model/", "model", "model"),
        ("a/b.onnx", "b", "a/b.onnx"),
        ("x=a/b.onnx", "x", "a/b.onnx"),
        ("x=a=b", "x", "a=b"),
        ("./a=b/c", "c", "a=b/c"),
    ],
)
def test_a_place_has_a_name(text: str, name: str, path: str) -> None:
    found, where = split_name(text)
    assert (found, str(where)) == (name, path)
