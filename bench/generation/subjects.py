"""The subjects of the comparison: what they are called, and which file each of them runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import subject
from bench.generation.cases import PEERLESS, options_of
from bench.generation.files import BUILDER

__all__ = [
    "APART",
    "EAGER",
    "Subject",
    "agreeing",
    "batch_subjects",
    "llama",
    "openvino",
    "subjects_for",
]

APART = "apart"
"""Ours, one sequence of a batch after another."""
EAGER = "eager"
OURS = ("ours", APART)
PIECE = 256
"""Positions of a prompt that the tuned onnxruntime-genai reads at once."""


class Subject(subject.Subject):
    """One runtime at one precision; they are its name, joined by a hyphen."""

    __slots__ = ()

    @property
    def runtime(self) -> str:
        """ "ours", "genai", "tuned", "eager", "llama", "openvino" or "apart"."""
        return self.name.partition("-")[0]

    @property
    def precision(self) -> str:
        """ "fp32", "int4", ..., or a kind of GGUF file."""
        return self.name.partition("-")[2]

    @property
    def is_peer(self) -> bool:
        """Whether a run goes on without it."""
        return self.runtime not in (*OURS, EAGER)


def subjects_for(
    precisions: Iterable[str],
    *,
    eager: Iterable[str] = ("fp32",),
    device: str = "cpu",
    genai: Mapping[str, Any] | None = None,
    builder: Iterable[str] = ("tuned",),
) -> tuple[Subject, ...]:
    """Every runtime of Python packages at every precision.

    Args:
        precisions: Of ours and of onnxruntime-genai.
        eager: Of PyTorch.
        device: As ours and PyTorch call it.
        genai: More options of onnxruntime-genai.
        builder: Of `BUILDER`: as its graphs come, and with all that we found to help.
    """
    found = []
    for precision in precisions:
        found.append(_ours(precision, device))
        if precision not in PEERLESS:
            make = {"genai": _genai, "tuned": _tuned}
            found += [make[runtime](precision) for runtime in builder]
    for one in found:
        if one.runtime != "ours":
            one.options.update(genai or {})
    return (*found, *(_eager(precision, device) for precision in eager))


def llama(kinds: Iterable[str], program: Path) -> tuple[Subject, ...]:
    """llama.cpp with GGUF files of these kinds."""
    return tuple(
        Subject(
            name=f"llama-{kind}",
            factory="bench.generation.llama:generation",
            title=f"llama.cpp {kind.upper()}",
            about="its `llama-server` with a GGUF file of the same weights, all else default; one "
            "HTTP request a prompt or answer, and the processor time of the server's process",
            options={"kind": kind, "program": str(program)},
        )
        for kind in kinds
    )


def openvino(kinds: Iterable[str]) -> tuple[Subject, ...]:
    """OpenVINO GenAI with GGUF files of these kinds."""
    return tuple(
        Subject(
            name=f"openvino-{kind}",
            factory="bench.generation.openvino:generation",
            title=f"OpenVINO GenAI {kind.upper()}",
            about="`ContinuousBatchingPipeline` with the same GGUF file, "
            "`INFERENCE_NUM_THREADS` set, no prefix cache; all else default: it rounds activations "
            "to 8 bits and the cache too; to decode, it reads the prompt and takes a step less",
            options={"kind": kind},
        )
        for kind in kinds
    )


def batch_subjects(subjects: Iterable[Subject]) -> tuple[Subject, ...]:
    """Those of these that continue several sequences at once, and ours one after another."""
    found = []
    for one in subjects:
        if one.runtime == "ours":
            options = {"precision": one.precision, "together": True}
            factory = "bench.generation.ours:batch"
            found.append(replace(one, factory=factory, options=options))
            name, options = f"{APART}-{one.precision}", {**options, "together": False}
            found.append(replace(one, name=name, factory=factory, options=options))
        elif "kind" in one.options:
            found.append(replace(one, options={**one.options, "together": True}))
    return tuple(found)


def agreeing(subjects: Iterable[Subject]) -> dict[str, tuple[str, ...]]:
    """Reference -> the subjects whose logits must be its own.

    PyTorch where it runs at that precision; else the builder's graph, whose weights lie on nearly
    the grid of ours; PyTorch at its first precision where there is neither.
    """
    subjects = list(subjects)
    wide = next((one for one in subjects if one.runtime == EAGER), None)
    by_precision: dict[str, list[Subject]] = {}
    for one in subjects:
        by_precision.setdefault(one.precision, []).append(one)
    found: dict[str, tuple[str, ...]] = {}
    for group in by_precision.values():
        near = [one for name in (EAGER, *BUILDER) for one in group if one.runtime == name]
        first = next(iter(near), wide or group[0])
        others = tuple(one.name for one in group if one is not first)
        found[first.name] = found.get(first.name, ()) + others
    return found


def _ours(precision: str, device: str) -> Subject:
    return Subject(
        name=f"ours-{precision}",
        factory="bench.generation.ours:generation",
        title=f"causal-onnx {precision}",
        about=f"`export(model, path, cache=True, {_said(precision, device)})`, "
        "`load(path, threads=...)`, `model.stream()`; prompts as `generate` reads them",
        options={"precision": precision, "device": device},
    )


def _said(precision: str, device: str) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options_of(precision, device).items())


def _built(precision: str) -> str:
    name, _, size = precision.partition("-")
    return f"-p {name}" + (f" --extra_options block_size={size}" if size else "")


def _genai(precision: str) -> Subject:
    return Subject(
        name=f"genai-{precision}",
        factory="bench.generation.genai:generation",
        title=f"onnxruntime-genai {precision}",
        about=f"built with `{_built(precision)}`, `intra_op_num_threads` set, past and present one "
        "buffer; `Generator.append_tokens` and `generate_next_token`",
        options={"built": f"genai-{precision}"},
    )


def _tuned(precision: str) -> Subject:
    return Subject(
        name=f"tuned-{precision}",
        factory="bench.generation.genai:generation",
        title=f"onnxruntime-genai {precision}, tuned",
        about="the same, built with `prune_lm_head=true` too, so that a prompt's last position "
        "alone has logits, and run with `session.set_denormal_as_zero`, its weights on huge pages "
        "by `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` (ours lie there by `load`); prompts are "
        f"appended in pieces of {PIECE}, which is 1.03 to 1.3 times as fast",
        options={
            "built": f"tuned-{precision}",
            "session": {"session.set_denormal_as_zero": "1"},
            "piece": PIECE,
        },
        environment={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    )


def _eager(precision: str, device: str) -> Subject:
    return Subject(
        name=f"eager-{precision}",
        factory="bench.generation.eager:generation",
        title=f"PyTorch + transformers {precision}",
        about="`LlamaForCausalLM` in `torch.inference_mode`, attention by "
        "`scaled_dot_product_attention`, a `DynamicCache`; prompts with `logits_to_keep=1`",
        options={"precision": precision, "device": device},
    )
