"""A traced program is decomposed where an operator of it has no translation, and only there.

The exporter traces each program a second time, to write operators without a translation in terms
of others. That takes as long as the first trace, a third of a small export, and leaves many
programs as they were: an operator without a translation is often one that has another name.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind, TensorArgument
from torch.onnx._internal.exporter import _decomp, _fx_passes

from causal_onnx.export.outcome import handed_over
from causal_onnx.export.torch_patches.replace import attribute_replaced

__all__ = ["decomposed_where_needed"]

_aten = torch.ops.aten

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""An operator, its arguments by place and by name."""

_OTHER_NAMES: Mapping[OpOverload, OpOverload] = {
    _aten.max.other: _aten.maximum.default,
    _aten.min.other: _aten.minimum.default,
    _aten.swapaxes.default: _aten.transpose.int,
    **{
        getattr(getattr(_aten, f"__{name}__"), kind): getattr(
            getattr(_aten, f"bitwise_{name}"), kind
        )
        for name in ("and", "or", "xor")
        for kind in ("Tensor", "Scalar")
    },
}


@contextlib.contextmanager
def decomposed_where_needed() -> Iterator[None]:
    """Let `torch.onnx.export` take a program as it is, if all that is in it has a translation."""
    original = _fx_passes.decompose_with_registry

    def decompose(program: ExportedProgram, registry: Any) -> ExportedProgram:
        translated = frozenset(_decomp.get_onnx_implemented_overloads(registry))
        renamed = _with_translated_names(program, translated)
        return handed_over(original, program, registry) if renamed is None else renamed

    with attribute_replaced(_fx_passes, "decompose_with_registry", decompose):
        yield


def _with_translated_names(
    program: ExportedProgram, translated: frozenset[Any]
) -> ExportedProgram | None:
    """A copy with all operators under translated names; None: one has to be decomposed."""
    outputs = program.graph_signature.output_specs
    if any(spec.kind != OutputKind.USER_OUTPUT for spec in outputs):
        return None
    graph = copy.deepcopy(program.graph)  # of the nodes; they share what they say of their values
    passed: dict[fx.Node, bool] = {}
    for node in graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        if node.op != "call_function":
            return None
        written_anew = _is_written_anew(node, passed, translated)
        is_new = _is_new(node)  # by its own name: `contiguous` may be its argument
        if not (written_anew or _has_other_name(node)):
            return None
        if node.target is _itself:
            (source,) = node.args
            if _is_output(node) and (source.op == "placeholder" or _is_output(source)):
                return None
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            continue
        if not _stays(node.target, translated):
            return None
        passed[node] = is_new
    graph.eliminate_dead_code()
    renamed = copy.copy(program)
    renamed._graph_module = fx.GraphModule(program.graph_module, graph)
    renamed._graph_module.meta.update(program.graph_module.meta)
    (results,) = graph.output_node().args
    specs = [
        dataclasses.replace(spec, arg=dataclasses.replace(spec.arg, name=result.name))
        if isinstance(spec.arg, TensorArgument)
        else spec
        for spec, result in zip(outputs, results, strict=True)
    ]
    renamed._graph_signature = dataclasses.replace(program.graph_signature, output_specs=specs)
    return renamed


def _has_other_name(node: fx.Node) -> bool:
    """Give an operator the name that has a translation; False: it has to be decomposed."""
    target: Any = node.target
    if target in _OTHER_NAMES:
        node.target = _OTHER_NAMES[target]
    elif target in _CALLS:
        call = _CALLS[target](node, *node.args, **node.kwargs)
        if call is None:
            return False
        node.target, node.args, node.kwargs = call
    return True


def _is_written_anew(
    node: fx.Node, passed: Mapping[fx.Node, bool], translated: Collection[Any]
) -> bool:
    """Let an operator that writes into a tensor make another one, if nobody can tell.

    Nobody can where the tensor is new and nothing has read it. `passed`: the nodes before, and
    whether the memory of their values is that of no other.
    """
    target = node.target
    if not isinstance(target, OpOverload) or not target._schema.is_mutable:
        return False
    name, kind = target._schema.name.removeprefix("aten::"), target._overloadname
    functional: Any = getattr(getattr(_aten, name.removesuffix("_"), None), kind, None)
    into = node.args[0]
    if functional not in translated or not isinstance(into, fx.Node) or not passed.get(into):
        return False
    if any(user in passed for user in into.users):
        return False
    written = _value(into)
    if written is None or not written.is_floating_point():
        return False
    for argument in node.all_input_nodes:
        value = _value(argument)
        if value is None or (value.is_floating_point() and value.dtype != written.dtype):
            return False
    node.target = functional
    into.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
    return True


