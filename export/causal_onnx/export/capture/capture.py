"""Capture: a module becomes an ONNX graph with named, dynamic axes.

`torch.export` on a copy in eval mode, with an example of our own making, then `torch.onnx.export`
of the exported program. Several ways are tried in turn; each result is judged by the caller.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as _fx_config

from causal_onnx.export.capture.grown_buffers import grows, without_caches
from causal_onnx.export.capture.guards import Domain, read_domain
from causal_onnx.export.capture.running import write_running
from causal_onnx.export.errors import ExportError, Stage
from causal_onnx.export.graph.edit import constant
from causal_onnx.export.outcome import Refusal, ask, handed_over
from causal_onnx.export.source.inputs import CallSizes, InputSpec, free_axes, make_inputs
from causal_onnx.export.source.module import Observed, Source
from causal_onnx.export.source.probe import runs
from causal_onnx.export.torch_patches.blocks import BlocksError, watching_blocks
from causal_onnx.export.torch_patches.decomposition import decomposed_where_needed
from causal_onnx.export.torch_patches.loop_scan import why_not
from causal_onnx.export.torch_patches.patched import patched
from causal_onnx.export.torch_patches.translator import listed_once, tried_where_they_can_match
from causal_onnx.export.torch_patches.type_promotion import promoted_by_recorded_values
from causal_onnx.export.torch_patches.user_code import line_of_error, quoted_line
from causal_onnx.export.torch_patches.watch import Answer, replaying, watching_sizes

__all__ = ["Capture", "attempts", "capture_sizes"]

OLDEST_OPSET, NEWEST_OPSET = 18, 25
"""Below 18 the exporter writes invalid models, above 25 runtimes refuse them (both measured)."""


PLAIN = "without the exporter's optimizer"
"""It drops `+ 1e-9` as if it were nothing: log(p + 1e-9) gives NaN at 0 (onnxscript 0.7)."""
STRICT = "strict"
WARM = "with filled buffers"
WARM_LENGTH = 4096
"""Where buffers that grow on demand are filled to, if the module has no limit of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capture:
    """One captured graph and the sizes it is valid for."""

    model: ir.Model
    domain: Domain
    way: str
    """Which attempt gave it."""

    @property
    def is_warm(self) -> bool:
        """Buffers that grow on demand were filled before the trace, and limit the length."""
        return self.way == WARM


def capture_sizes(
    source: Source,
    specs: Sequence[InputSpec],
    max_seq_len: int | None,
    fixed_seq: int | None = None,
) -> CallSizes:
    """Sizes for the traced example: >= 2, pairwise different, unlike any width of the module.

    An example of length 1 folds shapes and drops masks, silently, for a quarter of all modules;
    a size equal to a width can be taken for that width.

    Raises:
        ExportError: The module accepts no length from 2 on.
    """
    tensors = [*source.parameters(), *source.buffers()]
    taken = {n for tensor in tensors for n in tensor.shape}
    taken |= {
        size
        for spec in specs
        for axis, size in enumerate(spec.example.shape)
        if axis not in spec.axes
    }
    limit = max_seq_len if max_seq_len is not None else 64
    if fixed_seq is not None:
        sizes = CallSizes(batch=_first((3, 5, 2, 4, 6), {fixed_seq}, taken), seq=fixed_seq)
        return _with_free(sizes, specs, taken)
    by_preference = [7, 11, 13, 9, 10, 12, 14, 15, 17, 19, 6, 5, 23, 8, 16, 4, 3, 32, 64, 2]
    lengths = [n for n in by_preference if n < limit and n not in taken]
    lengths += [n for n in by_preference if n <= limit and n not in lengths]
    for seq in lengths:
        batch = _first((3, 5, 4, 6, 2, 7, 9, 11), {seq}, taken)
        sizes = CallSizes(
            batch=batch, seq=seq, past=_first((5, 4, 6, 8, 10, 3), {seq, batch}, taken)
        )
        sizes = _with_free(sizes, specs, taken)
        if runs(source, specs, sizes):
            return sizes
    raise ExportError(
        f"{type(source.module).__name__} accepts no sequence of 2 positions or more "
        f"(tried {sorted(lengths)}); an example of that length shows the error: "
        f"{type(source.module).__name__}()(example)"
    )


