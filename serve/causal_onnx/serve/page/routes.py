"""`GET /` -> one file with style and script in it, `GET /page/models` -> what it shows of them."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from causal_onnx.runtime import __version__
from causal_onnx.serve.inference_protocol.datatypes import datatype_of
from causal_onnx.serve.page.attention import NoAttentionError, attention_outputs
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.service import service_of

__all__ = ["ROUTES", "page_html", "page_policy"]

HERE = Path(__file__).parent


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


STYLE, SCRIPT = _read("page.css"), _read("page.js")


def page_html() -> str:
    """The page as one file, which loads nothing else."""
    page = _read("page.html")
    return page.replace("/* page.css */", STYLE).replace("/* page.js */", SCRIPT)


def page_policy() -> str:
    """What a browser lets the page do: run this very script, and ask the server it came from."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_source(SCRIPT)}",
            f"style-src {_source(STYLE)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


PAGE = HTMLResponse(
    page_html(),
    headers={
        "content-security-policy": page_policy(),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    },
)


async def page(request: Request) -> Response:
    """The page."""
    return PAGE


async def models(request: Request) -> Response:
    """What the page shows of each model."""
    found = [_described(served) for served in service_of(request).models.values()]
    return JSONResponse({"version": __version__, "models": found})


def _described(served: ServedModel) -> dict[str, Any]:
    attention, why_not = None, None
    try:
        outputs = attention_outputs(served.contract)
    except NoAttentionError as error:
        why_not = str(error)
    else:
        attention = {
            "input": {"name": outputs.ids.name, "datatype": datatype_of(outputs.ids)},
            "outputs": list(outputs.names),
            "layers": outputs.layers,
            "heads": outputs.heads,
        }
    runner = served.model.runner
    return {
        "name": served.name,
        "kind": served.kind,
        "texts": served.tokenizer is not None,
        "positions": served.contract.max_seq_len
        if served.engine is None
        else served.engine.context,
        "device": str(served.model.device),
        "threads": runner.threads,
        "attention": attention,
        "no_attention": why_not,
    }


ROUTES = [Route("/", page), Route("/page/models", models)]
