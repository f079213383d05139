"""The subjects of the comparison: what they are called, and which file each of them runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench import subject
from bench.generation.cases import PEERLESS, options_of

__all__ = ["Subject", "agreeing", "subjects_for"]


class Subject(subject.Subject):
    """One runtime at one precision; they are its name, joined by a hyphen."""

    __slots__ = ()

    @property
    def runtime(self) -> str:
        """ "ours", "genai", "tuned" or "eager"."""
        return self.name.partition("-")[0]

    @property
    def precision(self) -> str:
        """ "fp32", "int4", ..."""
        return self.name.partition("-")[2]


def subjects_for(
    precisions: Iterable[str],
    *,
    eager: Iterable[str] = ("fp32",),
    device: str = "cpu",
    genai: Mapping[str, Any] | None = None,
) -> tuple[Subject, ...]:
    """Every runtime at every precision.

    Args:
        precisions: Of ours and of onnxruntime-genai.
        eager: Of PyTorch.
        device: As ours and PyTorch call it.
        genai: More options of onnxruntime-genai.
    """
    found = []
    for precision in precisions:
        found.append(_ours(precision, device))
        if precision not in PEERLESS:
            found += [_genai(precision), _tuned(precision)]
    for one in found:
        if one.runtime != "ours":
            one.options.update(genai or {})
    return (*found, *(_eager(precision, device) for precision in eager))


def agreeing(subjects: Iterable[Subject]) -> dict[str, tuple[str, ...]]:
    """Reference -> the subjects whose logits must be its own.

    PyTorch where it runs at that precision; else the builder's graph as it comes, whose weights lie
    on nearly the grid of ours; PyTorch at its first precision where there is no peer.
    """
    subjects = list(subjects)
    wide = next((one for one in subjects if one.runtime == "eager"), None)
    by_precision: dict[str, list[Subject]] = {}
    for one in subjects:
        by_precision.setdefault(one.precision, []).append(one)
    found: dict[str, tuple[str, ...]] = {}
    for group in by_precision.values():
        order = ("eager", "genai", "tuned", "ours")
        first = min(group, key=lambda one: order.index(one.runtime))
        if first.precision in PEERLESS and wide is not None:
            first = wide
        others = tuple(one.name for one in group if one is not first)
        found[first.name] = found.get(first.name, ()) + others
    return found


def _ours(precision: str, device: str) -> Subject:
    return Subject(
        name=f"ours-{precision}",
        factory="bench.generation.ours:generation",
        title=f"causal-onnx {precision}",
        about=f"`export(model, path, cache=True, {_said(precision)})`, `load(path, threads=...)`, "
        "`model.stream()`; prompts with `last_only=True`",
        options={"precision": precision, "device": device},
    )


def _said(precision: str) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options_of(precision).items())


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
        "by `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` (ours lie there by `load`)",
        options={
            "built": f"tuned-{precision}",
            "session": {"session.set_denormal_as_zero": "1"},
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