def _with_free(sizes: CallSizes, specs: Sequence[InputSpec], taken: set[int]) -> CallSizes:
    """`sizes` with one for each free axis, unlike the others."""
    used = {sizes.batch, sizes.seq, sizes.past}
    found = []
    for name in free_axes(specs):
        size = _first((10, 13, 9, 11, 14, 12, 15), used | {n - 1 for n in used}, taken)
        used |= {size, size - 1}
        found.append((name, size))
    return replace(sizes, free=tuple(found))


def _first(preferred: Sequence[int], never: set[int], better_not: set[int]) -> int:
    """The first of `preferred` outside both sets; outside `never` alone where there is none."""
    allowed = [n for n in preferred if n not in never]
    return next((n for n in allowed if n not in better_not), allowed[0])


_Trace = Callable[[Source, tuple[torch.Tensor, ...]], ExportedProgram]
_DynamicAxes = tuple[dict[int, Any], ...]


def _dynamic_axes(specs: Sequence[InputSpec], fixed_seq: int | None) -> _DynamicAxes:
    """The axes of each input that the capture leaves open."""
    fixed = {"seq"} if fixed_seq is not None else set()
    return tuple(
        {axis: Dim.DYNAMIC for axis, label in spec.axes.items() if label not in fixed}
        for spec in specs
    )


def _axes_alike(specs: Sequence[InputSpec]) -> list[list[tuple[int, int]]]:
    """The axes of the same name, where several inputs have it: place and axis of each."""
    found: dict[str, list[tuple[int, int]]] = {}
    for place, spec in enumerate(specs):
        for axis, label in spec.axes.items():
            found.setdefault(label, []).append((place, axis))
    return [places for places in found.values() if len(places) > 1]


def attempts(
    source: Source, specs: Sequence[InputSpec], sizes: CallSizes, observed: Observed, *, opset: int
) -> Iterator[Capture | ExportError]:
    """Capture in one way after the other, the most faithful first.

    Yields:
        A capture, or the error that this way ended in. The caller takes the first that it can
        verify, and reports the first error if there is none.
    """
    axes = _dynamic_axes(specs, observed.fixed_seq)
    longest = observed.longest or WARM_LENGTH
    ways: list[tuple[str, _Trace]] = [
        ("non-strict", lambda s, x: _trace(s, axes, x, opset)),
        (PLAIN, lambda s, x: _trace(s, axes, x, opset)),
        ("emptied caches", lambda s, x: _trace(without_caches(s, specs, sizes), axes, x, opset)),
        ("replayed conditions", lambda s, x: _trace_replaying(s, axes, x, opset)),
        (STRICT, lambda s, x: _trace_strict(s, axes, x)),
        (WARM, lambda s, x: _trace(_filled(s, specs, sizes, longest), axes, x, opset)),
    ]
    longer = None
    for name, trace in ways:
        sized: list[str] = []
        twin, inputs = source.fresh(), make_inputs(specs, sizes)
        twin.alike = _axes_alike(specs)
        stage = Stage.TRACE
        blocks: list[int] = []
        try:
            with _quiet(), torch.no_grad(), watching_sizes(sized):
                with watching_blocks(blocks):
                    program = ask(trace, twin, inputs)
                longer = _longer(source, specs, sizes, max(blocks, default=0))
                if longer is not None:
                    break
                if isinstance(program, Refusal):
                    raise _explained(program.error, source, sized, None)
                stage = Stage.DOMAIN
                domain = read_domain(program, specs, observed.fixed_seq, longest=observed.longest)
                stage = Stage.TRANSLATE
                model = ask(_translate, program, opset, optimize=name != PLAIN)
                if isinstance(model, Refusal):
                    raise _explained(model.error, source, sized, program)
        except ExportError as error:
            # The domain is read before the translation, which is what takes time. Strict mode is
            # without the replacements, so what its translation lacks is no news of the module.
            most = Stage.TRACE if name == STRICT else stage
            yield error.at(min(most, stage, error.stage))
            if isinstance(error, BlocksError):
                return
            continue
        del program, twin  # while the graph is proved, they would hold what no one needs
        write_running(model)
        _name_axes(model, specs, observed.output_names)
        yield Capture(model=model, domain=domain, way=name)
    if longer is not None:
        yield from attempts(source, specs, longer, observed, opset=opset)


