"""The element-wise analysis of a whole graph at one choice of sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from causal_onnx.export.analysis.attributes import UnsupportedError, attr, malformed
from causal_onnx.export.analysis.elements import (
    NONE,
    Abstract,
    Array,
    Elements,
    Known,
    RefusedByOnnxError,
    broadcast_shape,
    lift,
    plain,
)
from causal_onnx.export.analysis.evaluate import ELEMENTWISE, evaluate, refusal
from causal_onnx.export.analysis.expansion import Body, Shape, body_of
from causal_onnx.export.analysis.rules import RULES, Context
from causal_onnx.export.analysis.signature import InputAxes, Signature, Sizes

__all__ = ["Constants", "Run", "SizesRefusedError", "StuckError", "run"]

CONTROL = frozenset({"If", "Loop", "Scan"})
RANDOM = frozenset(
    {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
     "Multinomial", "Dropout"}
)  # fmt: skip
LAZY_SIZE = 1 << 16
"""Element-wise results on constants beyond this size are evaluated only when a rule asks."""


LARGE_MASK = 1 << 12
"""In a blank run, masks beyond this size are not combined with data."""


class SizesRefusedError(Exception):
    """The graph does not run at these sizes."""

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(f"{node.op_type} {node.name!r}: {reason}")
        self.node = node
        self.reason = reason


class MissingValueError(Exception):
    """A value that no node makes before it is read, and that is no input and no initializer."""


class StuckError(Exception):
    """The analysis cannot go on past this node: its output's shape is not known."""

    def __init__(self, node: ir.Node, reason: str) -> None:
        super().__init__(f"{node.op_type} {node.name!r}: {reason}")
        self.node = node
        self.reason = reason


@dataclass
class Run:
    """What one run found."""

    sizes: Sizes
    values: dict[ir.Value, Abstract]
    context: Context
    unknown: dict[ir.Node, str] = field(default_factory=dict)
    """Nodes that were taken to mix everything, with the reason."""


class Constants:
    """What is the same in all runs: values that depend on no input, and the bodies of operators."""

    def __init__(self) -> None:
        self.values: dict[ir.Value, Known] = {}
        self._bodies: dict[ir.Node, Body | None] = {}

    def body(
        self, node: ir.Node, shapes: Sequence[Shape | None], opsets: Mapping[str, int]
    ) -> Body | None:
        """What a node without a rule is made of, one graph for all runs; None: nothing known."""
        if node not in self._bodies:
            self._bodies[node] = body_of(node, shapes, opsets)
        return self._bodies[node]

    def of(self, value: ir.Value) -> Known | None:
        """The constant behind a value: an initializer, or what was remembered."""
        found = self.values.get(value)
        if found is not None:
            return found
        tensor = value.const_value
        if tensor is None or not value.is_initializer():
            return None
        shape = tuple(int(str(dim)) for dim in tensor.shape)
        found = Known(constant=True, shape=shape, load=lambda: plain(tensor.numpy()))
        self.values[value] = found
        return found

    def small_numbers(self) -> set[int]:
        """Whole numbers that stand alone among the constants that were looked at."""
        found = set()
        for known in self.values.values():
            if known.size == 1 and known.is_loaded:
                value = known.value.reshape(-1)[0]
                number = float(value) if known.value.dtype.kind in "iuf" else 0.0
                if number.is_integer() and 0 < number < 1 << 20:
                    found.add(int(number))
        return found


def run(
    model: ir.Model,
    signature: Signature,
    sizes: Sizes,
    constants: Constants,
    *,
    inputs: Mapping[str, Abstract] | None = None,
    step: Callable[[], None] | None = None,
    blank: bool = False,
) -> Run:
    """Analyse the graph at `sizes`.

    Args:
        model: Without local functions.
        signature: Which axes are positions.
        sizes: The sizes to analyse at.
        constants: Shared between runs of the same graph.
        inputs: Abstract inputs instead of those the signature gives.
        step: Called once per node of the outermost graph.
        blank: Follow shapes and position-only values alone, for large sizes.

    Raises:
        SizesRefusedError: The graph does not take these sizes.
        StuckError: An operator has no rule and its output no declared shape, or reads what nothing
            makes.
        ValueError: Nothing makes an output of the graph.
    """
    walker = _Walker(model, signature, sizes, constants)
    walker.found.context.blank = blank
    for spec, value in _inputs_of(model, signature):
        given = None if inputs is None else inputs.get(spec.name)
        if given is None:
            given = blank_elements(spec.shape(sizes)) if blank else input_elements(spec, sizes)
        walker.values[value] = given
    walker.graph(model.graph, step)
    for value in model.graph.outputs:
        try:
            walker.values[value] = walker.lookup(value)
        except MissingValueError as error:
            raise ValueError(
                f"no node makes the output {error}, and it is no input and no initializer"
            ) from error
    return walker.found


