"""Models are loaded and unloaded while a server runs: those that it may have, and no others."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from causal_onnx.runtime import load
from causal_onnx.serve import open_models
from tests.runtime.artifacts import fixture
from tests.serve.serving import post, served

http = pytest.importorskip("tritonclient.http", reason="needs tritonclient")
from tritonclient.utils import InferenceServerException  # noqa: E402

X = np.ones((1, 3), np.float32)


@pytest.fixture
def root(tmp_path):
    """A repository with a folder, a file, and a link to what lies outside."""
    found = tmp_path / "repository"
    (found / "folder").mkdir(parents=True)
    shutil.copy(fixture("small"), found / "folder" / "model.onnx")
    shutil.copy(fixture("decoder"), found / "decoder.onnx")
    (found / "outside.onnx").symlink_to(fixture("half"))
    (found / "notes.txt").write_text("no model")
    return found


@pytest.fixture
def address(root):
    with served(open_models([str(fixture("small"))], threads=1, repository=root)) as found:
        yield found


@pytest.fixture
def client(address: str):
    with http.InferenceServerClient(address.removeprefix("http://")) as found:
        yield found


def states(client) -> dict[str, str]:
    return {item["name"]: item["state"] for item in client.get_model_repository_index()}


def infer(client, name: str):
    return client.infer(name, [http.InferInput("x", X.shape, "FP32").set_data_from_numpy(X)])


def test_the_index_names_what_is_served_and_what_may_be(client, address: str) -> None:
    expected = {"small": "READY", "decoder": "UNAVAILABLE", "folder": "UNAVAILABLE"}
    assert states(client) == expected
    status, found = post(address, "/v2/repository/index", {"ready": True})
    assert status == 200
    assert found == [{"name": "small", "version": "1", "state": "READY", "reason": ""}]


def test_a_model_of_the_repository_is_loaded_and_unloaded(client) -> None:
    client.load_model("folder")
    assert client.is_model_ready("folder")
    expected = load(fixture("small"), threads=1)(X)
    assert infer(client, "folder").as_numpy("y").tobytes() == expected.tobytes()
    client.unload_model("folder")
    assert not client.is_model_ready("folder")
    with pytest.raises(InferenceServerException, match="there is no model 'folder' here"):
        infer(client, "folder")


def test_a_model_that_was_given_comes_back(client) -> None:
    client.unload_model("small")
    assert states(client)["small"] == "UNAVAILABLE"
    client.load_model("small")
    assert states(client)["small"] == "READY"
    infer(client, "small")


def test_a_model_that_is_loaded_again_is_read_again(client, root) -> None:
    client.load_model("folder")
    shutil.copy(fixture("decoder"), root / "folder" / "model.onnx")
    infer(client, "folder")
    client.load_model("folder")
    assert client.get_model_metadata("folder")["inputs"][0]["name"] == "input_ids"


@pytest.mark.parametrize("name", ["outside", "missing", "..", "notes.txt", "%2e%2e%2fsecret"])
def test_what_is_not_allowed_is_refused_by_name(address: str, name: str) -> None:
    status, found = post(address, f"/v2/repository/models/{name}/load", {})
    assert status == 404
    assert found["error"].startswith((f"'{name}' may not be loaded on this", "there is no POST"))


def test_without_a_repository_only_given_models_are_loaded() -> None:
    with served(open_models([str(fixture("small"))], threads=1)) as address:
        status, found = post(address, "/v2/repository/models/decoder/load", {})
    assert status == 404
    assert found["error"] == "'decoder' may not be loaded on this server; available are small"


def test_a_file_that_cannot_be_loaded_changes_nothing(client, root) -> None:
    (root / "folder" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(InferenceServerException, match="folder cannot be loaded: "):
        client.load_model("folder")
    assert states(client)["folder"] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("models/folder/load", {"parameters": {"config": "{}"}}, "'config' is not supported"),
        ("models/folder/load", {"parameters": 1}, "parameters must be an object"),
        ("models/small/unload", {"parameters": {"odd": 1}}, "'odd' is not supported"),
        ("models/small/unload", {"odd": 1}, "odd is not supported"),
        ("index", {"ready": 1}, "ready must be true or false"),
    ],
)
def test_what_is_wrong_is_said(address: str, path: str, body, message: str) -> None:
    status, found = post(address, f"/v2/repository/{path}", body)
    assert status == 400
    assert message in found["error"]


def test_a_repository_that_is_no_folder_is_said(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        open_models([str(fixture("small"))], repository=tmp_path / "missing")
