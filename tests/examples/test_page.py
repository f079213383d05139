"""The page with the attention maps, used by keyboard in headless Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from causal_onnx.runtime import load
from causal_onnx.runtime.bundle.manifest import file_entry
from examples.bundles import BLOCK, LANGUAGE_MODEL, MAPS
from examples.clients.client import MissingError
from examples.clients.languages import prepare_browser

LAYERS, HEADS = 1, 4


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


@pytest.fixture(scope="module")
def used(
    built: None, bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("used")
    found = use_page(bundle_folder, place)
    return {**found, "pictures": {path.name for path in place.iterdir()}}


def test_a_person_uses_the_page_by_keyboard(used: dict[str, Any], bundle_folder: Path) -> None:
    found = used
    assert found["complaints"] == []
    assert found["requestsWhenReady"] == 0
    assert found["focus"] == ["A", "folder", "A", "text"]
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
    assert found["pictures"] == pictures("first", "continued")
    assert found["streams"]
    assert found["continuation"] == continued(bundle_folder / LANGUAGE_MODEL, found["text"])


def test_equal_steps_of_the_legend_look_equally_large(used: dict[str, Any]) -> None:
    lightness = np.array(used["scale"])
    steps = np.diff(lightness)
    assert len(steps) >= 16
    assert lightness[0] < 20
    assert lightness[-1] > 85
    assert np.abs(steps - steps.mean()).max() < 0.3 * steps.mean()  # a rainbow falls, too


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
    assert found["complaints"] == []
    assert found["requestsWhenReady"] == 0
    assert found["text"] == continued(stories, "The dog")


def test_a_page_says_what_a_folder_lacks(built: None, stories: Path, tmp_path: Path) -> None:
    shutil.copytree(stories, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    found = checked("check-continue.mjs", tmp_path / "model", "The dog")
    assert "tokenizer.json: 404" in found["status"]


TEXT = "The dog"
AGAIN = "Copy the whole folder again"


@dataclass(frozen=True)
class Loaded:
    """What the page said and showed when each folder had been loaded, one after the other."""

    found: dict[str, Any]
    pictures: Path

    def __getitem__(self, folder: str) -> dict[str, Any]:
        return dict(self.found["folders"][folder])


@pytest.fixture(scope="module")
def loaded(
    built: None,
    bundle_folder: Path,
    stories: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Loaded:
    place = tmp_path_factory.mktemp("own")
    damaged = [damage(shutil.copytree(stories, place / name)) for name, damage in DAMAGES.items()]
    whole = shutil.copytree(stories, place / "stories")
    shutil.copytree(whole, place / "dropped")
    folders = [
        whole,
        *damaged,
        bundle_folder / BLOCK,
        bundle_folder / MAPS,
        place / "dropped",
    ]
    found = checked("check-folder.mjs", bundle_folder, place / "pictures", TEXT, *folders)
    return Loaded(found=found, pictures=place / "pictures")


def change_byte(file: str, place: int) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        content = bytearray((folder / file).read_bytes())
        content[place] ^= 1
        (folder / file).write_bytes(content)
        return folder

    return change


def remove(file: str) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        (folder / file).unlink()
        return folder

    return change


def edit_manifest(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        document = json.loads((folder / "contract.json").read_text())
        edit(document)
        (folder / "contract.json").write_text(json.dumps(document))
        return folder

    return change


def retrain(folder: Path) -> Path:
    """Other weights under the right hashes: only the golden vectors notice."""
    model = onnx.load(folder / "model.onnx")
    weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(weights)
    weights.CopyFrom(onnx.numpy_helper.from_array(values * values.dtype.type(1.5), weights.name))
    onnx.save(model, folder / "model.onnx")
    with (folder / "model.onnx").open("rb") as file:
        entry = file_entry(file)
    return edit_manifest(lambda document: document["files"].update({"model.onnx": entry}))(folder)


DAMAGES: dict[str, Callable[[Path], Path]] = {
    "changed-model": change_byte("model.onnx", -1000),
    "changed-tokenizer": change_byte("tokenizer.json", 1000),
    "changed-test-data": change_byte("test_data_set_0/input_0.pb", -1),
    "changed-goldens": change_byte("goldens.json", 1000),
    "changed-contract": edit_manifest(lambda d: d["contract"].update(max_seq_len=9)),
    "changed-certificate": edit_manifest(lambda d: d.update(certificate=None)),
    "newer-contract": edit_manifest(lambda d: d.update(format=2)),
    "no-list": edit_manifest(lambda d: d.pop("files")),
    "broken-contract": change_byte("contract.json", 0),
    "other-weights": retrain,
    "no-tokenizer": remove("tokenizer.json"),
    "no-model": remove("model.onnx"),
    "no-contract": remove("contract.json"),
}
"""Folder -> how it came to be so."""

SAID = {
    "changed-model": ("model.onnx in", "was changed", AGAIN),
    "changed-tokenizer": ("tokenizer.json in", "was changed", AGAIN),
    "changed-test-data": ("test_data_set_0/input_0.pb in", "was changed", AGAIN),
    "changed-goldens": ("goldens.json in", "was changed", AGAIN),
    "changed-contract": ("contract.json in", "its contract is not the one in model.onnx", AGAIN),
    "changed-certificate": ("contract.json in", "its certificate is not the one", AGAIN),
    "newer-contract": ("contract.json in", "has the format 2", "Use the page of the version"),
    "no-list": ("contract.json of", "lists no model.onnx", AGAIN),
    "broken-contract": ("contract.json in", "is not JSON", AGAIN),
    "other-weights": ("model.onnx of", "does not repeat goldens.json", "--target portable"),
    "no-tokenizer": ("tokenizer.json is missing from", AGAIN),
    "no-model": ("model.onnx is missing from", AGAIN),
    "no-contract": ("it has no contract.json", "Choose a folder that"),
}


def test_a_person_loads_a_folder_of_their_own(loaded: Loaded, stories: Path) -> None:
    own = loaded["stories"]
    assert (own["model"], own["said"], own["maps"]) == ("“stories”", "", False)
    files = json.loads((stories / "contract.json").read_text())["files"]
    assert own["facts"][0].startswith(f"All {len(files)} files have the hashes in contract.json.")
    assert own["facts"][1].startswith("Its certificate says “causal”: every output at position t")
    assert "no picture of its attention" in own["facts"][2]
    assert own["text"] == continued(stories, TEXT)


@pytest.mark.parametrize("folder", DAMAGES)
def test_a_folder_that_is_not_whole_is_refused_and_the_page_goes_on(
    folder: str, loaded: Loaded, stories: Path
) -> None:
    after = loaded[folder]
    for words in (*SAID[folder], f"“{folder}”", "The page still shows “stories”."):
        assert words in after["said"]
    assert after["model"] == "“stories”"
    assert is_begun(after["text"], stories)


def test_the_page_says_what_it_cannot_show(loaded: Loaded) -> None:
    block = loaded[BLOCK]
    assert block["model"] == f"“{BLOCK}”"
    assert "cannot show it a text: it takes x: float32 [batch, seq, " in block["facts"][2]
    assert (block["maps"], block["text"]) == (False, None)


def test_a_folder_that_returns_its_attention_weights_has_maps(loaded: Loaded) -> None:
    maps = loaded[MAPS]
    assert (maps["model"], maps["maps"], maps["text"]) == (f"“{MAPS}”", True, None)
    assert "does not continue a text: it has no key-value cache" in maps["facts"][2]


def test_a_folder_may_be_dropped_on_the_page(loaded: Loaded, stories: Path) -> None:
    assert loaded["dropped"]["model"] == "“dropped”"
    assert is_begun(loaded["dropped"]["text"], stories)


def test_nothing_is_sent_and_the_example_comes_back(loaded: Loaded, bundle_folder: Path) -> None:
    assert loaded.found["requestsWhenReady"] == 0
    assert loaded.found["complaints"] == []
    assert loaded.found["model"] == "the example model"
    assert loaded.found["text"] == continued(bundle_folder / LANGUAGE_MODEL, TEXT)
    assert {path.name for path in loaded.pictures.iterdir()} == pictures(
        "text", "refused", "facts", "maps"
    )


def continued(folder: Path, text: str) -> str:
    """The text and what the model adds up to its end, of which nothing is drawn."""
    return text + str(load(folder, threads=1).generate(text).text)


def is_begun(text: str, folder: Path) -> bool:
    """Whether it is `TEXT` with a part of what the model adds."""
    return len(text) > len(TEXT) and continued(folder, TEXT).startswith(text)


def pictures(*states: str) -> set[str]:
    return {
        f"{state}-{width}-{colours}.png"
        for state in states
        for width in (1280, 390)
        for colours in ("light", "dark")
    }


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
