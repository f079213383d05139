"""deploy/: the image and the manifests fit the server, and what does not fit is seen."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tools.image_size import EXTRAS, installed_sizes

from causal_onnx.runtime import __version__
from tests.serve.deployment import (
    ROOT,
    compose_complaints,
    dockerfile_complaints,
    instructions,
    manifest_complaints,
    pods,
)

yaml = pytest.importorskip("yaml", reason="manifests are YAML")

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
MANIFESTS = ("kubernetes.yaml", "kserve.yaml", "llm-d.yaml")


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def test_the_dockerfile_keeps_all_rules() -> None:
    assert list(dockerfile_complaints(DOCKERFILE)) == []


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("3.11.14-slim-bookworm AS", "latest AS", "the base python:latest is not pinned"),
        ("USER 10001:10001\n", "", "does not run as a user"),
        ("USER 10001:10001", "USER root", "does not run as a user"),
        ("otel]", "oven]", "there is no extra oven"),
        ("otel]", "export]", "the extra export brings torch"),
        ("PIP_CONSTRAINT=/src/requirements.lock", "A=1", "is not pinned by requirements.lock"),
        ("/health/live", "/healthz", "where nothing answers"),
        ("'http://127.0.0.1:8000", "'http://127.0.0.1:80", "where nothing answers"),
        ('"--port", "8000"', '"--prot", "8000"', "is not understood"),
        ("EXPOSE 8000", "EXPOSE 80", "it listens on 8000 and exposes 80"),
        ('ENTRYPOINT ["causal-onnx", "serve"]', "ENTRYPOINT causal-onnx serve", "to a shell"),
        ("COPY runtime runtime", "COPY elsewhere runtime", "there is no elsewhere to copy"),
        ("COPY runtime runtime", "ADD runtime runtime", "COPY does less"),
    ],
)
def test_a_dockerfile_that_breaks_a_rule_is_found(before: str, after: str, complaint: str) -> None:
    assert before in DOCKERFILE
    found = list(dockerfile_complaints(DOCKERFILE.replace(before, after)))
    assert any(complaint in item for item in found), found


def test_hadolint_finds_nothing() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed; the rules above are checked by hand")
    subprocess.run(["hadolint", str(DEPLOY / "Dockerfile")], check=True)


def copied() -> list[str]:
    """What the image is built from."""
    return [
        item
        for name, rest in instructions(DOCKERFILE)
        if name == "COPY" and "--from" not in rest
        for item in rest.split()[:-1]
    ]


def test_the_builder_is_sent_what_it_copies() -> None:
    sent = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert [item for item in copied() if f"!{item}" not in sent] == []


@pytest.mark.slow
def test_what_is_copied_is_enough_for_the_wheel(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    for item in copied():
        copy_one = shutil.copytree if (ROOT / item).is_dir() else shutil.copy
        copy_one(ROOT / item, source / item)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert "causal_onnx/serve/page/page.html" in wheel.namelist()


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_says_what_the_server_does(name: str) -> None:
    found = documents(name)
    assert sum(len(list(pods(document))) for document in found) == 1
    assert [item for document in found for item in manifest_complaints(document)] == []


def changed(edit: Callable[[dict[str, Any], dict[str, Any]], object]) -> list[str]:
    """What is found once a pod and its container were changed."""
    (document, *_) = copy.deepcopy(documents("kubernetes.yaml"))
    (pod,) = pods(document)
    edit(pod, pod["containers"][0])
    return list(manifest_complaints(document))


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda pod, one: one["args"].append("--fast"), "is not understood"),
        (lambda pod, one: one["args"].append("--port=80"), "it listens on"),
        (lambda pod, one: one["args"].append("--host=::1"), "where probes do not reach it"),
        (
            lambda pod, one: one["readinessProbe"].update(httpGet={"path": "/ok", "port": "http"}),
            "its readinessProbe asks",
        ),
        (
            lambda pod, one: one["livenessProbe"]["httpGet"].update(port="grpc"),
            "its livenessProbe asks",
        ),
        (
            lambda pod, one: one["livenessProbe"]["httpGet"].update(path="/health/ready"),
            "which cuts streams",
        ),
        (lambda pod, one: one.pop("startupProbe"), "its startupProbe asks"),
        (lambda pod, one: one.pop("lifecycle"), "no preStop waits"),
        (
            lambda pod, one: pod.update(terminationGracePeriodSeconds=60),
            "killed after 60 s, and needs 135 to drain",
        ),
        (lambda pod, one: pod.pop("securityContext"), "it may run as root"),
        (lambda pod, one: one["volumeMounts"].pop(0), "nothing is mounted at /models/model"),
        (lambda pod, one: one["volumeMounts"].pop(1), "nothing is mounted at /etc/causal-onnx"),
    ],
)
def test_a_manifest_that_the_server_does_not_fit_is_found(edit, complaint: str) -> None:
    found = changed(edit)
    assert any(complaint in item for item in found), found


def test_services_and_pools_lead_to_ports_that_are_there() -> None:
    deployment, service, budget = documents("kubernetes.yaml")
    (pod,) = pods(deployment)
    names = {port["name"] for port in pod["containers"][0]["ports"]}
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert {port["targetPort"] for port in service["spec"]["ports"]} == names
    assert service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"] == labels
    deployment, pool, policy = documents("llm-d.yaml")
    (pod,) = pods(deployment)
    (port,) = pod["containers"][0]["ports"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert pool["spec"]["targetPorts"] == [{"number": port["containerPort"]}]
    assert pool["spec"]["selector"]["matchLabels"] == labels
    assert policy["spec"]["podSelector"]["matchLabels"] == labels


def test_the_probe_of_kserve_asks_for_the_model_that_is_served() -> None:
    (document,) = documents("kserve.yaml")
    (container,) = document["spec"]["predictor"]["containers"]
    name = container["args"][0].partition("=")[0]
    assert container["readinessProbe"]["httpGet"]["path"] == f"/v2/models/{name}/ready"
    assert document["metadata"]["name"] == name


def test_the_compose_file_says_what_the_server_does() -> None:
    (document,) = documents("compose.yaml")
    assert list(compose_complaints(document)) == []
    service = document["services"]["causal-onnx"]
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    for key, value, complaint in (
        ("ports", ["127.0.0.1:8000:80"], "it listens on 8000"),
        ("stop_grace_period", "30s", "killed after 30 s"),
        ("volumes", [], "nothing is mounted at /model"),
        ("command", ["--fast"], "is not understood"),
    ):
        wrong = {"services": {"one": {**service, key: value}}}
        assert any(complaint in item for item in compose_complaints(wrong))


def test_the_compose_file_is_of_its_schema() -> None:
    pytest.importorskip("check_jsonschema", reason="it has the schema")
    command = ["check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    file = str(DEPLOY / "compose.yaml")
    subprocess.run([sys.executable, "-m", *command, file], check=True, capture_output=True)


def test_the_size_on_the_page_is_what_is_installed_here() -> None:
    pytest.importorskip("opentelemetry.sdk", reason="one of the extras that are summed")
    page = (ROOT / "docs" / "serving.md").read_text()
    stated = int(re.search(r"they take about (\d+) MB", page)[1])
    sizes = installed_sizes(EXTRAS)
    assert sum(sizes.values()) / 1e6 == pytest.approx(stated, rel=0.2)
    assert {"numpy", "onnxruntime", "causal-onnx"} < set(sizes)
    assert "torch" not in sizes


def test_the_size_is_of_what_the_image_installs() -> None:
    assert f"'.[{','.join(EXTRAS)}]'" in DOCKERFILE


def test_all_name_the_image_of_this_version() -> None:
    for path in DEPLOY.glob("*.yaml"):
        images = [line.split()[-1] for line in path.read_text().splitlines() if "image:" in line]
        assert images == [f"causal-onnx:{__version__}"], path
