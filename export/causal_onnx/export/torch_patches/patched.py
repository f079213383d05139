"""Reversible replacements, during capture only, for what the exporter refuses or gets wrong.

Each was measured: the error it answers stands beside it. Outside `patched()` PyTorch is untouched.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor
from torch.nn.attention import bias as attention_bias

from causal_onnx.export.outcome import handed_over
from causal_onnx.export.torch_patches.user_code import user_line

try:  # moved once already between PyTorch versions
    from torch.nn.attention import flex_attention as flex
except ImportError:  # pragma: no cover
    flex = None  # type: ignore[assignment]

__all__ = ["Answer", "patched", "replaying", "watching_sizes"]

_sdpa = F.scaled_dot_product_attention


@contextlib.contextmanager
def patched(*, zero_masked_rows: bool, module: torch.nn.Module | None = None) -> Iterator[None]:
    """Replace what cannot be captured by equal code that can; restore everything on leaving.

    Args:
        zero_masked_rows: Write out that a row which may attend to nothing gives 0, as PyTorch has
            it. Needed below opset 23, where the exported softmax gives the mean of every value,
            later positions included; the `Attention` operator of opset 23 gives 0 itself.
        module: What is captured: `len` of a tensor is replaced in its code. None: nowhere.
    """
    replacements: list[tuple[Any, Any]] = [
        (_sdpa, _attention_zeroing_masked_rows if zero_masked_rows else _attention),
        (attention_bias.causal_upper_left, _causal_upper_left),
        (attention_bias.causal_lower_right, _causal_lower_right),
        (torch.exp, _exp),
        (torch.hstack, _hstack),
        (torch.vstack, _vstack),
        (torch.triu_indices, _triu_indices),
        (torch.tril_indices, _tril_indices),
    ]
    if flex is not None:
        replacements.append((flex.flex_attention, _flex_attention))
        replacements.append((flex.create_block_mask, _create_block_mask))
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        enter(_replaced(replacements))
        if module is not None:
            enter(_lengths_kept(module))
        enter(_attribute(Tensor, "__setitem__", _ours(_set_item)))
        enter(_attribute(Tensor, "unsqueeze", _ours(_unsqueeze)))
        enter(_attribute(Tensor, "__getitem__", _ours(_get_item)))
        for name in ("__mul__", "__rmul__"):
            enter(_attribute(Tensor, name, _ours(_multiply)))
        enter(_attribute(Tensor, "exp", _ours(_exp)))
        # TypeError: unhashable type: non-nested SymInt - caches keyed by the length.
        enter(_attribute(torch.SymInt, "__hash__", lambda s: hash(str(s.node.expr))))
        # ConversionError: aten._transformer_encoder_layer_fwd - the fused inference path.
        was_fast = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, was_fast)
        torch.backends.mha.set_fastpath_enabled(False)
        enter(
            _attribute(
                torch.nn.modules.transformer,
                "_detect_is_causal_mask",
                # The original compares the mask with a causal one value by value, which a trace
                # cannot do; without the hint the mask itself is applied, with equal results.
                lambda mask, is_causal=None, size=None: bool(is_causal),
            )
        )
        yield


def _ours(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a frame of this file around it, by which `ask` knows whose code it is."""

    def replacement(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return replacement


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = owner.__dict__[name] if name in vars(owner) else None
    setattr(owner, name, value)
    try:
        yield
    finally:
        if original is None:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


@contextlib.contextmanager
def _replaced(replacements: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Replace functions under every name they were imported as, in every loaded module."""
    by_id = {id(original): (original, _ours(new)) for original, new in replacements}
    places = [
        (module, name, *by_id[id(value)])
        for module in list(sys.modules.values())
        if isinstance(module, ModuleType) and module.__name__ != __name__
        for name, value in list(vars(module).items())
        if id(value) in by_id
    ]
    try:
        for module, name, _, new in places:
            setattr(module, name, new)
        yield
    finally:
        for module, name, original, _ in places:
            setattr(module, name, original)


@contextlib.contextmanager
def _lengths_kept(module: torch.nn.Module) -> Iterator[None]:
    """Let `len(x)` be `x.shape[0]` in the code of `module` and its parts.

    "Constraints violated": Python wants a number from `len`, and that fixes the length. Only the
    modules' own globals are touched, never PyTorch's nor what Python itself calls.
    """
    own = {sys.modules.get(type(part).__module__) for part in module.modules()}
    with contextlib.ExitStack() as stack:
        for place in own:
            if place is None or place.__name__.split(".")[0] in ("torch", "builtins"):
                continue
            if "len" not in vars(place):
                stack.enter_context(_attribute(place, "len", _length))
        yield


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) and value.ndim else handed_over(len, value)


def _attention(  # noqa: PLR0917 - the signature of what it replaces
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: Any = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention` in the forms that the exporter translates."""
    if enable_gqa and query.shape[-3] == key.shape[-3]:
        enable_gqa = False  # "requires q_num_heads > kv_num_heads"
    if isinstance(attn_mask, _LazyCausalBias):
        attn_mask = attn_mask.mask(query.device)
    if query.ndim == 2:
        lead = attn_mask.unsqueeze(0) if attn_mask is not None else None
        q, k, v = (x.unsqueeze(0) for x in (query, key, value))
        return _attention(q, k, v, lead, dropout_p, is_causal, scale=scale).squeeze(0)
    if query.ndim > 4:
        heads, mask = query.shape[:-2], attn_mask
        if mask is not None and mask.ndim > 2:
            mask = mask.expand(*heads, *mask.shape[-2:]).flatten(0, -4)
        q, k, v = (x.expand(*heads, *x.shape[-2:]).flatten(0, -4) for x in (query, key, value))
        out = _attention(q, k, v, mask, dropout_p, is_causal, scale=scale)
        return out.reshape(*heads, *out.shape[-2:])
    if not enable_gqa and query.ndim == 4 and key.shape[1] == 1 and query.shape[1] != 1:
        # One head of keys for all queries, by broadcasting; the translation wants equal heads.
        key = key.expand(-1, query.shape[1], -1, -1)
        value = value.expand(-1, query.shape[1], -1, -1)
    if query.ndim == 3:  # "only 4D query, key, and value are supported"
        mask = (
            attn_mask.unsqueeze(-3) if attn_mask is not None and attn_mask.ndim == 3 else attn_mask
        )
        return _attention(
            query.unsqueeze(1),
            key.unsqueeze(1),
            value.unsqueeze(1),
            mask,
            dropout_p,
            is_causal,
            scale=scale,
        ).squeeze(1)
    if isinstance(is_causal, torch.SymBool):
        # "argument 'is_causal' must be bool, not SymBool": is_causal=length > 1.
        wanted = torch.sym_ite(is_causal, 1, 0)  # type: ignore[no-untyped-call]
        on = torch.full((1,), wanted, device=query.device) > 0
        lower = _tril(query.shape[-2], key.shape[-2], query.device)
        causal = lower | ~on
        if attn_mask is None:
            attn_mask = causal
        elif attn_mask.dtype == torch.bool:
            attn_mask = attn_mask & causal
        else:
            attn_mask = attn_mask.masked_fill(~causal, -math.inf)
        is_causal = False
    result: Tensor = handed_over(
        _sdpa,
        query,
        key,
        value,
        attn_mask,
        dropout_p,
        is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
    )
    return result


def _attention_zeroing_masked_rows(  # noqa: PLR0917 - the signature of what it replaces
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: Any = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    out = _attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    if isinstance(attn_mask, Tensor) and attn_mask.dtype == torch.bool:
        out = torch.where(attn_mask.any(-1, keepdim=True), out, torch.zeros_like(out))
    return out


def _tril(rows: Any, columns: Any, device: torch.device, diagonal: Any = 0) -> Tensor:
    i = torch.arange(rows, device=device).unsqueeze(-1)
    j = torch.arange(columns, device=device).unsqueeze(0)
    lower: Tensor = j <= i + diagonal
    return lower


class _LazyCausalBias:
    """Stands for a `CausalBias`: "Creating a new Tensor subclass CausalBias ..."."""

    def __init__(self, rows: Any, columns: Any, lower_right: bool):
        self._rows, self._columns = rows, columns
        self._diagonal = columns - rows if lower_right else 0

    def mask(self, device: torch.device) -> Tensor:
        return _tril(self._rows, self._columns, device, self._diagonal)


def _causal_upper_left(rows: Any, columns: Any) -> _LazyCausalBias:
    return _LazyCausalBias(rows, columns, lower_right=False)


def _causal_lower_right(rows: Any, columns: Any) -> _LazyCausalBias:
    return _LazyCausalBias(rows, columns, lower_right=True)


def _triu_indices(
    row: Any, col: Any, offset: int = 0, *, dtype: Any = torch.long, device: Any = None, **_: Any
) -> Tensor:
    # "conflicts ... inferred a static shape of 7": the operator needs a number for its own shape.
    i = torch.arange(row, device=device).unsqueeze(-1)
    j = torch.arange(col, device=device).unsqueeze(0)
    return (j - i >= offset).nonzero().t().to(dtype)


def _tril_indices(
    row: Any, col: Any, offset: int = 0, *, dtype: Any = torch.long, device: Any = None, **_: Any
) -> Tensor:
    i = torch.arange(row, device=device).unsqueeze(-1)
    j = torch.arange(col, device=device).unsqueeze(0)
    return (j - i <= offset).nonzero().t().to(dtype)


_original_set_item = Tensor.__setitem__


def _unsqueeze(tensor: Tensor, dim: int) -> Tensor:
    """`unsqueeze` by way of real numbers: "No decompositions registered for the complex-valued"."""
    if not tensor.is_complex():
        return torch.unsqueeze(tensor, dim)
    parts = torch.view_as_real(tensor)  # one more axis, the last
    return torch.view_as_complex(torch.unsqueeze(parts, dim if dim >= 0 else dim - 1))


_original_multiply = Tensor.__mul__


def _multiply(tensor: Tensor, other: Any) -> Any:
    """A real tensor times a complex number (`1j * angle`): aten.mul.Scalar takes no 1j."""
    if isinstance(other, complex) and not tensor.is_complex():
        return torch.complex(tensor * other.real, tensor * other.imag)
    return handed_over(_original_multiply, tensor, other)


_original_exp = torch.exp


def _exp(tensor: Tensor) -> Tensor:
    """`exp`, of a complex number by its parts, for the same reason."""
    if not tensor.is_complex():
        return handed_over(_original_exp, tensor)  # type: ignore[no-any-return]
    real, imaginary = torch.view_as_real(tensor).unbind(-1)
    length = _original_exp(real)
    return torch.complex(length * imaginary.cos(), length * imaginary.sin())


def _hstack(tensors: Sequence[Tensor]) -> Tensor:
    """`hstack` by way of `cat`: the exporter's has types that do not fit (atleast_1d)."""
    parts = [tensor if tensor.ndim else tensor.reshape(1) for tensor in tensors]
    return torch.cat(parts, dim=0 if parts[0].ndim == 1 else 1)


def _vstack(tensors: Sequence[Tensor]) -> Tensor:
    """`vstack` by way of `cat`, for the same reason (atleast_2d)."""
    return torch.cat([t if t.ndim > 1 else t.reshape(1, -1) for t in tensors])


_original_get_item = Tensor.__getitem__


def _get_item(tensor: Tensor, index: Any) -> Tensor:
    """Indexing by way of real numbers, for the same reason: `turns[:, :, None]` unsqueezes."""
    items = index if isinstance(index, tuple) else (index,)
    if not tensor.is_complex() or not any(item is None for item in items):
        return handed_over(_original_get_item, tensor, index)  # type: ignore[no-any-return]
    last = (slice(None),) if any(item is Ellipsis for item in items) else (Ellipsis, slice(None))
    return torch.view_as_complex(_original_get_item(torch.view_as_real(tensor), (*items, *last)))


def _set_item(self: Tensor, index: Any, value: Any) -> None:
    """`scores[:, mask] = -inf` as a masked fill: "ConversionError ... aten.index_put"."""
    parts = list(index) if isinstance(index, tuple) else [index]
    masks = [i for i, p in enumerate(parts) if isinstance(p, Tensor) and p.dtype == torch.bool]
    plain = isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)
    others = [p for p in parts if not isinstance(p, Tensor)]
    if len(masks) == 1 and plain and len(others) == len(parts) - 1 and all(map(_is_whole, others)):
        mask = parts[masks[0]]
        if Ellipsis not in others:
            parts.append(Ellipsis)
        where = next(i for i, p in enumerate(parts) if p is Ellipsis)
        free = self.ndim - mask.ndim - (len(parts) - 2)  # axes that the Ellipsis stands for
        before = masks[0] + (free - 1 if where < masks[0] else 0)
        after = self.ndim - mask.ndim - before
        shape = (1,) * before + tuple(mask.shape) + (1,) * after
        self.masked_fill_(mask.reshape(shape), value)
        return
    handed_over(_original_set_item, self, index, value)


def _is_whole(part: Any) -> bool:
    return part is Ellipsis or (isinstance(part, slice) and part == slice(None))


class _LazyBlockMask:
    """Stands for a `BlockMask`: keeps the rule, not the blocks."""

    def __init__(self, mask_mod: Callable[..., Tensor], rows: Any, columns: Any):
        self.mask_mod = mask_mod
        self.seq_lengths = (rows, columns)


def _create_block_mask(  # noqa: PLR0917 - the signature of what it replaces
    mask_mod: Callable[..., Tensor],
    B: Any,  # noqa: N803 - as the replaced function spells them
    H: Any,  # noqa: N803
    Q_LEN: Any,  # noqa: N803
    KV_LEN: Any,  # noqa: N803
    device: Any = None,
    BLOCK_SIZE: Any = 128,  # noqa: N803
    _compile: bool = False,
    **_: Any,
) -> _LazyBlockMask:
    return _LazyBlockMask(mask_mod, Q_LEN, KV_LEN)


def _flex_attention(  # noqa: PLR0917 - the signature of what it replaces
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor] | None = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: Any = None,
    **_: Any,
) -> Any:
    """`flex_attention` by broadcasting: "ConversionError ... aten.sort.stable"."""
    if enable_gqa:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (query @ key.transpose(-2, -1)) * scale
    device = query.device
    b = torch.arange(query.shape[0], device=device).view(-1, 1, 1, 1)
    h = torch.arange(query.shape[1], device=device).view(1, -1, 1, 1)
    i = torch.arange(query.shape[2], device=device).view(1, 1, -1, 1)
    j = torch.arange(key.shape[2], device=device).view(1, 1, 1, -1)
    if score_mod is not None:
        scores = handed_over(score_mod, scores, b, h, i, j)
    rule = getattr(block_mask, "mask_mod", None)
    if rule is not None:
        allowed = handed_over(rule, b, h, i, j)
        scores = torch.where(allowed, scores, torch.full_like(scores, -math.inf))
        weights = scores.softmax(-1)
        weights = torch.where(allowed.any(-1, keepdim=True), weights, torch.zeros_like(weights))
    else:
        weights = scores.softmax(-1)
    out = (weights @ value).to(query.dtype)
    return (out, torch.logsumexp(scores, -1)) if return_lse else out


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a tensor said when the module asked for its truth."""

    truth: bool
    place: str
    """The line that asked."""


@contextlib.contextmanager
def replaying(answers: list[Answer], *, record: bool) -> Iterator[None]:
    """Record the truth of tensors in an eager run, or answer with it while tracing.

    For `if mask.any():`, `assert not x.isnan().any()`: "Could not guard on data-dependent
    expression". Questions beyond the answers that are given get the tensor's own.
    """
    original = Tensor.__bool__
    position = iter(list(answers))

    def recorded(self: Tensor) -> bool:
        truth = bool(handed_over(original, self))
        answers.append(Answer(truth=truth, place=user_line() or "in PyTorch"))
        return truth

    def replayed(self: Tensor) -> bool:
        answer = next(position, None)
        return bool(handed_over(original, self)) if answer is None else answer.truth

    with _attribute(Tensor, "__bool__", recorded if record else replayed):
        yield


@contextlib.contextmanager
def watching_sizes(places: list[str]) -> Iterator[None]:
    """Note the lines that turn a dynamic size into a Python number (`range(n)`, `int(n)`)."""
    with contextlib.ExitStack() as stack:
        for name in ("__index__", "__int__"):
            original = getattr(torch.SymInt, name)

            def watched(self: torch.SymInt, original: Any = original) -> int:
                place = user_line()
                if place is not None:
                    places.append(place)
                return int(handed_over(original, self))

            stack.enter_context(_attribute(torch.SymInt, name, watched))
        yield
