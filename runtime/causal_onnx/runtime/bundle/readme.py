"""README.md of a bundle: what is in it, and how each language runs it."""

from __future__ import annotations

from collections.abc import Sequence

from causal_onnx.runtime.artifact.folder import MODEL
from causal_onnx.runtime.contract import Contract, TensorSpec, describe_all
from causal_onnx.runtime.generation.plan import is_language_model
from causal_onnx.runtime.generation.source import text_input
from causal_onnx.runtime.session.integer_products import PRECISION

__all__ = ["bundle_readme"]

_ABOUT = {
    MODEL: "the model, with all of the following in its metadata",
    "contract.json": "what it takes and returns, its certificate, and the sha256 of every file",
    "goldens.json": "inputs and the outputs that belong to them; arrays are little-endian, in "
    "base64",
    "genai_config.json": "the configuration for onnxruntime-genai",
    "config.pbtxt": "the configuration for Triton",
    "generation_config.json": "the ids that begin and end a text, and how tokens are chosen",
    "tokenizer.json": "the tokenizer",
    "chat_template.jinja": "how messages become a prompt",
    "preprocessor_config.json": "how features are made of sound",
}


_RAGGED = {
    "left": "If rows differ in length, padding comes first, in the mask and in the past.",
    "none": "The rows of a batch must be equally long.",
    "packed_steps": "After a past, a call has one new position for every row, or a single row.",
}


def bundle_readme(contract: Contract, files: Sequence[str]) -> bytes:
    """The file's content.

    Args:
        contract: Of the model.
        files: The others of the bundle, relative to it.
    """
    is_foreign = contract.form == "foreign"
    origin = (
        "An ONNX file that another exporter wrote and causal-onnx adopted: it was attested and run,"
        "\nnot compared with PyTorch; and what runtimes without access to its metadata need."
        if is_foreign
        else "An ONNX file that causal-onnx exported from PyTorch, and what runtimes without access"
        " to\nits metadata need."
    )
    parts = [
        "# A model, with the proof of what it computes\n",
        f"{origin} Nothing here needs PyTorch.\n",
        *_contract(contract),
        "## Files\n",
        *_files(files),
        "",
        "    causal-onnx verify-bundle .\n",
        "checks every byte of them, and that this machine computes what "
        + ("was recorded.\n" if is_foreign else "PyTorch did.\n"),
        *_running(contract, files),
    ]
    return ("\n".join(parts).rstrip("\n") + "\n").encode()


def _contract(contract: Contract) -> list[str]:
    most = contract.max_seq_len
    lengths = f"{contract.min_seq_len} to {most}" if most else f"{contract.min_seq_len} and more"
    lines = ["| | |", "|---|---|"]
    for kind, specs in (("input", contract.inputs), ("output", contract.outputs)):
        lines += [f"| {kind} | `{text}` |" for text in describe_all(specs)]
    lines += [f"| positions | {lengths} |", f"| precision | {contract.precision} |"]
    if contract.min_onnxruntime is not None:
        lines.append(f"| onnxruntime | {contract.min_onnxruntime} or newer |")
    lines.append("")
    if contract.cache:
        lines += [
            "In the first call every past is empty (0 positions); afterwards it is the present "
            "of the",
            "call before. "
            + (
                f"`{contract.mask}` is 1 for each position so far, the new ones included.\n"
                if contract.mask
                else "\n"
            ),
        ]
    if contract.mask and contract.ragged in _RAGGED:
        lines.append(f"{_RAGGED[contract.ragged]}\n")
    return lines


def _files(files: Sequence[str]) -> list[str]:
    lines = [f"- `{name}`: {_ABOUT[name]}" for name in files if name in _ABOUT]
    others = [name for name in files if name not in _ABOUT and "/" not in name]
    lines += [f"- `{name}`" for name in others if name != "README.md"]
    lines.append(
        "- `test_data_set_{i}/input_{j}.pb`, `output_{j}.pb`: the golden vectors as ONNX's own test"
        " runners read them. Outputs that the model stores in part, or not at all (presents), are"
        " those of onnxruntime, after it repeated the stored ones"
    )
    return lines


_INTEGER_PRODUCTS = """\
It multiplies in integers. On an x86 processor without VNNI, onnxruntime saturates their sums unless
the session option `session.x64quantprecision` is `1` (slower where it is not needed). `load` sets
it; in the programs below you have to set it.
"""


def _text(contract: Contract, files: Sequence[str]) -> list[str]:
    """How a language model with its tokenizer continues text."""
    if "tokenizer.json" not in files:
        return []
    source = text_input(contract)
    if source is not None and contract.cache:
        return [
            "## Text\n",
            "    pip install 'causal-onnx[cpu,text]'",
            '    causal-onnx generate . --source "Hello"',
            "\nor in Python:\n",
            "```python",
            "from causal_onnx.runtime import load\n",
            'model = load(".")',
            f'inputs = {{"{source.name}": "Hello"}}',
            "print(model.generate(inputs=inputs, max_new_tokens=20).text)",
            "```\n",
        ]
    if not is_language_model(contract):
        return []
    has_template = "chat_template.jinja" in files
    return [
        "## Text\n",
        "    pip install 'causal-onnx[cpu,text]'",
        '    causal-onnx generate . --prompt "Hello"',
        *(["    causal-onnx chat ."] if has_template else []),
        "\nor in Python:\n",
        "```python",
        "from causal_onnx.runtime import load\n",
        'model = load(".")',
        'print(model.generate("Hello", max_new_tokens=20).text)',
        *(
            [
                'messages = [{"role": "user", "content": "Hello"}]',
                "print(model.chat(messages, max_new_tokens=20).text)",
            ]
            if has_template
            else []
        ),
        "```\n",
    ]


