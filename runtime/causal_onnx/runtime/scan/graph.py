"""The nodes of a file: known operators, control flow as our forms write it, sizes within limits."""

from __future__ import annotations

from collections.abc import Sequence, Set

from causal_onnx.runtime.scan.attributes import (
    check_attribute,
    check_value,
    constant,
    contents,
    integers,
    tensors_of,
)
from causal_onnx.runtime.scan.decode import Message
from causal_onnx.runtime.scan.growth import Constant, constant_size, stated_elements
from causal_onnx.runtime.scan.limits import Limits, Refused
from causal_onnx.runtime.scan.numbers import Known, compute
from causal_onnx.runtime.scan.tensors import TensorChecker
from causal_onnx.runtime.wire import Source

__all__ = ["GraphChecker"]

CONTRIB = "com.microsoft"
CONTRIB_OPERATORS = frozenset(
    {
        "Attention", "BiasGelu", "DequantizeLinear", "FastGelu", "FusedMatMul",
        "GatherBlockQuantized", "Gelu", "GroupQueryAttention", "MatMulBnb4", "MatMulNBits",
        "MultiHeadAttention", "QuantizeLinear", "QuickGelu", "RotaryEmbedding",
        "SimplifiedLayerNormalization", "SkipLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    }
)  # fmt: skip
"""Those that the exporter writes, and those that its analysis can follow in other files. The domain
has others that read files (EPContext) or loop (BeamSearch)."""

MAX_BRANCHES = 4
"""Graphs in graphs. The tiled form has a Loop in a branch; a cached one no more."""


class _Scope:
    """What is known of the values of one graph, and of the graphs around it."""

    def __init__(self, outer: _Scope | None, *, in_loop: bool = False) -> None:
        self.outer = outer
        self.in_loop: bool = in_loop or (outer is not None and outer.in_loop)
        self.depth: int = 0 if outer is None else outer.depth + 1
        self.values: dict[str, tuple[Known | None, Constant | None]] = {}
        self.sequences: set[str] = set()

    def find(self, name: str) -> tuple[Known | None, Constant | None] | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.outer
        return None


class GraphChecker:
    """Checks the graphs of one file."""

    def __init__(
        self,
        source: Source,
        tensors: TensorChecker,
        limits: Limits,
        *,
        domains: Sequence[str],
    ) -> None:
        """Prepare; `domains` are the operator sets that the file imports."""
        self._source = source
        self._tensors = tensors
        self._limits = limits
        self._domains = frozenset(domains)
        self._nodes = 0
        self._constant_elements = 0.0

    def check(self, graph: Message, scope: _Scope | None = None) -> None:
        """Check a graph and those inside it.

        Raises:
            Refused: By name, what it holds that our forms do not.
        """
        scope = scope or _Scope(None)
        if "sparse_initializer" in graph:
            raise Refused("it has sparse weights, which are small in the file and large in memory")
        for key in ("input", "output", "value_info"):
            for value in graph.get(key, []):
                check_value(value, key)
        for value in graph.get("input", []):
            self._define(scope, value.get("name", ""), None, None, where="input")
        inputs = {value.get("name") for value in graph.get("input", [])}
        for tensor in graph.get("initializer", []):
            self._initializer(tensor, scope, inputs)
        for index, node in enumerate(graph.get("node", [])):
            self._nodes += 1
            if self._nodes > self._limits.max_nodes:
                raise Refused(
                    f"it has more than {self._limits.max_nodes} nodes",
                    "raise it: limits=Limits(max_nodes=...)",
                )
            self._node(node, scope, index)
        for value in graph.get("output", []):
            if scope.find(value.get("name", "")) is None:
                raise Refused(f"nothing computes the output {value.get('name', '')!r}")

    def _define(
        self, scope: _Scope, name: str, known: Known | None, size: Constant | None, *, where: str
    ) -> None:
        if not name:
            raise Refused(f"{where} has a value without a name")
        if name in scope.values:
            raise Refused(f"{where} defines the value {name!r} a second time")
        scope.values[name] = (known, size)

    def _initializer(self, tensor: Message, scope: _Scope, inputs: Set[str]) -> None:
        name = tensor.get("name", "")
        where = f"the tensor {name!r}"
        shape = self._tensors.check(tensor, where, may_be_external=scope.depth == 0)
        known = contents(self._source, tensor, shape)
        if name in inputs:  # the default of an input, which a caller may replace
            return
        self._define(scope, name, known, Constant.of_shape(shape), where=where)

    def _node(self, node: Message, scope: _Scope, index: int) -> None:
        op_type, domain = node.get("op_type", ""), node.get("domain", "")
        name = node.get("name") or next(iter(node.get("output", [])), f"number {index}")
        where = f"the node {name!r} ({f'{domain}:' if domain else ''}{op_type})"
        self._check_operator(node, op_type, domain, where)
        inputs = [self._input(name, scope, where) for name in node.get("input", [])]
        attributes = {}
        for attribute in node.get("attribute", []):
            key = attribute.get("name", "")
            if not key or key in attributes:
                raise Refused(f"{where} has an attribute {key!r} twice or without a name")
            attributes[key] = attribute
            check_attribute(attribute, where)
        knowns = [None if value is None else value[0] for value in inputs]
        self._check_graphs(node, attributes, knowns, scope, where)
        known, size = self._result(node, inputs, attributes, where)
        for position, output in enumerate(node.get("output", [])):
            if output:
                pair = (known, size) if position == 0 else (None, size)
                self._define(scope, output, *pair, where=where)
        if op_type == "SequenceConstruct":
            scope.sequences.update(node.get("output", []))

    def _check_operator(self, node: Message, op_type: str, domain: str, where: str) -> None:
        if domain not in ("", "ai.onnx", CONTRIB):
            raise Refused(
                f"{where} is of the operator domain {domain!r}, expected ONNX's own or {CONTRIB}"
            )
        if domain == CONTRIB and op_type not in CONTRIB_OPERATORS:
            raise Refused(f"{where} is none of the operators of {CONTRIB} that exports have")
        if ("" if domain == "ai.onnx" else domain) not in self._domains:
            raise Refused(f"{where} is of an operator set that the file does not import")
        if node.get("overload") or "device_configurations" in node:
            raise Refused(f"{where} is a call of a local function, or is placed on a device")

    def _input(
        self, name: str, scope: _Scope, where: str
    ) -> tuple[Known | None, Constant | None] | None:
        if not name:
            return None
        found = scope.find(name)
        if found is None:
            raise Refused(f"{where} reads {name!r}, which nothing before it computes")
        return found

    def _check_graphs(
        self,
        node: Message,
        attributes: dict[str, Message],
        inputs: Sequence[Known | None],
        scope: _Scope,
        where: str,
    ) -> None:
        """Only If, Loop and SequenceMap have graphs, and only as exports write them."""
        graphs = {key: value["g"] for key, value in attributes.items() if "g" in value}
        op_type = node.get("op_type", "")
        expected = {
            "If": {"then_branch", "else_branch"},
            "Loop": {"body"},
            "SequenceMap": {"body"},
        }.get(op_type, set())
        if op_type == "Scan":
            raise Refused(f"{where} is control flow that exports do not have")
        if set(graphs) != expected:
            raise Refused(
                f"{where} has the graphs {', '.join(sorted(graphs)) or 'none'}, expected "
                f"{', '.join(sorted(expected)) or 'none'}"
            )
        if not graphs:
            return
        if scope.depth >= MAX_BRANCHES:
            raise Refused(f"{where} is nested more than {MAX_BRANCHES} graphs deep")
        carried = [graph.get("input", []) for graph in graphs.values()]
        if op_type == "If" and any(carried):
            raise Refused(f"{where} has a branch with inputs")
        if op_type == "Loop":
            self._check_loop(node, inputs, len(carried[0]), scope, where)
        elif op_type == "SequenceMap":
            sequence = next(iter(node.get("input", [])), "")
            if sequence not in scope.sequences or scope.in_loop:
                raise Refused(f"{where} runs over a sequence that the graph does not list")
        for graph in graphs.values():
            self.check(graph, _Scope(scope, in_loop=op_type != "If"))

    def _check_loop(
        self, node: Message, inputs: Sequence[Known | None], carried: int, scope: _Scope, where: str
    ) -> None:
        """A Loop stacks what each of a bounded number of steps gives, and carries nothing."""
        if scope.in_loop:
            raise Refused(f"{where} is a loop in a loop")
        if len(inputs) != 2 or carried != 2:
            raise Refused(
                f"{where} carries values from step to step, which loops of exports do not"
            )
        count = inputs[0]
        most = self._limits.max_loop_steps
        if not node["input"][0] or count is None:
            raise Refused(
                f"{where} runs a number of times that does not come from the sizes of its inputs"
            )
        if count.hull[1] > most:
            raise Refused(
                f"{where} may run more than {most} times",
                "raise it: limits=Limits(max_loop_steps=...)",
            )

    def _result(
        self,
        node: Message,
        inputs: Sequence[tuple[Known | None, Constant | None] | None],
        attributes: dict[str, Message],
        where: str,
    ) -> tuple[Known | None, Constant | None]:
        """What is known of the first output, checked to be within the limit."""
        op_type = node.get("op_type", "")
        numbers = integers(attributes)
        shape: tuple[int, ...] = ()
        value: Known | None = None
        for key, tensor in tensors_of(attributes):
            size = self._tensors.check(tensor, f"a tensor in {where}", may_be_external=False)
            if key == "value":
                shape, value = size, contents(self._source, tensor, size)
        knowns = [None if found is None else found[0] for found in inputs]
        sizes = [found[1] for found in inputs if found is not None]
        stated = stated_elements(op_type, knowns, numbers)
        bound: Constant | None = None
        known = None if node.get("domain") == CONTRIB else compute(op_type, knowns, numbers)
        if op_type == "Constant":
            known, bound = constant(attributes, value, shape)
        elif sizes and all(size is not None for size in sizes):
            bound = constant_size(op_type, [x for x in sizes if x is not None], stated, numbers)
            self._constant_elements += bound.elements
        if op_type == "ConstantOfShape":
            if "value" not in attributes:
                value = Known.of([(0, 0)])
            known = None if value is None else Known.any_of(value.hull, is_real=value.is_real)
        most = self._limits.max_value_elements
        largest = max(stated, 0 if bound is None else bound.elements)
        if largest > most:
            raise Refused(
                f"{where} gives {largest:.3g} elements, more than {most}",
                "raise it: limits=Limits(max_value_elements=...)",
            )
        # Those are kept while the file loads, all of them.
        if self._constant_elements > most:
            raise Refused(
                f"{where} and the nodes before it make more than {most} elements of constants",
                "raise it: limits=Limits(max_value_elements=...)",
            )
        return known, bound