def _is_new(node: fx.Node) -> bool:
    """Whether the memory of a value is that of no other."""
    target = node.target
    if not isinstance(target, OpOverload) or not (target in _known() or not _is_composite(target)):
        return False
    return all(result.alias_info is None for result in target._schema.returns)


def _is_output(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _itself(source: Any) -> Any:
    """The operator that returns its argument; it is in no graph."""
    return source


def _transposed(node: fx.Node, source: fx.Node) -> Call | None:
    return _aten.transpose.int, (source, -2, -1), {}


def _contiguous(node: fx.Node, source: fx.Node, **_: Any) -> Call | None:
    return _aten.clone.default, (source,), {"memory_format": torch.contiguous_format}


def _dropout(node: fx.Node, source: fx.Node, p: float, train: bool) -> Call | None:
    return None if train else (_itself, (source,), {})


def _reshape(node: fx.Node, source: fx.Node, shape: Sequence[Any]) -> Call | None:
    """With sizes in place of -1, where the trace knows them."""
    value = _value(node)
    if value is None:
        return None
    sizes = [
        size if isinstance(size, int) else given
        for size, given in zip(value.shape, shape, strict=True)
    ]
    return _aten.reshape.default, (source, sizes), {}


def _converted(node: fx.Node, source: fx.Node, *_: Any, **__: Any) -> Call | None:
    before, after = _value(source), _value(node)
    if before is None or after is None or before.device != after.device:
        return None
    if before.dtype == after.dtype:
        return _itself, (source,), {}
    return _aten._to_copy.default, (source,), {"dtype": after.dtype}


def _chunk(node: fx.Node, source: fx.Node, chunks: int, dim: int = 0) -> Call | None:
    value = _value(source)
    if value is None or not isinstance(value.shape[dim], int):
        return None
    return _aten.split.Tensor, (source, max(1, -(-value.shape[dim] // chunks)), dim), {}


def _square(node: fx.Node, source: fx.Node) -> Call | None:
    return _aten.pow.Tensor_Scalar, (source, 2), {}


def _subtracted(node: fx.Node, source: fx.Node, other: Any, alpha: Any = 1) -> Call | None:
    return _aten.sub.Tensor, (other, source), {} if alpha == 1 else {"alpha": alpha}


def _reversed(node: fx.Node, source: fx.Node) -> Call | None:
    value = _value(source)
    return (
        value
        if value is None
        else (_aten.permute.default, (source, [*range(value.ndim)][::-1]), {})
    )


_CALLS: Mapping[OpOverload, Callable[..., Call | None]] = {
    _aten.chunk.default: _chunk,
    _aten.contiguous.default: _contiguous,
    _aten.dropout.default: _dropout,
    _aten.mT.default: _transposed,
    _aten.numpy_T.default: _reversed,
    _aten.reshape.default: _reshape,
    _aten.rsub.Scalar: _subtracted,
    _aten.square.default: _square,
    **dict.fromkeys(
        (_aten.to.dtype, _aten.to.dtype_layout, _aten.to.device, _aten.to.other), _converted
    ),
}
"""What an operator is by another name, of its node and arguments; None: it is decomposed."""


def _value(node: Any) -> torch.Tensor | None:
    """What a node computed in the trace, without its numbers."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None


def _stays(target: Any, translated: frozenset[Any]) -> bool:
    """Whether the exporter's decomposition would leave an operator, or changes its name alone."""
    if not isinstance(target, OpOverload):  # an operator of sizes; `vmap` and graphs are others
        return target in translated and not isinstance(target, torch._ops.HigherOrderOperator)
    if target == _aten.reshape.default:  # to `view`, behind a copy where one is needed
        return True
    if target._schema.is_mutable or target in _decomposed(translated):
        return False
    return target in _known() or not _is_composite(target)


@cache
def _known() -> frozenset[Any]:
    """The operators that can be kept whole: no result of theirs may be a view of an argument."""
    return frozenset(handed_over(torch.export.default_decompositions).keys())


@cache
def _decomposed(translated: frozenset[Any]) -> frozenset[Any]:
    """The operators that the exporter would decompose."""
    return frozenset(handed_over(_decomp.create_onnx_friendly_decomposition_table, set(translated)))


def _is_composite(target: OpOverload) -> bool:
    name = target.name()  # type: ignore[no-untyped-call]
    return torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
