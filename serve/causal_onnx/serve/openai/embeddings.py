"""`POST /v1/embeddings`: the hidden state after a text, of models that give hidden states."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from causal_onnx.runtime.contract import Contract, TensorSpec
from causal_onnx.serve.errors import BadRequestError
from causal_onnx.serve.openai.answers import answer
from causal_onnx.serve.registry import ServedModel
from causal_onnx.serve.requests.running import prepare_aside, read_prompts, read_request
from causal_onnx.serve.web import while_connected

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["embeddings", "hidden_states"]

SMALLEST = 1e-30
"""In place of a length of 0."""

NAMES = ("last_hidden_state", "hidden_states", "embeddings")


def hidden_states(contract: Contract) -> tuple[TensorSpec, TensorSpec] | None:
    """The input of ids (batch, seq), and the output of hidden states (batch, seq, width); None
    where a model has not both.

    The output is called so, or it is the only one of its axes and no logits of the ids.
    """
    optional, presents = contract.optional_names, contract.present_names
    inputs = [spec for spec in contract.inputs if spec.name not in optional]
    if len(inputs) != 1 or inputs[0].axes != ("batch", "seq") or inputs[0].vocab_size is None:
        return None
    found = [
        spec
        for spec in contract.outputs
        if spec.name not in presents
        and len(spec.axes) == 3
        and spec.axes[:2] == ("batch", "seq")
        and "float" in spec.dtype
    ]
    named = [spec for name in NAMES for spec in found if spec.name == name]
    if named:
        return inputs[0], named[0]
    vocab = inputs[0].vocab_size
    others = [spec for spec in found if spec.name != "logits" and spec.axes[2] != vocab]
    return (inputs[0], others[0]) if len(others) == 1 else None


async def embeddings(request: Request) -> Response:
    """Of each text, the hidden state after its last token, of length 1."""
    service, fields = await read_request(request)
    served = service.models.find(fields.required_text("model"))
    specs = hidden_states(served.contract)
    if specs is None:
        raise BadRequestError(
            f"{served.name} returns no hidden states, so it cannot embed texts", param="model"
        )
    given, output = specs
    prompts = read_prompts(fields, "input", most=service.options.most_prompts)
    encoding = fields.choice("encoding_format", "float", "base64") or "float"
    width = fields.whole("dimensions", least=1)
    if width is not None and width != output.axes[2]:
        raise fields.error("dimensions", f"must be {output.axes[2]}, as the model has it")
    fields.text("user")
    fields.end({})
    ids = await prepare_aside(lambda: [_ids(prompt, served) for prompt in prompts])
    inputs = [{given.name: np.array([row], given.dtype)} for row in ids]
    futures = [
        asyncio.wrap_future(served.tensors.submit(item, adapter=served.adapter)) for item in inputs
    ]
    results = await while_connected(request, _all(futures))
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _written(result[output.name][0, -1], encoding),
        }
        for index, result in enumerate(results)
    ]
    count = sum(map(len, ids))
    usage = {"prompt_tokens": count, "total_tokens": count}
    return answer({"object": "list", "data": data, "model": served.name, "usage": usage})


async def _all(futures: Sequence[asyncio.Future[dict[str, Array]]]) -> list[dict[str, Array]]:
    return await asyncio.gather(*futures)


def _ids(prompt: str | list[int], served: ServedModel) -> list[int]:
    if not isinstance(prompt, str):
        return prompt
    if served.tokenizer is None:
        raise BadRequestError(
            f"{served.name} has no tokenizer on this server: send ids", param="input"
        )
    ids = served.tokenizer.encode(prompt)
    if not ids:
        raise BadRequestError("a text without tokens has no embedding", param="input")
    return ids


def _written(state: Array, encoding: str) -> list[float] | str:
    vector = state.astype(np.float64)
    vector /= max(float(np.linalg.norm(vector)), SMALLEST)
    short = vector.astype("<f4")
    return short.tolist() if encoding == "float" else base64.b64encode(short.tobytes()).decode()
