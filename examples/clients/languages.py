"""The clients: what each needs, how it is built, and the command that runs its self-test."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.bundles import PREFIX
from examples.clients.client import BUILD, ROOT, Client, MissingError, run_tool
from examples.clients.headers import find_headers, find_library

__all__ = ["CLIENTS", "GENERATORS", "install_python", "need_browser"]

EXAMPLES = ROOT / "examples"
OPENVINO = "openvino==2026.4.1"
GENAI = "onnxruntime-genai==0.18.0"

Command = list[str | Path]
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-O2")


def prepare_python(_install: bool) -> Sequence[str]:
    """Nothing to build."""
    return [sys.executable, str(EXAMPLES / "python_plain" / "selftest.py")]


def prepare_node(install: bool) -> Sequence[str]:
    """Install what package-lock.json names, and compile."""
    folder = EXAMPLES / "node"
    _npm_install(folder, install)
    _build([_need("npx"), "tsc"], folder, why="the TypeScript client does not compile")
    return [_need("node"), str(folder / "dist" / "main.js")]


def prepare_c(install: bool) -> Sequence[str]:
    """Compile with the system's compiler."""
    headers, folder = find_headers(install), EXAMPLES / "c"
    program = BUILD / "selftest-c"
    sources = [folder / name for name in ("main.c", "bundle.c", "json.c")]
    if _is_newer(program, *folder.iterdir()):
        return [str(program), str(find_library())]
    command: Command = [
        _need("cc"),
        "-std=c11",
        "-D_GNU_SOURCE",
        *WARNINGS,
        f"-I{headers}",
        *sources,
    ]
    run_tool([*command, "-o", program, "-ldl", "-lm"], folder=BUILD, why="the C client")
    return [str(program), str(find_library())]


def prepare_cpp(install: bool) -> Sequence[str]:
    """Compile with the system's compilers."""
    headers, folder = find_headers(install), EXAMPLES / "cpp"
    program, json_reader = BUILD / "selftest-cpp", BUILD / "json.o"
    if _is_newer(program, *folder.iterdir(), *(EXAMPLES / "c").iterdir()):
        return [str(program), str(find_library())]
    command: Command = [_need("cc"), "-std=c11", *WARNINGS, "-c", EXAMPLES / "c" / "json.c"]
    run_tool([*command, "-o", json_reader], folder=BUILD, why="the C++ client")
    sources = [folder / "main.cpp", folder / "bundle.cpp", json_reader]
    # -isystem: newer compilers warn of onnxruntime's own headers.
    command = [_need("c++"), "-std=c++17", *WARNINGS, "-isystem", headers, *sources]
    run_tool([*command, "-o", program, "-ldl"], folder=BUILD, why="the C++ client")
    return [str(program), str(find_library())]


def prepare_rust(install: bool) -> Sequence[str]:
    """Compile with cargo, which needs no registry: the C client is all it depends on."""
    cargo, _ = _need("cargo"), _need("cc")
    folder, target = EXAMPLES / "rust", BUILD / "rust"
    run_tool(
        [cargo, "build", "--release", "--locked", "--offline", "--quiet", "--target-dir", target],
        folder=folder,
        why="the Rust client does not compile",
        environment={"ORT_INCLUDE": str(find_headers(install))},
    )
    return [str(target / "release" / "selftest"), str(find_library())]


def prepare_browser(provider: str, install: bool) -> Sequence[str]:
    """Install, compile, and find a browser."""
    folder = need_browser(install=install)
    node = EXAMPLES / "node"
    _npm_install(node, install)  # its code is shared
    _build([_need("npm"), "run", "build"], folder, node, why="the page does not compile")
    return [_need("node"), str(folder / "selftest.mjs"), provider]


def need_browser(*, install: bool) -> Path:
    """The folder of what drives a browser (`browser.mjs`), with its packages.

    Raises:
        MissingError: There is no browser, or the packages are not there and must not be installed.
    """
    if not any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")):
        raise MissingError("no Chromium is installed")
    folder = EXAMPLES / "browser"
    _npm_install(folder, install)
    return folder