def _longer(
    source: Source, specs: Sequence[InputSpec], sizes: CallSizes, block: int
) -> CallSizes | None:
    """Sizes with more positions than a block has; None where there are, or the module has none."""
    widths = {n for tensor in (*source.parameters(), *source.buffers()) for n in tensor.shape}
    if sizes.seq > block:
        return None
    used = {sizes.batch, sizes.past, *(size for _, size in sizes.free)}
    lengths = [n for n in range(block + 2, 2 * block) if n not in used] or [block + 1]
    found = replace(sizes, seq=next((n for n in lengths if n not in widths), lengths[0]))
    return found if runs(source, specs, found) else None


def _trace(
    source: Source, axes: _DynamicAxes, inputs: tuple[torch.Tensor, ...], opset: int
) -> ExportedProgram:
    with patched(zero_masked_rows=opset < 23, module=source.module):
        return _export_program(source, axes, inputs, strict=False)


def _trace_replaying(
    source: Source, axes: _DynamicAxes, inputs: tuple[torch.Tensor, ...], opset: int
) -> ExportedProgram:
    asked: list[Answer] = []
    with replaying(asked, record=True):
        expected = source.fresh().run(inputs)
    if not asked:
        raise ExportError("the module converts no tensor to bool; nothing to replay").at(
            Stage.NOT_TRIED
        )
    _refuse_branches(source, inputs, asked, expected)
    with replaying(asked, record=False):
        return _trace(source, axes, inputs, opset)


def _refuse_branches(
    source: Source,
    inputs: tuple[torch.Tensor, ...],
    asked: Sequence[Answer],
    expected: Sequence[torch.Tensor],
) -> None:
    """Answer every question the other way, one at a time: the result must not depend on it.

    A check that raises, and a short cut with the same result, may be fixed at what they were. A
    branch that computes something else may not: the graph would take one way for every input.

    Raises:
        ExportError: A result changed; names the line that asks.
    """
    first_at = {question.place: index for index, question in reversed(list(enumerate(asked)))}
    for place, index in first_at.items():
        flipped = [*asked[:index], replace(asked[index], truth=not asked[index].truth)]
        with replaying(flipped, record=False):
            got = ask(source.fresh().run, inputs)
        if isinstance(got, Refusal):  # an assertion, or a `raise`
            continue
        if len(got) != len(expected) or not all(
            a.shape == b.shape and torch.allclose(a.double(), b.double(), 1e-4, 1e-5, True)
            for a, b in zip(got, expected, strict=True)
        ):
            raise ExportError(
                f"{type(source.module).__name__} branches on the values of a tensor ({place}), "
                "and the result depends on it. Remedy: express the choice with torch.where"
            )


def _trace_strict(
    source: Source, axes: _DynamicAxes, inputs: tuple[torch.Tensor, ...]
) -> ExportedProgram:
    # Strict mode reads bytecode and does not see the replacements; it takes other code as it is.
    return _export_program(source, axes, inputs, strict=True)


def _filled(source: Source, specs: Sequence[InputSpec], sizes: CallSizes, longest: int) -> Source:
    """A copy whose tensors that grow on demand have grown as far as they may."""
    if not grows(source, specs, sizes):
        raise ExportError("the module keeps nothing that grows with the length").at(Stage.NOT_TRIED)
    twin = source.fresh()
    twin.run(make_inputs(specs, CallSizes(batch=1, seq=longest)))
    return twin


def _export_program(
    source: Source, axes: _DynamicAxes, inputs: tuple[torch.Tensor, ...], *, strict: bool
) -> ExportedProgram:
    # Not `prefer_deferred_runtime_asserts`: the guards would become nodes that the translation
    # drops, and they are the description of the valid domain.
    with _fx_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = handed_over(
            torch.export.export, source, inputs, dynamic_shapes={"inputs": axes}, strict=strict
        )
    assert isinstance(program, ExportedProgram)
    return program


