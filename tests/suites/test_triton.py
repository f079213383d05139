"""The real Triton runs what we write for it, and answers as our own server does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from causal_onnx.runtime import load
from causal_onnx.runtime.triton import write_repository
from causal_onnx.serve import GrpcServer, open_models
from tests.runtime.artifacts import fixture
from tests.suites.suite import free_ports

ROOT = Path(__file__).parents[2]
TRITON = ROOT / "build" / "suites" / "triton" / "pytriton" / "tritonserver"
NAMES = ("stories", "small")
BOOT_S = 600


@pytest.fixture(scope="module")
def folders(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    small = tmp_path_factory.mktemp("models") / "small"
    small.mkdir()
    shutil.copy(fixture("small"), small / "model.onnx")
    return {"stories": stories, "small": small}


@pytest.fixture(scope="module")
def triton(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Addresses of the real one: HTTP, gRPC."""
    if not (TRITON / "bin" / "tritonserver").is_file():
        pytest.skip("the wheel of nvidia-pytriton, which holds Triton, could not be had")
    place = tmp_path_factory.mktemp("triton")
    packages = place / "packages"
    packages.mkdir()
    # As an installation would be: this package, and what it needs.
    (packages / "all.pth").write_text(
        f"{ROOT / 'runtime'}\n{ROOT / 'build' / 'suites' / 'triton'}\n"
    )
    for folder in folders.values():
        write_repository(folder, place / "repository", packages=packages)
    shutil.copytree(TRITON / "backends", place / "backends")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = TRITON / "python_backend_stubs" / version / "triton_python_backend_stub"
    # The stub finds its libraries by where it lies.
    (place / "backends" / "python" / stub.name).symlink_to(stub)
    libraries = [
        sysconfig.get_config_var("LIBDIR"),
        str(TRITON.parents[1] / "nvidia_pytriton.libs"),
    ]
    http, grpc = free_ports(2)
    command = [
        str(TRITON / "bin" / "tritonserver"),
        f"--model-repository={place}/repository",
        f"--backend-directory={place}/backends",
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        "--http-address=127.0.0.1",
        "--grpc-address=127.0.0.1",
        "--allow-metrics=false",
    ]
    environ = {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}
    log = (place / "log").open("w")
    process = subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.STDOUT)
    try:
        _wait(process, http, place / "log")
        yield f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
    finally:
        process.terminate()
        process.wait()
        log.close()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import httpx

    until = time.monotonic() + BOOT_S
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError(f"Triton is not ready:\n{log.read_text()}")


@pytest.fixture(scope="module")
def ours(folders: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Addresses of our own server: HTTP, gRPC."""
    import contextlib
    import threading

    from causal_onnx.serve import Server, create_app
    from causal_onnx.serve.server import bound_socket

    models = open_models([str(folder) for folder in folders.values()], threads=1)
    app = create_app(models)
    (port,) = free_ports(1)
    server = Server(app, grpc=GrpcServer(app.state.service, port=port))
    with contextlib.closing(bound_socket("127.0.0.1", 0)) as opened:
        thread = threading.Thread(target=server.run, args=([opened],))
        thread.start()
        yield f"127.0.0.1:{opened.getsockname()[1]}", f"127.0.0.1:{port}"
        server.should_exit = True
        thread.join()
        models.close()


def clients(addresses: tuple[str, str]) -> dict[str, Any]:
    import tritonclient.grpc
    import tritonclient.http

    http, grpc = addresses
    return {
        "http": (tritonclient.http, tritonclient.http.InferenceServerClient(http)),
        "grpc": (tritonclient.grpc, tritonclient.grpc.InferenceServerClient(grpc)),
    }


def described(protocol: str, client: Any, name: str) -> dict[str, Any]:
    options = {} if protocol == "http" else {"as_json": True}
    found = client.get_model_metadata(name, **options)
    return {
        "name": found["name"],
        "versions": list(found["versions"]),
        **{
            side: [
                (item["name"], item["datatype"], [int(size) for size in item["shape"]])
                for item in found[side]
            ]
            for side in ("inputs", "outputs")
        },
    }


def arrays(folder: Path, seq: int) -> dict[str, np.ndarray]:
    """What a model takes, less what may be left out."""
    contract = load(folder, threads=1).contract
    generator = np.random.default_rng(seq)
    found = {}
    for spec in contract.inputs:
        if spec.name in contract.optional_names:
            continue
        sizes = {"batch": 1, "seq": seq}
        shape = [size if isinstance(size, int) else sizes[size] for size in spec.axes]
        if spec.vocab_size is not None:
            found[spec.name] = generator.integers(0, spec.vocab_size, shape).astype(spec.dtype)
        else:
            found[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return found


def answered(library: Any, client: Any, name: str, given: dict[str, np.ndarray]) -> dict[str, Any]:
    inputs = []
    for key, array in given.items():
        kind = {"f": "FP32", "i": "INT64"}[array.dtype.kind]
        item = library.InferInput(key, list(array.shape), kind)
        inputs.append(item.set_data_from_numpy(array) or item)
    result = client.infer(name, inputs)
    response = result.get_response()
    outputs = response["outputs"] if isinstance(response, dict) else response.outputs
    names = [item["name"] if isinstance(item, dict) else item.name for item in outputs]
    return {key: result.as_numpy(key) for key in names}


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("name", NAMES)
def test_both_servers_describe_a_model_alike(
    triton: Any, ours: Any, name: str, protocol: str
) -> None:
    theirs, own = clients(triton)[protocol][1], clients(ours)[protocol][1]
    assert described(protocol, theirs, name) == described(protocol, own, name)


@pytest.mark.parametrize("seq", [1, 7, 100])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("name", NAMES)
def test_both_servers_give_the_bits_of_a_call_in_process(
    triton: Any, ours: Any, folders: dict[str, Path], name: str, protocol: str, seq: int
) -> None:
    given = arrays(folders[name], seq)
    expected = load(folders[name], threads=1).run(**given)
    for addresses in (triton, ours):
        found = answered(*clients(addresses)[protocol], name, given)
        assert set(found) == set(expected)
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_both_servers_refuse_the_same_with_the_same_words(
    triton: Any, ours: Any, folders: dict[str, Path], protocol: str
) -> None:
    from tritonclient.utils import InferenceServerException

    messages = []
    for addresses in (triton, ours):
        given = {"input_ids": np.full((1, 3), 10**6)}
        with pytest.raises(InferenceServerException) as caught:
            answered(*clients(addresses)[protocol], "stories", given)
        messages.append(caught.value.message())
    theirs, own = messages
    assert own in theirs
