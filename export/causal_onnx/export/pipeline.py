"""The pipeline: module -> graph -> forms -> proof -> file. Reads top to bottom."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from torch import nn

from causal_onnx.export.arguments import check_file, read_options
from causal_onnx.export.best_form import write_in_best_form
from causal_onnx.export.capture.isolation import freeing_memory, isolated
from causal_onnx.export.captures import farthest, valid_captures
from causal_onnx.export.check.blame import naming_the_node
from causal_onnx.export.check.causality import leaking, perturb_source
from causal_onnx.export.errors import CausalityError, DriftError, ExportError, RewriteError
from causal_onnx.export.folder import FILE_SUFFIX, device_of, export_into
from causal_onnx.export.report import ExportReport, Progress
from causal_onnx.export.source.budget import NORMAL
from causal_onnx.export.source.inputs import Input
from causal_onnx.export.source.module import Axes, Example
from causal_onnx.export.subject import Subject, prepare

__all__ = ["export"]


def export(
    module: nn.Module,
    path: str | Path,
    *,
    example: Example | None = None,
    axes: Axes | None = None,
    inputs: Mapping[str, Input] | None = None,
    adaptable: Collection[str | Path] = (),
    causal: str = "positions",
    cache: bool = False,
    target: str = "ort",
    precision: str = "fp32",
    block_size: int | None = None,
    rounding: str = "nearest",
    keep: Mapping[str, str] | None = None,
    opset: int | None = None,
    max_seq_len: int | None = None,
    max_drift: float | None = None,
    same_bits: bool = False,
    effort: str = NORMAL,
    replace: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a causal attention module to one ONNX file, verified before the file appears.

    Args:
        module: Any module with causal self-attention. It is left unchanged: a copy in eval mode is
            exported.
        path: The file to write, whole or not at all; an older file stays on failure. A path that
            does not end in .onnx is a folder for the file and everything that belongs with it,
            which other languages can use too (docs/bundle.md).
        example: A tensor, a tuple of tensors, or a dict of them by keyword; any sizes will do.
            None: the module has a method `example_input(batch, seq)`, or is a decoder of Hugging
            Face or an encoder with one, of which `axes` and `inputs` are known too.
        axes: One {axis: name} per input, names "batch" and "seq" ("past_seq", "total_seq" for
            modules with a cache of their own). None: integer 2-D is (batch, seq), float 3-D
            (batch, seq, features), float 2-D (seq, features).
        inputs: What inputs stand for, by name, if it should not be found out by calling the module:
            {"timestamps": Input(kind="values", range=(0, 1 << 31))}.
        adaptable: Linear layers that LoRA adapters may change in the file, row by row of a batch:
            patterns of their names, such as "*.q_proj" ("*" is any text), and folders of PEFT
            adapters, which stand for the layers that these change. The adapters themselves are not
            in the file: `load(path, adapters={...})` takes any that change no other layers.
        causal: "positions": an output depends on inputs up to its own position. "blocks of N": it
            depends on inputs up to the end of its own block of N positions; the first block begins
            at position 0.
        cache: Derive a KV cache: the file takes `past_key_values.{i}.key` and `.value` and returns
            `present.{i}.key` and `.value`, and serves both prefill and decoding.
        target: "ort" (onnxruntime), "ort-1.32" (onnxruntime 1.32 or newer, where cached attention
            is one operator for all calls), "portable" (any ONNX runtime) or "tiled" (any, in blocks
            of queries: memory linear in the length).
        precision: "fp32", which leaves a module of another precision as it is (bfloat16 is widened
            to fp32); "fp16": weights, inputs, outputs and computation in half precision, compared
            with the module in fp32; "bf16": the same in bfloat16, for CUDA, checked here on the
            CPU node by node in fp32 with each result rounded to bfloat16; "int8" or "int4":
            quantised weights, compared with the module with the same rounded weights; "w8a8": 8-bit
            weights, multiplied in integers by activations that are rounded to 8 bits row by row
            (docs/precision.md).
        block_size: For "int4" and "int8", how many weights share a scale: 32, 64 or 128. None: 32.
        rounding: For quantised weights, "nearest" or "gptq". With "gptq", the weights that follow
            compensate for the error of a rounded one, as far as their inputs are correlated in text
            that the module samples.
        keep: For quantised weights, patterns of parameter names ("*" is any text) and the precision
            that these parameters keep: {"lm_head.*": "fp32"}; with "int4" also "int8".
        opset: ONNX operator set, 17 to 25. None: 24 for "ort" and "ort-1.32", 20 for the
            others.
        max_seq_len: The longest sequence of the file, no longer than the module accepts. None: the
            length that it was trained on, if a Hugging Face configuration says so, or else the
            length that it accepts, found from its guards and by calling it.
        max_drift: How far a lower precision may move the results from fp32: mean KL divergence in
            nats of the next token for language models, else the relative error. None: 0.01 and
            0.02 for "fp16", 0.1 and 0.1 for "bf16", 0.05 and 0.1 for "int8" and "w8a8", 0.5 and
            0.5 for "int4".
        same_bits: Find the calls in which a sequence gets the same bits whatever is computed beside
            it: batches of 1 to 8 sequences, prompts in chunks, sequences of different lengths,
            threads. The report and the file record the result, for this onnxruntime on this
            processor.
        effort: What the checks may compute. "normal": a small model is run at every length and
            batch of the plan, the maximum included, and a large one in one row as far as some
            seconds a call allow. "quick": a tenth of that, fewer samples for the drift, and short
            sequences only through the cache of a large model. "full": whatever the plan holds and
            memory allows, and also the maximum length by changed inputs and through the cache. The
            report and the file list what was left out; the proof is the same.
        replace: Replace an existing folder of a model; a file always replaces an older one.
        progress: Called with (step, fraction done).

    Returns:
        A report of what was written and what was found.

    Raises:
        ExportError: The module cannot be captured, is random in eval mode, or has no dynamic
            sequence axis; the message names the line and the remedy.
        ParityError: The graph disagrees with the module; the error carries the table. No file
            appears. Its subclass RewriteError is a defect of this package: the graph as captured
            agrees with the module.
        DriftError: A ParityError: the precision costs more than `max_drift`. No file appears.
        CausalityError: A later input moves an earlier output; the error carries the perturbation
            points. No file appears.
        TypeError, ValueError: An argument is wrong.
        OSError: The file cannot be written there; the module was not called.
        FileExistsError: The folder exists, and is neither empty nor a model's folder to replace.
    """
    options = read_options(
        causal=causal,
        cache=cache,
        target=target,
        precision=precision,
        block_size=block_size,
        rounding=rounding,
        keep=keep,
        opset=opset,
        max_seq_len=max_seq_len,
        max_drift=max_drift,
        same_bits=same_bits,
        effort=effort,
    )

    def write(file: Path) -> ExportReport:
        check_file(file)
        tell = freeing_memory(progress)
        with isolated():
            tell("probe", 0.0)
            subject = prepare(module, example, axes, inputs, adaptable=adaptable, options=options)
            return _write_proved(subject, file, tell)

    path = Path(path)
    if path.suffix == FILE_SUFFIX:
        return write(path)
    return export_into(
        path, write, replaces=replace, device=device_of(precision), progress=progress
    )


def _write_proved(subject: Subject, path: Path, tell: Progress) -> ExportReport:
    """Write the first capture of the module that can be proved."""
    leak = perturb_source(subject.reference.fresh(), subject.specs, subject.contract)
    errors: list[ExportError] = []
    tell("capture", 0.0)
    for capture, within in valid_captures(subject, errors):
        plain = capture.model.clone()
        try:
            if leak is not None:
                raise leaking(subject, leak)
            return write_in_best_form(capture, within, path, tell)
        except CausalityError as error:  # another capture of the same module would do the same
            raise naming_the_node(error, plain, within.contract) from None
        except (DriftError, RewriteError):
            raise  # as would this, or it would hide a defect
        except ExportError as error:
            errors.append(error)
    raise farthest(errors)