def _inputs_of(model: ir.Model, signature: Signature) -> Iterable[tuple[InputAxes, ir.Value]]:
    specs = {spec.name: spec for spec in signature.inputs}
    for value in model.graph.inputs:
        if (value.name or "") in specs:
            yield specs[value.name or ""], value


def input_elements(spec: InputAxes, sizes: Sizes) -> Elements:
    """Data of which entry i of the position axis belongs to position first + i."""
    shape = spec.shape(sizes)
    axis = spec.position_axis
    record = [1] * len(shape)
    if axis is None:
        return Elements(shape, np.full(record, NONE, np.int32))
    record[axis] = shape[axis]
    first = spec.first_position(sizes)
    places = np.arange(first, first + shape[axis], dtype=np.int32).reshape(record)
    return Elements(shape, places)


def blank_elements(shape: tuple[int, ...]) -> Elements:
    """A tensor of which only the shape is followed."""
    return Elements(shape, np.full((1,) * len(shape), NONE, np.int32))


class _Walker:
    def __init__(
        self, model: ir.Model, signature: Signature, sizes: Sizes, constants: Constants
    ) -> None:
        self.values: dict[ir.Value, Abstract] = {}
        self.constants = constants
        self.sizes = sizes
        self.names = signature.names
        self.depth = 0
        """How many bodies of operators the current node is in."""
        context = Context(opsets=dict(model.opset_imports), run_graph=self.subgraph)
        self.found = Run(sizes, self.values, context)

    def graph(self, graph: ir.Graph, step: Callable[[], None] | None = None) -> None:
        for node in graph:
            self.node(node)
            if step is not None:
                step()

    def subgraph(self, graph: ir.Graph, inputs: Sequence[Abstract]) -> list[Abstract]:
        """One pass through a body; its values are overwritten by the next pass."""
        for value, given in zip(graph.inputs, inputs, strict=True):
            self.values[value] = given
        self.graph(graph)
        return [self.lookup(value) for value in graph.outputs]

    def lookup(self, value: ir.Value | None) -> Abstract:
        if value is None:
            return None
        found = self.values.get(value)
        if found is None:
            found = self.constants.of(value)
            if found is None:
                raise MissingValueError(value.name)
        return found

    def node(self, node: ir.Node) -> None:
        known = self.constants.values.get(node.outputs[0]) if node.outputs else None
        if known is not None and all(out in self.constants.values for out in node.outputs):
            for out in node.outputs:
                self.values[out] = self.constants.values[out]
            return
        try:
            inputs = [self.lookup(value) for value in node.inputs]
        except MissingValueError as error:
            raise StuckError(node, f"nothing makes {error}, which it reads") from error
        try:
            outputs = self.follow(node, inputs)
        except MissingValueError as error:
            raise StuckError(node, f"nothing makes {error}, which it reads") from error
        except RefusedByOnnxError as error:
            raise SizesRefusedError(node, str(error)) from error
        except (SizesRefusedError, StuckError, UnsupportedError):
            raise
        except Exception as error:
            opsets = self.found.context.opsets
            problem = malformed(node, opsets) or refusal(node, inputs, opsets)
            if problem:
                raise SizesRefusedError(node, problem) from error
            # A defect of ours, never a finding about the graph.
            error.add_note(f"while following {node.op_type} {node.name!r}")
            raise
        for value, result in zip(node.outputs, outputs, strict=False):
            self.values[value] = result

    def follow(self, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
        try:
            return self.transfer(node, inputs)
        except UnsupportedError as error:
            if self.depth:
                raise  # of a body, the node as a whole is taken to mix
            return self.mixing(node, inputs, str(error))

    def transfer(self, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        rule = RULES.get((domain, node.op_type))
        if (
            node.op_type not in CONTROL
            and node.op_type not in RANDOM
            and "Sequence" not in node.op_type
            and "Optional" not in node.op_type
            and all(value is None or isinstance(value, Known) for value in inputs)
        ):
            try:
                return self.evaluate(node, inputs)
            except UnsupportedError:
                pass  # no kernel here has its value; that it depends on no data its rule says too
        context = self.found.context
        if context.blank and node.op_type in ELEMENTWISE:
            inputs = [
                blank_elements(v.shape) if isinstance(v, Known) and v.size > LARGE_MASK else v
                for v in inputs
            ]
        return self.by_body(node, inputs) if rule is None else rule(context, node, inputs)

    def by_body(self, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
        """Follow what the node is made of; what is noted of its parts is noted of the node."""
        context, shapes = self.found.context, [getattr(value, "shape", None) for value in inputs]
        body = self.constants.body(node, shapes, context.opsets)
        if body is None:
            raise UnsupportedError("this operator has no rule")
        given = [part for part, value in zip(inputs, node.inputs, strict=True) if value is not None]
        opsets, context.opsets = context.opsets, body.opsets
        self.depth += 1
        try:
            outputs = self.subgraph(body.graph, given)
        except (SizesRefusedError, StuckError) as error:
            raise type(error)(node, f"{error.node.op_type}: {error.reason}") from error
        finally:
            self.depth -= 1
            context.opsets = opsets
        for inner in body.graph.all_nodes():
            if inner in context.approximate:
                context.approximated(node, context.approximate.pop(inner))
            if inner in context.scores:
                context.scores[node] = context.scores.pop(inner)
        return outputs[: len(node.outputs)]

    def evaluate(self, node: ir.Node, inputs: Sequence[Abstract]) -> Sequence[Abstract]:
        given = [value for value in inputs if isinstance(value, Known)]
        constant = all(value.constant for value in given)
        if node.op_type in ("Shape", "Size") and given and not given[0].is_loaded:
            dims = given[0].shape[attr(node, "start", 0) : attr(node, "end")]
            size = np.asarray(dims if node.op_type == "Shape" else given[0].size, np.int64)
            outputs: list[Abstract] = [Known(size, constant=constant)]
        else:
            outputs = self.lazy(node, inputs, given) if constant else []
            if not outputs:
                arrays = [v.value if isinstance(v, Known) else None for v in inputs]
                opsets = self.found.context.opsets
                outputs = [Known(a, constant=constant) for a in evaluate(node, arrays, opsets)]
        if constant:
            for value, result in zip(node.outputs, outputs, strict=False):
                assert isinstance(result, Known)
                self.constants.values[value] = result
        return outputs

    def lazy(
        self, node: ir.Node, inputs: Sequence[Abstract], given: Sequence[Known]
    ) -> list[Abstract]:
        """A large constant that is evaluated when needed; empty where that is at once."""
        if not given or max(value.size for value in given) < LAZY_SIZE:
            return []
        if node.op_type in ELEMENTWISE or node.op_type == "QuantizeLinear":
            shape = broadcast_shape(*(value.shape for value in given))
        elif node.op_type == "DequantizeLinear":
            shape = given[0].shape
        elif node.op_type == "Transpose":
            last_first = range(len(given[0].shape))[::-1]
            shape = tuple(given[0].shape[axis] for axis in attr(node, "perm") or last_first)
        else:
            return []
        opsets = self.found.context.opsets

        def load() -> Array:
            arrays = [v.value if isinstance(v, Known) else None for v in inputs]
            return evaluate(node, arrays, opsets)[0]

        return [Known(constant=True, shape=shape, load=load)]

    def mixing(self, node: ir.Node, inputs: Sequence[Abstract], reason: str) -> Sequence[Abstract]:
        """Assume the worst: every element of every output depends on all of every input."""
        self.found.unknown.setdefault(node, reason)
        top = NONE
        for value in self.reads(node, inputs):
            if isinstance(value, Elements):
                top = max(top, int(value.reach.max(initial=NONE)))
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, Elements):
                        top = max(top, int(item.reach.max(initial=NONE)))
        outputs: list[Abstract] = []
        for output in node.outputs:
            shape = self.declared(output)
            if shape is None:
                raise StuckError(node, reason)
            outputs.append(Elements(shape, np.full((1,) * len(shape), top, np.int32)))
        return outputs

    def reads(self, node: ir.Node, inputs: Sequence[Abstract]) -> Iterable[Abstract]:
        """The inputs, and what subgraphs of the node read from outside."""
        yield from inputs
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                for inner in attribute.as_graph().all_nodes():
                    for value in inner.inputs:
                        if value is not None and value in self.values:
                            yield self.values[value]

    def declared(self, value: ir.Value) -> tuple[int, ...] | None:
        """The shape that the graph declares, at these sizes."""
        if value.shape is None:
            return None
        sizes: list[int] = []
        for dim in value.shape:
            if isinstance(dim, int):
                sizes.append(dim)
                continue
            name = self.names.get(dim.value or "", dim.value)
            try:
                sizes.append(self.sizes.of(name or ""))
            except KeyError:
                return None
        return tuple(sizes)


__all__ += ["input_elements", "lift"]