def _translate(program: ExportedProgram, opset: int, *, optimize: bool) -> ir.Model:
    # At opset 23 exactly, `optimize=True` fuses rotary embeddings wrongly for batch >= 2.
    with (
        tried_where_they_can_match(),
        listed_once(),
        decomposed_where_needed(),
        promoted_by_recorded_values(),
    ):
        translated = handed_over(
            torch.onnx.export,
            program,
            (),
            opset_version=opset,
            optimize=optimize and opset != 23,
            verbose=False,
        )
    assert isinstance(translated, torch.onnx.ONNXProgram)
    _name_squeezed_axes(translated.model)
    return translated.model


def _name_squeezed_axes(model: ir.Model) -> None:
    """Give every Squeeze the axes that PyTorch squeezed: those of a fixed size of 1.

    `squeeze()` is translated without axes, and the graph would drop an axis of positions, or of
    rows, where there is one alone: the tensor would have fewer axes there than what reads it
    expects. PyTorch traces sizes that vary as if none were 1.
    """
    for node in model.graph.all_nodes():
        if node.op_type != "Squeeze" or node.domain or len(node.inputs) != 1:
            continue
        before, after = node.inputs[0], node.outputs[0]
        if before is None or before.shape is None or after.shape is None:
            continue
        axes = [axis for axis, size in enumerate(before.shape) if size == 1]
        if len(before.shape) - len(axes) != len(after.shape):
            continue
        if not axes:
            node.op_type = "Identity"  # onnxruntime takes no axes for all of size 1
            continue
        node.resize_inputs(2)
        node.replace_input_with(1, constant(model.graph, np.array(axes, np.int64)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and warns about itself; the caller gets our report instead."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        sink = io.StringIO()  # of a failed trace, the graph is written to stderr
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_axes(model: ir.Model, specs: Sequence[InputSpec], output_names: Sequence[str]) -> None:
    """Give inputs, outputs and dynamic axes the contract's names; drop the exporter's shape hints.

    The hints go because ONNX Runtime believes them, and they are wrong for some modules.
    """
    graph = model.graph
    _free_names(graph, {spec.name for spec in specs} | set(output_names))
    for value, spec in zip(graph.inputs, specs, strict=True):
        value.name = spec.name
        assert value.shape is not None
        dims: list[int | str] = []
        for axis, dim in enumerate(value.shape):
            dims.append(dim if isinstance(dim, int) else spec.axes[axis])
        value.shape = ir.Shape(dims)
    seen: set[ir.Value] = set()
    for position, name in enumerate(output_names):
        value = graph.outputs[position]
        origin = _origin(value)
        if origin in seen or value.producer() is None:
            # The module returns one tensor twice, an input or a parameter: an output needs a name
            # of its own. Two names for one value would not survive the removal of an Identity.
            assert origin.dtype is not None
            node = (
                ir.node("Cast", inputs=[origin], attributes={"to": int(origin.dtype)})
                if origin in seen
                else ir.node("Identity", inputs=[origin])
            )
            node.outputs[0].shape, node.outputs[0].type = value.shape, value.type
            graph.append(node)
            graph.outputs[position] = value = node.outputs[0]
        seen.add(origin)
        value.name = name
    outputs = set(graph.outputs)
    for node in graph:
        for value in node.outputs:
            if value not in outputs:
                value.shape = None


def _origin(value: ir.Value) -> ir.Value:
    """What `value` is a mere copy of."""
    producer = value.producer()
    while producer is not None and producer.op_type == "Identity":
        assert producer.inputs[0] is not None
        value = producer.inputs[0]
        producer = value.producer()
    return value


def _free_names(graph: ir.Graph, names: set[str]) -> None:
    """Rename what the exporter called as we call an input or output ("softmax", "linear")."""
    values = [*graph.inputs, *graph.initializers.values()]
    values += [value for node in graph.all_nodes() for value in node.outputs]
    for value in values:
        if value.name in names:
            value.name = f"{value.name}_inside"


def _explained(
    error: Exception, source: Source, sized: Sequence[str], program: ExportedProgram | None
) -> ExportError:
    """What PyTorch said, shortened, with the user's own line and a remedy where one is known."""
    chain = _chain(error)
    text = "\n".join(map(str, chain))
    module = type(source.module).__name__
    kind, remedy = next(
        ((kind, remedy) for kind, pattern, remedy in _REMEDIES if re.search(pattern, text)),
        ("other", "write the forward pass with tensor operations on the input's shape"),
    )
    place = sized[0] if kind == "length" and sized else line_of_error(error)
    if place is None and program is not None:
        place = _line_of_node(text, program)
    reason = why_not(place) if kind == "length" else None
    if reason is not None:
        remedy += f". This loop does not: {reason}"
    failure = ExportError(
        f"{module} cannot be captured{f' at {place}' if place else ''}: "
        f"{_headline(chain)}. Remedy: {remedy}"
    )
    failure.__cause__ = error
    return failure


def _line_of_node(text: str, program: ExportedProgram) -> str | None:
    """The user's line that made the node, or called the operator, which `text` names."""
    named = set(re.findall(r"node '(?:node_)?(\w+)'", text))
    operators = {".".join(m) for m in re.findall(r"OpOverload\(op='(.+?)', overload='(\w+)'", text)}
    if not named and not operators:
        return None
    for graph in (program.graph, program.run_decompositions({}).graph):  # as the translation does
        found = (n for n in graph.nodes if n.name in named or str(n.target) in operators)
        traces = (n.meta.get("stack_trace") for n in found)
        line = next((line for trace in traces if trace and (line := quoted_line(trace))), None)
        if line is not None:
            return line
    return None


def _chain(error: BaseException) -> list[BaseException]:
    """What `error` was caused by, innermost first, itself last."""
    chain = [error]
    while True:
        last = chain[-1]
        cause = last.__cause__ or (None if last.__suppress_context__ else last.__context__)
        if cause is None or cause in chain:
            return chain[::-1]
        chain.append(cause)


def _headline(chain: Sequence[BaseException]) -> str:
    """What happened, in one line: the innermost message and, where it names no place, the next."""
    parts: list[str] = []
    for error in chain:
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        if not line or _SAYS_NOTHING.search(line):
            continue
        if type(error) in _BARE:  # a Python slip inside PyTorch; what it was doing comes after it
            parts.append(f"{type(error).__name__}: {_plain(line)}")
            continue
        parts.insert(0, _plain(line))
        break
    return ": ".join(parts)[:300] or type(chain[-1]).__name__


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)  # the exporter colours its messages


_SAYS_NOTHING = re.compile(
    r"^An error occurred (at step \d+|when running the .* pass)"
    r"|^Failed to (export|convert|decompose) the (model|exported program)"
)
_BARE = (AssertionError, AttributeError, IndexError, KeyError, NameError, TypeError)

_REMEDIES = (
    (
        "numbers",
        r"Could not extract specialized integer from data-dependent|\.numpy\(\) is not supported"
        r"|\.tolist\(\)|_local_scalar_dense|item\(\)",
        "values of a tensor become Python numbers here (.item(), .tolist(), .numpy()), and they "
        "differ from call to call. To route tokens, run every expert on all tokens and add up "
        "their outputs, weighted by gates that are 0 for the tokens of other experts; for "
        "lengths, compare torch.arange with the tensor",
    ),
    (
        "length",
        r"specializ|inferred a static shape|Constraints violated",
        "a Python loop over positions or a number taken from the example fixes the length. Build "
        "masks and positions from x.shape with torch.arange; a loop is captured if it is "
        "`for t in range(x.shape[1])` and each step reads and writes tensors at t alone, carries "
        "tensors of one shape to the next, and appends one tensor to a list; or if it is `for "
        "block in x.split(size, dim=1)`, or `for i in range(0, x.shape[1], size)` with "
        "x[:, i : i + size]",
    ),
    (
        "data",
        r"data-dependent|Could not guard",
        "the code branches on the values of a tensor; express the choice with torch.where",
    ),
    (
        "operator",
        r"ConversionError|No (ONNX )?function|not supported|Unsupported|for node '",
        "this operator has no ONNX translation; write it with basic tensor operations",
    ),
)
