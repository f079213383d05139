"""What is wrong with the files in deploy/, by the server's own routes, parser and times."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from starlette.routing import Match, Route

from causal_onnx.cli.errors import UsageError
from causal_onnx.cli.parser import build_parser
from causal_onnx.serve import Registry, create_app
from causal_onnx.serve.server import CLOSING_S

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ENTRY = ["serve"]


def has_path(path: str) -> bool:
    """Whether the server answers GET there."""
    scope = {"type": "http", "method": "GET", "path": path, "root_path": ""}
    routes = create_app(Registry()).routes
    return any(isinstance(r, Route) and r.matches(scope)[0] == Match.FULL for r in routes)


def options_of(words: list[str]) -> Any:
    """The command line, read by our parser; None where it is not understood."""
    try:
        return build_parser().parse_args([*ENTRY, *words])
    except UsageError:
        return None


# Dockerfiles


def instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and the rest, continued lines joined, without comments."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = lines.replace("\\\n", " ").splitlines()
    return [
        (words[0].upper(), words[1])
        for line in joined
        if line.strip()
        for words in [line.strip().split(None, 1)]
    ]


def dockerfile_complaints(text: str, root: Path = ROOT) -> Iterator[str]:
    """The rules that a Dockerfile breaks."""
    found = instructions(text)
    stages = [rest for name, rest in found if name == "FROM"]
    if len(stages) < 2:
        yield "it has one stage, which keeps what builds it"
    for stage in stages:
        if not re.fullmatch(
            r"[a-z/.-]+:\d+\.\d+\.\d+-[\w.-]+(@sha256:[0-9a-f]{64})?", stage.split()[0]
        ):
            yield f"the base {stage.split()[0]} is not pinned to a version"
    last = found[max(i for i, (name, _) in enumerate(found) if name == "FROM") :]
    users = [rest for name, rest in last if name == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield "its last stage does not run as a user with a number other than 0"
    for name, rest in found:
        if name == "ADD":
            yield "it has ADD; COPY does less"
        if name == "COPY" and "--from=" not in rest:
            missing = [item for item in rest.split()[:-1] if not (root / item).exists()]
            yield from (f"there is no {item} to copy" for item in missing)
    yield from _install_complaints(found)
    yield from _start_complaints(last)


def _install_complaints(found: list[tuple[str, str]]) -> Iterator[str]:
    runs = [rest for name, rest in found if name == "RUN"]
    extras = re.findall(r"\.\[([\w,]+)\]", " ".join(runs))
    if not extras:
        yield "it installs no extras"
    for extra in ",".join(extras).split(","):
        if extra and extra not in EXTRAS:
            yield f"there is no extra {extra}"
        elif "torch" in {Requirement(text).name for text in EXTRAS.get(extra, ())}:
            yield f"the extra {extra} brings torch"
    set_here = " ".join(rest for name, rest in found if name == "ENV")
    if not re.search(r"\bPIP_CONSTRAINT=\S*requirements\.lock", set_here):
        yield "what it installs is not pinned by requirements.lock"


def _start_complaints(last: list[tuple[str, str]]) -> Iterator[str]:
    given = dict(last)
    try:
        entry, words = json.loads(given["ENTRYPOINT"]), json.loads(given["CMD"])
    except (KeyError, ValueError):
        yield "ENTRYPOINT and CMD are not both lists, so signals go to a shell"
        return
    options = options_of(words) if entry == ["causal-onnx", *ENTRY] else None
    if options is None:
        yield f"{shlex.join([*entry, *words])} is not understood"
        return
    if str(options.port) not in given.get("EXPOSE", "").split():
        yield f"it listens on {options.port} and exposes {given.get('EXPOSE')}"
    check = re.search(r"https?://[^'\"\s]+", given.get("HEALTHCHECK", ""))
    if check is None:
        yield "it has no health check"
        return
    address = urlsplit(check[0])
    if address.port != options.port or not has_path(address.path):
        yield f"its health check asks {check[0]}, where nothing answers"


# Manifests


def pods(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The specifications of pods in a document of Kubernetes."""
    spec = document.get("spec", {})
    if "containers" in spec.get("predictor", {}):
        yield spec["predictor"]
    if "spec" in spec.get("template", {}):
        yield spec["template"]["spec"]


def manifest_complaints(document: dict[str, Any]) -> Iterator[str]:
    """What the server would not do as a document says."""
    for pod in pods(document):
        for container in pod["containers"]:
            yield from _container_complaints(pod, container)


def _container_complaints(pod: dict[str, Any], container: dict[str, Any]) -> Iterator[str]:
    options = options_of(container["args"])
    if options is None:
        yield f"{shlex.join(container['args'])} is not understood"
        return
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    listens = {options.port, options.grpc_port} - {None}
    if set(ports.values()) != listens:
        yield f"it listens on {sorted(listens)}, and has the ports {sorted(ports.values())}"
    if options.host != "0.0.0.0":
        yield f"it listens on {options.host}, where probes do not reach it"
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = container.get(kind, {}).get("httpGet", {})
        port = ports.get(asked.get("port"), asked.get("port"))
        if port != options.port or not has_path(str(asked.get("path"))):
            yield f"its {kind} asks {asked}, where nothing answers"
    if "ready" in str(container.get("livenessProbe")):
        yield "its livenessProbe fails while it drains, which cuts streams"
    wait = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed, given = wait + options.drain + CLOSING_S, pod.get("terminationGracePeriodSeconds", 30)
    if wait < 5:
        yield "no preStop waits until proxies know that it ends"
    if given < needed:
        yield f"it is killed after {given} s, and needs {needed:g} to drain"
    security = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
    if not security.get("runAsNonRoot") or security.get("allowPrivilegeEscalation") is not False:
        yield "it may run as root"
    mounts = [item["mountPath"] for item in container.get("volumeMounts", ())]
    mounts += ["/mnt/models"] if "STORAGE_URI" in str(container.get("env")) else []
    for place in [*options.models, *filter(None, [options.keys and str(options.keys)])]:
        path = place.partition("=")[2] or place
        if not any(path == mount or path.startswith(f"{mount}/") for mount in mounts):
            yield f"nothing is mounted at {path}"


def compose_complaints(document: dict[str, Any]) -> Iterator[str]:
    """What the server would not do as a compose file says."""
    for service in document["services"].values():
        options = options_of(service["command"])
        if options is None:
            yield f"{shlex.join(service['command'])} is not understood"
            continue
        if [port.rpartition(":")[2] for port in service["ports"]] != [str(options.port)]:
            yield f"it listens on {options.port}, and publishes {service['ports']}"
        grace = int(service.get("stop_grace_period", "10s").removesuffix("s"))
        if grace < options.drain + CLOSING_S:
            yield f"it is killed after {grace} s, and drains for {options.drain:g}"
        targets = [volume["target"] for volume in service["volumes"]]
        for place in options.models:
            if place.partition("=")[2] not in targets:
                yield f"nothing is mounted at {place.partition('=')[2]}"
