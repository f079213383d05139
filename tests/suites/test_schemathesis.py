"""Schemathesis sends what our OpenAPI document allows, and what it does not, to a server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.suites.suite import run_suite

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
"""Not `positive_data_acceptance`: what depends on two fields, such as top_logprobs on logprobs, is
said in the document by sentences, and refused by the server."""

PARTS = {
    "openai": r"^/(v1|tokenize|detokenize|apply-template)",
    "inference": r"^/v2",
    "operation": r"^/(health|metrics|openapi)",
}


@pytest.mark.parametrize("part", PARTS)
def test_the_server_is_as_its_document_says(address: str, part: str, tmp_path: Path) -> None:
    run_suite(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{address}/openapi.json",
            f"--checks={','.join(CHECKS)}",
            "--phases=examples,coverage,fuzzing",
            f"--max-examples={os.environ.get('SUITE_EXAMPLES', '40')}",
            f"--include-path-regex={PARTS[part]}",
            "--exclude-path-regex=/unload$",  # of what the rest asks for
            "--generation-deterministic",
            "--request-timeout=60",
            "--continue-on-failure",
            "--no-color",
        ],
        folder=tmp_path,
    )


def test_a_document_that_says_something_else_is_found_out(tmp_path: Path) -> None:
    import json

    from causal_onnx.serve import open_models
    from causal_onnx.serve.openapi.document import document
    from causal_onnx.serve.options import ServeOptions
    from causal_onnx.serve.service import Service
    from tests.runtime.artifacts import fixture
    from tests.serve.serving import served

    models = open_models([str(fixture("language"))], threads=1)
    told = document(Service(models, ServeOptions()))
    get = told["paths"]["/v1/models"]["get"]["responses"]["200"]
    get["content"]["application/json"]["schema"]["properties"]["object"]["enum"] = ["lists"]
    (tmp_path / "wrong.json").write_text(json.dumps(told))
    with served(models) as address, pytest.raises(AssertionError, match="lists"):
        run_suite(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                "wrong.json",
                f"--url={address}",
                f"--checks={','.join(CHECKS)}",
                "--phases=coverage",
                "--include-path=/v1/models",
                "--no-color",
            ],
            folder=tmp_path,
        )