def _need(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingError(f"{name} is not installed")
    return found


def _build(command: Sequence[str], folder: Path, *shared: Path, why: str) -> None:
    """Make `folder/dist`, unless it is newer than its sources: others may be using it."""
    sources = (path for place in (folder, *shared) for path in (place, place / "src"))
    files = [path for place in sources for path in place.iterdir() if path.is_file()]
    stamp = folder / "dist" / ".built"
    if not _is_newer(stamp, *files):
        run_tool(command, folder=folder, why=why)
        stamp.touch()


def _is_newer(program: Path, *sources: Path) -> bool:
    return program.is_file() and all(
        program.stat().st_mtime > source.stat().st_mtime for source in sources
    )


def _npm_install(folder: Path, install: bool) -> None:
    """Install what the lock file names, unless that is done already."""
    lock, stamp = folder / "package-lock.json", folder / "node_modules" / ".stamp"
    if stamp.is_file() and stamp.read_bytes() == lock.read_bytes():
        return
    if not install:
        raise MissingError(f"no packages in examples/{folder.name}: `make examples` installs them")
    run_tool([_need("npm"), "ci", "--no-audit", "--no-fund"], folder=folder, why="npm ci failed")
    stamp.write_bytes(lock.read_bytes())


def prepare_engine(name: str, install: bool) -> Sequence[str]:
    """The plain Python client with something else than onnxruntime in it."""
    if name == "openvino":
        install_python(OPENVINO, install)
    script = str(EXAMPLES / "python_plain" / "selftest.py")
    return [sys.executable, script, "--engine", name]


def install_python(requirement: str, install: bool) -> Path:
    """Put one package into a folder of its own, without its dependencies; gives the folder.

    Raises:
        MissingError: It is not there and must not be installed, or cannot be.
    """
    folder = BUILD / requirement
    if folder.is_dir():
        return folder
    if not install:
        raise MissingError(f"no {requirement} here: `make examples` installs it")
    draft = folder.with_name(folder.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    command: Command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    run_tool([*command, "--target", draft, requirement], folder=BUILD, why=f"no {requirement}")
    draft.rename(folder)
    return folder


CLIENTS = (
    Client(name="Python, plain", prepare=prepare_python),
    Client(name="Node", prepare=prepare_node),
    Client(name="C", prepare=prepare_c),
    Client(name="C++", prepare=prepare_cpp),
    Client(name="Rust", prepare=prepare_rust),
    Client(
        name="browser, wasm",
        prepare=functools.partial(prepare_browser, "wasm"),
        takes_several=True,
    ),
    Client(
        name="browser, WebGPU",
        prepare=functools.partial(prepare_browser, "webgpu"),
        takes_several=True,
    ),
    Client(
        name="ONNX reference",
        prepare=functools.partial(prepare_engine, "reference"),
        prefix=PREFIX,
    ),
    Client(
        name="OpenVINO",
        prepare=functools.partial(prepare_engine, "openvino"),
        environment={"PYTHONPATH": str(BUILD / OPENVINO)},
        prefix=PREFIX,
    ),
)


def prepare_genai(install: bool) -> Sequence[str]:
    """onnxruntime-genai, beside this environment's onnxruntime."""
    install_python(GENAI, install)
    return [sys.executable, str(EXAMPLES / "onnxruntime_genai" / "generate.py")]


def prepare_transformersjs(install: bool) -> Sequence[str]:
    """transformers.js in Node."""
    folder = EXAMPLES / "transformersjs"
    _npm_install(folder, install)
    _build([_need("npx"), "tsc"], folder, why="the client does not compile")
    return [_need("node"), str(folder / "dist" / "main.js")]


def prepare_node_generate(install: bool) -> Sequence[str]:
    """The client in Node, with a tokenizer in JavaScript."""
    return [_need("node"), str(Path(prepare_node(install)[-1]).with_name("generate.js"))]


GENERATORS = (
    Client(name="Node, text", prepare=prepare_node_generate),
    Client(
        name="onnxruntime-genai",
        prepare=prepare_genai,
        environment={"PYTHONPATH": str(BUILD / GENAI)},
    ),
    Client(name="transformers.js", prepare=prepare_transformersjs),
)
"""What continues ids with the language model's bundle; see `examples.clients.generation`."""