def _running(contract: Contract, files: Sequence[str]) -> list[str]:
    given = [spec for spec in contract.inputs if spec.name not in contract.optional_names]
    output = next(s for s in contract.outputs if s.name not in contract.present_names)
    arrays = ", ".join(_numpy_zeros(spec) for spec in given)
    parts = [
        *_text(contract, files),
        "## Python\n",
        "```python",
        "import numpy as np",
        "from causal_onnx.runtime import load\n",
        'model = load(".")',
        f"outputs = model.run({arrays})",
        f'print(outputs["{output.name}"].shape)',
        "```\n",
        *([_INTEGER_PRODUCTS] if contract.precision == PRECISION else []),
        "## Python with onnxruntime alone\n",
        "```python",
        "import numpy as np",
        "import onnxruntime\n",
        f'session = onnxruntime.InferenceSession("{MODEL}")',
        "feeds = {",
        *(f'    "{spec.name}": {_numpy_zeros(spec)},' for spec in contract.inputs),
        "}",
        f'print(session.run(["{output.name}"], feeds)[0].shape)',
        "```\n",
        "## Node\n",
        "```js",
        'import { InferenceSession, Tensor } from "onnxruntime-node";\n',
        f'const session = await InferenceSession.create("{MODEL}");',
        "const feeds = {",
        *(f'  "{spec.name}": {_js_tensor(spec)},' for spec in contract.inputs),
        "};",
        f'console.log((await session.run(feeds))["{output.name}"].dims);',
        "```\n",
        "## Browser\n",
        "The same with `onnxruntime-web`. It cannot read the metadata of a model: `contract.json`",
        "and `goldens.json` are for it.\n",
        "## C and C++\n",
        "`OrtGetApiBase()->GetApi(ORT_API_VERSION)`, then `CreateSession`, one",
        "`CreateTensorWithDataAsOrtValue` for each input above, and `Run`; the golden vectors to",
        "check with lie in `goldens.json`.\n",
        "## Triton\n",
        "    mkdir -p repository/NAME/1",
        "    cp config.pbtxt repository/NAME/",
        f"    cp {MODEL}* repository/NAME/1/",
        "    tritonserver --model-repository repository\n",
        "Or by its Python backend, with the checks of `causal_onnx.runtime`, where the cache may "
        "be left out:\n",
        '    python -c "from causal_onnx.runtime.triton import write_repository; '
        "write_repository('.', '../repository', name='NAME')\"",
        "    tritonserver --model-repository ../repository\n",
    ]
    if "genai_config.json" in files:
        parts += [
            "## onnxruntime-genai\n",
            "```python",
            "import onnxruntime_genai as og\n",
            'model = og.Model(".")',
            "parameters = og.GeneratorParams(model)",
            "parameters.set_search_options(max_length=16)",
            "generator = og.Generator(model, parameters)",
            "generator.append_tokens([1, 2, 3])",
            "while not generator.is_done():",
            "    generator.generate_next_token()",
            "print(generator.get_sequence(0))",
            "```\n",
        ]
    return parts


_SIZES = {"batch": 1, "seq": 3, "total_seq": 3, "past_seq": 0, "past_slots": 0}
"""An example's: three positions at the beginning of a sequence."""


def _shape(spec: TensorSpec) -> tuple[int, ...]:
    free = {axis: 2 for axis in spec.axes if isinstance(axis, str)}
    return spec.shape({**free, **_SIZES})


def _fill(spec: TensorSpec) -> str:
    return "ones" if "total_seq" in spec.axes or spec.kind == "keep_mask" else "zeros"


def _numpy_zeros(spec: TensorSpec) -> str:
    dtype = "bool_" if spec.dtype == "bool" else spec.dtype
    return f"np.{_fill(spec)}({_shape(spec)}, np.{dtype})"


_JS_ARRAYS = {
    "float32": "Float32Array",
    "float64": "Float64Array",
    "float16": "Uint16Array",
    "bfloat16": "Uint16Array",
    "int8": "Int8Array",
    "int16": "Int16Array",
    "int32": "Int32Array",
    "int64": "BigInt64Array",
    "uint8": "Uint8Array",
    "bool": "Uint8Array",
}


def _js_tensor(spec: TensorSpec) -> str:
    shape = list(_shape(spec))
    count = 1
    for size in shape:
        count *= size
    one = "1n" if spec.dtype == "int64" else "1"
    fill = f".fill({one})" if _fill(spec) == "ones" else ""
    return (
        f'new Tensor("{spec.dtype}", new {_JS_ARRAYS[spec.dtype]}({count}){fill}, '
        f"[{', '.join(str(size) for size in shape)}])"
    )
