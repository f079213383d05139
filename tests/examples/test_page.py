"""The page with the attention maps, used by keyboard in headless Chromium."""

from __future__ import annotations

import codecs
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from causal_onnx.runtime import load
from examples.bundles import LANGUAGE_MODEL, MAPS
from examples.clients.client import MissingError
from examples.clients.languages import prepare_browser

LAYERS, HEADS, LIMIT = 1, 4, 64


BROWSER = Path(__file__).parents[2] / "examples" / "browser"


@pytest.fixture(scope="module")
def built() -> None:
    try:
        prepare_browser("wasm", False)
    except MissingError as error:
        pytest.skip(str(error))


@pytest.fixture
def bundles(built: None, bundle_folder: Path) -> Path:
    return bundle_folder


def use_page(bundles: Path, screenshots: Path) -> dict[str, Any]:
    return checked("check.mjs", bundles, screenshots)


def checked(script: str, *arguments: Path | str) -> dict[str, Any]:
    """What a script that uses a page found."""
    command = ["node", str(BROWSER / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_person_uses_the_page_by_keyboard(bundles: Path, tmp_path: Path) -> None:
    found = use_page(bundles, tmp_path)
    assert found["complaints"] == []
    assert found["requestsWhenReady"] == 0
    assert found["firstFocus"] == "text"
    assert found["differentMaps"] == found["keys"] == 22
    assert found["stated"] == 0
    for pixels in (found["pixels"], found["pixelsInTheDark"]):
        assert pixels["checked"] == 22 * 21 // 2
        assert pixels["above"] == 0
        assert pixels["coloursBelow"] > 1
    assert found["headByKey"] == "Layer 1, head 2"
    assert found["headChangesMap"]
    assert "gives" in found["readings"][0]
    assert "cannot see" in found["readings"][1]
    assert found["fitsPhone"]
    assert {path.name for path in tmp_path.iterdir()} == {"desktop.png", "phone.png", "dark.png"}
    model = load(bundles / LANGUAGE_MODEL / "model.onnx")
    prompt = list(found["text"].encode())
    ids = model.generate(prompt, max_new_tokens=LIMIT - len(prompt) + 1).ids
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    assert found["streams"]
    assert found["continuation"] == decoder.decode(bytes(ids))


def test_weights_above_the_diagonal_show(bundles: Path, tmp_path: Path) -> None:
    """The same page with a model that looks everywhere."""
    folder = tmp_path / "bundles"
    shutil.copytree(bundles, folder)
    onnx.save(looking_everywhere(), folder / MAPS / "model.onnx")
    found = use_page(folder, tmp_path / "shots")
    assert found["stated"] == LAYERS * HEADS * 22 * 21 // 2
    # All but the cell that is marked.
    assert found["pixels"]["above"] >= 22 * 21 // 2 - 1


def test_a_page_continues_a_text_with_the_folder_of_a_checkpoint(
    built: None, stories: Path
) -> None:
    found = checked("check-continue.mjs", stories, "The dog")
    model = load(stories, threads=1)
    assert found["complaints"] == []
    assert found["requestsWhenReady"] == 0
    assert found["text"] == "The dog" + str(model.generate("The dog").text)


def test_a_page_says_what_a_folder_lacks(built: None, stories: Path, tmp_path: Path) -> None:
    shutil.copytree(stories, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    found = checked("check-continue.mjs", tmp_path / "model", "The dog")
    assert "tokenizer.json: 404" in found["status"]


def looking_everywhere() -> onnx.ModelProto:
    sizes = {"layers": LAYERS, "heads": HEADS, "vocab": 256}
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["batch"], start=0, end=1),
        helper.make_node("Shape", ["input_ids"], ["seq"], start=1, end=2),
        helper.make_node("Concat", ["batch", "seq", "vocab"], ["flat"], axis=0),
        helper.make_node("Concat", ["layers", "batch", "heads", "seq", "seq"], ["square"], axis=0),
        helper.make_node("ConstantOfShape", ["flat"], ["logits"]),
        helper.make_node(
            "ConstantOfShape",
            ["square"],
            ["output_1"],
            value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.1]),
        ),
    ]
    axes = ["batch", "seq"]
    graph = helper.make_graph(
        nodes,
        "everywhere",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, axes)],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*axes, 256]),
            helper.make_tensor_value_info(
                "output_1", TensorProto.FLOAT, [LAYERS, "batch", HEADS, "seq", "seq"]
            ),
        ],
        [helper.make_tensor(key, TensorProto.INT64, [1], [size]) for key, size in sizes.items()],
    )
    opset = helper.make_opsetid("", 20)
    return helper.make_model(graph, opset_imports=[opset], ir_version=10)
